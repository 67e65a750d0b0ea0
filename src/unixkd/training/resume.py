"""What a run needs to go on where it stopped: saved after an epoch, or after a step of one; restored at the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from unixkd.errors import UserError, checksum, first_line
from unixkd.method.ledger import Ledger
from unixkd.names import phase
from unixkd.run_files import sync
from unixkd.teacher.journal import Journal
from unixkd.teacher.store import AnswerStore
from unixkd.training import checkpoint
from unixkd.training.checkpoint import checkpoint_name, checkpoints, pack_optimizer, unpack_optimizer
from unixkd.training.distributed.sharding import gathered, load_whole
from unixkd.training.memory import ran_out
from unixkd.training.resolved import Resolved
from unixkd.training.state import Run

Amount = Annotated[int, msgspec.Meta(ge=0)]


@dataclass
class Charged:
    """What a checkpoint says of a ledger, see `Ledger.state_dict`."""

    images: dict[str, Amount]
    seen: Amount
    teacher_evaluated: Amount
    student_flops: Amount | None = None
    teacher_flops: Amount | None = None
    spent: dict[str, Amount | None] = field(default_factory=dict)
    image_size: tuple[Amount, Amount] | None = None


@dataclass
class Saved:
    """What state.json has to hold, as far as it is the same in all runs; states of early versions hold less."""

    epoch: Amount
    data: str
    seconds: dict[str, Annotated[float, msgspec.Meta(ge=0)]]
    optimizer: dict[str, Any]
    ledger: Charged
    done: Amount = 0
    steps: Amount = 0
    processes: Annotated[int, msgspec.Meta(ge=1)] = 1
    lent: Amount = 0
    networks: dict[str, str] = field(default_factory=dict)
    tally: dict[str, Amount] = field(default_factory=dict)
    metrics: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64}( \d+)?)?$")] = ""


def check_state(state: dict[str, Any], file: Path) -> None:
    """Raise a `UserError` where a value of a checkpoint's state is of another type or out of range."""
    try:
        msgspec.convert(state, Saved)
        for name in [name for name in state if name.endswith(".tally")]:  # of the other processes
            msgspec.convert(state[name], dict[str, Amount])
    except msgspec.ValidationError as error:
        raise UserError(f"'{file}': {error}") from None


@phase("saving a checkpoint", once=True)
def save(run: Run) -> None:
    """Save a checkpoint. Learning rate, order, views and draws are functions of epoch and step: not saved.

    Every process has to call it, the first one writes.
    """
    store = answer_store(run)
    if store is not None:
        store.flush()
    tensors, state = collect(run)
    name = checkpoint_name(run.epoch, run.done)

    def write() -> None:
        if run.folder.metrics.exists():
            sync(run.folder.metrics)  # a checkpoint counts on the lines of its epochs
            state["metrics"] = checksum(run.folder.metrics)
        checkpoint.save_checkpoint(run.folder.checkpoints, name, tensors, state)

    run.world.once(write)
    if store is not None and store.journal is not None:
        store.journal.begin(name)
        store.journal.prune(checkpoints(run.folder.checkpoints)[0].name)


def collect(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that a run cannot compute again: tensors by name, and the rest.

    Weights, optimiser and what is known of each image are the same in all processes once `share` was called; those
    that are sharded only the leader gets.
    """
    share(run)
    optimizer, values = pack_optimizer(run.engine.optimizer)
    trained = prefixed("optimizer", optimizer) | prefixed("student", run.resolved.student.net.state_dict())
    tensors = gathered(trained, run.world)
    if run.engine.average is not None:
        tensors |= prefixed("average", run.engine.average.state_dict())
    if run.engine.scale is not None:
        tensors |= prefixed("scale", run.engine.scale.state())
    tensors |= of_images(run)
    store = answer_store(run)
    if store is not None and store.foreign is not None:
        tensors["answers.foreign"] = torch.from_numpy(np.packbits(store.foreign))
    state = {
        "epoch": run.epoch,
        "done": run.done,
        "steps": run.engine.distiller.steps,
        "optimizer": values,
        "processes": run.world.size,
        "ledger": total_ledger(run).state_dict(),
        "seconds": run.seconds,
        "lent": 0 if store is None else store.lent,
        "data": run.resolved.data.fingerprint,
        "networks": dict(run.resolved.fingerprint),
    }
    for rank, (local, numbers) in enumerate(run.world.gather(local_state(run))):
        tensors |= {of_process(rank, name): tensor for name, tensor in local.items()}
        if run.done:
            state[of_process(rank, "tally")] = numbers
    return tensors, state


def of_images(run: Run) -> dict[str, Tensor]:
    """What is known of each training image, by name."""
    history = run.engine.history
    remembered = {} if history is None else prefixed("history", history.state())
    return run.engine.tally.of_images() | remembered


def local_state(run: Run) -> tuple[dict[str, Tensor], dict[str, int]]:
    """What each process has for itself: random generators, and the sums of an epoch in its midst."""
    tensors = {"rng": torch.get_rng_state()}
    numbers: dict[str, int] = {}
    if run.device.type == "cuda":
        tensors["cuda_rng"] = torch.cuda.get_rng_state(run.device)
    if run.device.type == "mps":
        tensors["mps_rng"] = torch.mps.get_rng_state()
    if run.done:
        sums, numbers = run.engine.tally.state()
        tensors |= {name: tensor.cpu() for name, tensor in prefixed("tally", sums).items()}
    return tensors, numbers


def share(run: Run) -> None:
    """Make what is known of each image the same in all processes; each image was visited by one of them."""
    run.engine.tally.share(run.world)
    if run.engine.history is not None:
        run.world.reduce([run.engine.history.fresh], "min")
    store = answer_store(run)
    if store is not None:
        store.share_forgotten(run.world.reduce)


def total_ledger(run: Run) -> Ledger:
    """What all processes were charged."""
    if run.world.size == 1:
        return run.ledger
    total = run.ledger.emptied()
    for charged in run.world.gather(run.ledger.state_dict()):
        total.add(charged)
    return total


def of_process(rank: int, name: str) -> str:
    """The name of what a process has for itself; the first one's is that of a run of one process."""
    return f"process{rank}.{name}" if rank else name


def check_space(run: Run) -> None:
    """Raise, before training starts, where the run's checkpoints would not fit on the disk.

    The moments of the optimiser count as many bytes as the weights: one with SGD, two with AdamW.
    """
    tensors, _ = collect(run)
    moments = {"sgd": 1, "adamw": 2}[run.config.train.optimizer]
    weights = sum(p.nbytes for p in run.resolved.student.parameters())
    saved = sum(t.nbytes for name, t in tensors.items() if not name.startswith("optimizer."))
    run.world.once(lambda: checkpoint.check_space(run.folder.checkpoints, saved + moments * weights))


@phase("reading the checkpoint")
def restore(run: Run) -> None:
    """Go on from the newest valid checkpoint.

    Raises:
        UserError: none is valid, or what it trains on or with is not what it was
    """
    tensors, state, damaged = run.world.once(
        lambda: checkpoint.load_checkpoint(run.folder.checkpoints, check_state)
    )
    for problem in damaged:
        run.note(f"passed over a damaged checkpoint: {problem}")
    with of_a_run(run.folder.path, checkpoints(run.folder.checkpoints)[-1]):
        restore_state(run, tensors, state)
    steps = f" and {run.done} steps of the next" if run.done else ""
    run.note(f"resumed after epoch {run.epoch}{steps}")


@contextmanager
def of_a_run(folder: Path, newest: Path) -> Iterator[None]:
    """Within, values of a checkpoint are read; what is missing or of another shape becomes a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(folder) in str(error) else f"{newest}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if ran_out(error):
            raise
        raise UserError(
            f"cannot resume {folder}: {newest} is whole, but its state is none of this run "
            f"({type(error).__name__}: {first_line(error)}); remove it, and the one before is used"
        ) from error


def restore_state(run: Run, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put a run where a checkpoint's tensors and state say."""
    check_inputs(run.folder.path, state, run.resolved)
    if (processes := state.get("processes", 1)) != run.world.size:
        raise UserError(
            f"cannot resume {run.folder.path}: {processes} processes trained it, now there are {run.world.size}"
        )
    run.epoch, run.done, run.seconds = state["epoch"], state.get("done", 0), state["seconds"]
    restore_engine(run, tensors, state)
    if run.world.leads:  # what was charged is the sum over all processes
        run.ledger.load_state_dict(state["ledger"])
    run.engine.distiller.steps = state.get("steps", run.epoch * run.stepper.steps_per_epoch)
    for record in run.world.once(lambda: run.folder.keep_metrics(run.epoch, state.get("metrics"))):
        run.remember(record)


def check_inputs(folder: Path, state: Mapping[str, Any], now: Resolved) -> None:
    """Raise where data, teacher or the student's code are not those that a checkpoint's state was reached with.

    Checkpoints of early versions say nothing of networks.
    """
    data = now.data
    known = data.fingerprint if state["data"] == data.fingerprint_before else state["data"]
    then = {"the training data": known, **state.get("networks", now.fingerprint)}
    here = {"the training data": data.fingerprint, **now.fingerprint}
    if changed := [name for name in {**here, **then} if then.get(name) != here.get(name)]:
        verb = "has" if len(changed) == 1 and "weights" not in changed[0] else "have"
        what = " and ".join(changed)
        if now.teacher is None:  # `train` speaks of its model
            what = what.replace("the student's", "the model's")
        raise UserError(f"cannot resume {folder}: {what} {verb} changed since")


def restore_engine(run: Run, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put back what a step changes."""
    engine, rank = run.engine, run.world.rank
    load_whole(run.resolved.student.net, group(tensors, "student"))
    if engine.average is not None:
        engine.average.load_state_dict(group(tensors, "average"))
    if engine.scale is not None:
        engine.scale.load_state(group(tensors, "scale"))
    unpack_optimizer(engine.optimizer, group(tensors, "optimizer"), state["optimizer"])
    for name, tensor in of_images(run).items():
        if name in tensors:  # not all are as old as the oldest checkpoints
            tensor.copy_(tensors[name])
    if run.done:
        engine.tally.load_state(group(tensors, of_process(rank, "tally")), state[of_process(rank, "tally")])
    if (store := answer_store(run)) is not None and store.foreign is not None:
        # Early versions charged only what they asked: such a run has paid for whatever is there.
        packed = tensors.get("answers.foreign")
        marks = (
            None if packed is None else np.unpackbits(packed.numpy(), count=len(store.foreign)).astype(bool)
        )
        store.foreign, store.lent = marks, state.get("lent", 0)
    torch.set_rng_state(tensors[of_process(rank, "rng")])
    if of_process(rank, "cuda_rng") in tensors and run.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[of_process(rank, "cuda_rng")], run.device)
    if "mps_rng" in tensors and run.device.type == "mps":
        torch.mps.set_rng_state(tensors["mps_rng"])


def keep_journal(run: Run) -> None:
    """Note what is asked of the teacher from here on; what was asked after the checkpoint is to be paid for again."""
    store = answer_store(run)
    if store is None:
        return
    journal, name = Journal(run.folder.checkpoints, run.world.rank), checkpoint_name(run.epoch, run.done)
    store.forget(run.world.once(lambda: journal.rows_since(name)))
    journal.go_on(name)
    store.journal = journal


def answer_store(run: Run) -> AnswerStore | None:
    """The run's own store of answers."""
    teacher = run.engine.distiller.teacher
    return None if teacher is None else teacher.store


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with a prefix to their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def group(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
