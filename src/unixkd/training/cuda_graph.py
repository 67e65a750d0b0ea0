"""The same step, captured once in a CUDA graph and replayed: one launch a step instead of hundreds.

What changes from step to step (images, views, draws, learning rate, stored answers) lies in tables on the
device, and a counter there says which row it is, so that a replay needs nothing from the host.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from unixkd.data.split import MemorySplit
from unixkd.method.batch import Draws
from unixkd.method.method import StepCounts
from unixkd.training.capture_check import randomness_kept, refuses_changes
from unixkd.training.engine import Engine
from unixkd.training.static_batch import StaticBatch

WARM_UPS = 4
"""Steps before the capture, in which libraries choose algorithms and the optimiser makes its state.

Two are compared (`unixkd.training.capture_check`), in which nothing is compiled; the last is as the captured one.
"""

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a body that may be run several times, gives back what repeats its work."""

Tables = dict[str, Tensor]
"""Inputs of an epoch's steps by name, a row for each step, on the device."""


def tables_of_epoch(columns: Mapping[str, Tensor], rates: list[float], batch_size: int) -> Tables:
    """The full batches of an epoch: each column as `[steps, N, ...]`, and `lr` `[steps]`.

    Args:
        columns: of the epoch's images `[m, ...]`: index, view, those of `Draws`, and what is known for a `Batch`
        rates: learning rate of each step
        batch_size: N
    """
    steps = len(columns["index"]) // batch_size
    tables = {
        name: column[: steps * batch_size].reshape(steps, batch_size, *column.shape[1:])
        for name, column in columns.items()
    }
    device = columns["index"].device
    return tables | {"lr": torch.tensor(rates[:steps], dtype=torch.float32, device=device)}


class CapturedStep:
    """A step of an engine, recorded once.

    Args:
        engine: its optimiser's learning rate is a tensor
        split: the training images, on the device; or the batch into which loaded ones are copied before each replay
        tables: of some epoch; later ones have the same names
        record: how the step is recorded; another one than a CUDA graph lets a CPU test the rest

    Raises:
        RuntimeError: the step does what a graph cannot, or would freeze; the engine is as it was before
    """

    def __init__(
        self,
        engine: Engine,
        split: MemorySplit | StaticBatch,
        tables: Tables,
        record: Recorder | None = None,
    ) -> None:
        self.engine, self.split = engine, split
        self.steps = len(split) // tables["index"].shape[1]  # no epoch has more than one of all images
        self.tables = {name: t.new_zeros(self.steps, *t.shape[1:]) for name, t in tables.items()}
        self.counter = torch.zeros(1, dtype=torch.int64, device=tables["lr"].device)
        self.load(tables)
        self.counts = StepCounts(0, 0, 0, 0)
        before = {name: tensor.detach().clone() for name, tensor in engine.state().items()}
        device = self.counter.device
        try:
            self.replay = recorded(self.body, device, record)
        finally:
            self.restore(before)

    def load(self, tables: Tables, done: int = 0) -> None:
        """Begin an epoch, which may have fewer steps than another one, or go on with it after `done` steps."""
        for name, table in tables.items():
            self.tables[name][: len(table)].copy_(table)
        self.counter.fill_(done)

    def body(self) -> None:
        """Run one step on the row of the input tables that the device-side counter selects."""
        row = {name: table.index_select(0, self.counter)[0] for name, table in self.tables.items()}
        known = {name: row[name] for name in ("answers", "weight") if name in row}
        batch = replace(self.split.batch(row["index"], row["view"]), **known)
        self.engine.set_learning_rate(row["lr"])
        draws = Draws(row["partner"], row["lam"], row["noise"])
        self.counts = self.engine.step(batch, draws).counts
        self.counter += 1
        self.counter %= self.steps  # an epoch may have fewer steps than the warm-up

    @torch.no_grad()
    def restore(self, before: dict[str, Tensor]) -> None:
        """Undo the warm-up; what it brought into being starts at 0, as an optimiser's state does."""
        for name, tensor in self.engine.state().items():
            if name in before:
                tensor.copy_(before[name])
            else:
                tensor.zero_()
        self.engine.optimizer.zero_grad()
        self.counter.zero_()


def recorded(
    body: Callable[[], None], device: torch.device, record: Recorder | None = None
) -> Callable[[], None]:
    """What repeats a body's work; random numbers stand where they stood.

    Args:
        body: may be run several times, on this device
        device: where it runs
        record: how it is recorded (default: in a CUDA graph)

    Raises:
        RuntimeError: the body does what a graph cannot, or would freeze
    """
    with randomness_kept(device if record is None else None):
        return (record or record_graph)(refuses_changes(body, device))


def record_graph(body: Callable[[], None]) -> Callable[[], None]:
    """Warm up, capture, and give back the replay, all on a stream that is this graph's own.

    cuBLAS has a workspace per stream: graphs captured on the same one would share it when they are replayed
    side by side, and the first to go would take it away from the others (pytorch issue 193402).
    """
    caller, stream, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(caller)
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS - 1):
                body()
            with refuse_waiting():
                body()
            gc.collect()  # graphs of runs that have ended must not go in the middle of the capture
            # "thread_local": other threads may go on using the device.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                body()
    finally:
        caller.wait_stream(stream)
    replay: Callable[[], None] = graph.replay
    return replay


@contextlib.contextmanager
def refuse_waiting() -> Iterator[None]:
    """Raise where the host would wait for the device.

    A graph cannot hold that, and a capture which CUDA breaks off leaves torch's allocator and random numbers
    unusable in some versions (pytorch pull requests 176752 and 180395); found before, it does no harm.
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
