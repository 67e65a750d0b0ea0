"""What a run needs to go on where it stopped: saved at the end of an epoch, restored at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unixkd.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from unixkd.errors import UserError

if TYPE_CHECKING:
    from unixkd.train import Trainer


def save(run: Trainer) -> None:
    """Save a checkpoint. Learning rate, order, views and draws are functions of the epoch: not saved."""
    optimizer, values = pack_optimizer(run.engine.optimizer)
    tensors = {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}
    tensors |= {f"student.{name}": tensor for name, tensor in run.parts.student.net.state_dict().items()}
    if run.engine.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in run.engine.average.state_dict().items()}
    if run.engine.history is not None:
        tensors |= {f"history.{name}": tensor for name, tensor in run.engine.history.state().items()}
    tensors |= {"times_kept": run.engine.tally.times_kept, "rng": torch.get_rng_state()}
    state = {
        "epoch": run.epoch,
        "steps": run.engine.distiller.steps,
        "optimizer": values,
        "ledger": run.ledger.state_dict(),
        "seconds": run.seconds,
        "data": run.parts.data.fingerprint,
    }
    teacher = run.engine.distiller.teacher
    if teacher is not None and teacher.store is not None:
        teacher.store.flush()
    save_checkpoint(run.folder.checkpoints, run.epoch, tensors, state)


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
    run.parts.student.net.load_state_dict(group(tensors, "student"))
    if run.engine.average is not None:
        run.engine.average.load_state_dict(group(tensors, "average"))
    unpack_optimizer(run.engine.optimizer, group(tensors, "optimizer"), state["optimizer"])
    run.engine.tally.times_kept.copy_(tensors["times_kept"])
    if run.engine.history is not None:
        for name, tensor in run.engine.history.state().items():
            tensor.copy_(tensors[f"history.{name}"])
    torch.set_rng_state(tensors["rng"])
    run.epoch, run.seconds = state["epoch"], state["seconds"]
    run.ledger.load_state_dict(state["ledger"])
    run.engine.distiller.steps = state.get("steps", run.epoch * run.stepper.steps_per_epoch)
    run.records = run.folder.keep_metrics(run.epoch)
    run.note(f"resumed after epoch {run.epoch}")


def group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
