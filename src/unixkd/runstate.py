"""What a run needs to go on where it stopped: saved after an epoch, or after a step of one; restored at the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unixkd import checkpoint
from unixkd.checkpoint import (
    checkpoint_name,
    checkpoints,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    sync,
    unpack_optimizer,
)
from unixkd.errors import UserError
from unixkd.teacher.journal import Journal
from unixkd.teacher.store import AnswerStore

if TYPE_CHECKING:
    from unixkd.train import Trainer


def save(run: Trainer) -> None:
    """Save a checkpoint. Learning rate, order, views and draws are functions of epoch and step: not saved."""
    tensors, state = collect(run)
    store = answer_store(run)
    if store is not None:
        store.flush()
    if run.folder.metrics.exists():
        sync(run.folder.metrics)  # a checkpoint counts on the lines of its epochs
    name = checkpoint_name(run.epoch, run.done)
    save_checkpoint(run.folder.checkpoints, name, tensors, state)
    if store is not None and store.journal is not None:
        store.journal.begin(name)
        store.journal.prune(checkpoints(run.folder.checkpoints)[0].name)


def collect(run: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that a run cannot compute again: tensors by name, and the rest."""
    optimizer, values = pack_optimizer(run.engine.optimizer)
    tensors = prefixed("optimizer", optimizer) | prefixed("student", run.parts.student.net.state_dict())
    if run.engine.average is not None:
        tensors |= prefixed("average", run.engine.average.state_dict())
    if run.engine.history is not None:
        tensors |= prefixed("history", run.engine.history.state())
    tally = run.engine.tally
    tensors |= {"times_kept": tally.times_kept, "unanswered": tally.unanswered, "rng": torch.get_rng_state()}
    if run.device.type == "cuda":
        tensors["cuda_rng"] = torch.cuda.get_rng_state(run.device)
    state = {
        "epoch": run.epoch,
        "done": run.done,
        "steps": run.engine.distiller.steps,
        "optimizer": values,
        "ledger": run.ledger.state_dict(),
        "seconds": run.seconds,
        "data": run.parts.data.fingerprint,
    }
    if run.done:
        sums, state["tally"] = run.engine.tally.state()
        tensors |= prefixed("tally", sums)
    return tensors, state


def check_space(run: Trainer) -> None:
    """Raise, before training starts, where the run's checkpoints would not fit on the disk.

    The moments of the optimiser count as many bytes as the weights: one with SGD, two with AdamW.
    """
    tensors, _ = collect(run)
    moments = {"sgd": 1, "adamw": 2}[run.config.train.optimizer]
    weights = sum(p.numel() * p.element_size() for p in run.parts.student.parameters())
    saved = sum(
        t.numel() * t.element_size() for name, t in tensors.items() if not name.startswith("optimizer.")
    )
    checkpoint.check_space(run.folder.checkpoints, saved + moments * weights)


def restore(run: Trainer) -> None:
    """Go on from the newest valid checkpoint.

    Raises:
        UserError: none is valid, or the training data is not what it was
    """
    tensors, state, damaged = load_checkpoint(run.folder.checkpoints)
    for problem in damaged:
        run.note(f"passed over a damaged checkpoint: {problem}")
    if state["data"] != run.parts.data.fingerprint:
        raise UserError(f"cannot resume {run.folder.path}: the training data has changed since")
    run.epoch, run.done, run.seconds = state["epoch"], state.get("done", 0), state["seconds"]
    restore_engine(run, tensors, state)
    run.ledger.load_state_dict(state["ledger"])
    run.engine.distiller.steps = state.get("steps", run.epoch * run.stepper.steps_per_epoch)
    run.records = run.folder.keep_metrics(run.epoch)
    steps = f" and {run.done} steps of the next" if run.done else ""
    run.note(f"resumed after epoch {run.epoch}{steps}")


def restore_engine(run: Trainer, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put back what a step changes."""
    engine = run.engine
    run.parts.student.net.load_state_dict(group(tensors, "student"))
    if engine.average is not None:
        engine.average.load_state_dict(group(tensors, "average"))
    unpack_optimizer(engine.optimizer, group(tensors, "optimizer"), state["optimizer"])
    engine.tally.times_kept.copy_(tensors["times_kept"])
    if "unanswered" in tensors:
        engine.tally.unanswered.copy_(tensors["unanswered"])
    if run.done:
        engine.tally.load_state(group(tensors, "tally"), state["tally"])
    if engine.history is not None:
        for name, tensor in engine.history.state().items():
            if f"history.{name}" in tensors:
                tensor.copy_(tensors[f"history.{name}"])
    torch.set_rng_state(tensors["rng"])
    if "cuda_rng" in tensors and run.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda_rng"], run.device)


def keep_journal(run: Trainer) -> None:
    """Note what is asked of the teacher from here on; what was asked after the checkpoint is to be paid for again."""
    store = answer_store(run)
    if store is None:
        return
    journal, name = Journal(run.folder.checkpoints), checkpoint_name(run.epoch, run.done)
    store.forget(journal.rows_since(name))
    journal.go_on(name)
    store.journal = journal


def answer_store(run: Trainer) -> AnswerStore | None:
    """The run's own store of answers."""
    teacher = run.engine.distiller.teacher
    return None if teacher is None else teacher.store


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a prefix to their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
