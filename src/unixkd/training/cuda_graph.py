"""The same step, captured once in a CUDA graph and replayed: one launch a step instead of hundreds.

What changes from step to step (images, views, draws, learning rate, stored answers) lies in tables on the
device, and a counter there says which row it is, so that a replay needs nothing from the host.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.data.split import MemorySplit
from unixkd.method.batch import Draws
from unixkd.method.method import StepCounts
from unixkd.training.engine import Engine

WARM_UPS = 3
"""Steps before the capture, in which libraries choose algorithms and the optimiser makes its state."""

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a body that may be run several times, gives back what repeats its work."""


@dataclass(frozen=True)
class GraphInputs:
    """Inputs of an epoch's steps, a row for each, on the device.

    Args:
        index: images of each step `[steps, N]`
        view: their views `[steps, N]`
        partner: as in `Draws` `[steps, N]`
        lam: as in `Draws` `[steps, N]`
        noise: as in `Draws` `[steps, N]`
        lr: learning rate `[steps]`
        answers: the teacher's stored logits `[steps, N, classes]`, or None
        weight: of each image in the losses `[steps, N]`, or None
    """

    index: Int[Tensor, "steps n"]
    view: Int[Tensor, "steps n"]
    partner: Int[Tensor, "steps n"]
    lam: Float[Tensor, "steps n"]
    noise: Float[Tensor, "steps n"]
    lr: Float[Tensor, " steps"]
    answers: Float[Tensor, "steps n classes"] | None = None
    weight: Float[Tensor, "steps n"] | None = None

    @classmethod
    def of_epoch(
        cls,
        index: Int[Tensor, " m"],
        view: Int[Tensor, " m"],
        draws: Draws,
        lr: list[float],
        batch_size: int,
        answers: Float[Tensor, "m classes"] | None = None,
        weight: Float[Tensor, " m"] | None = None,
    ) -> GraphInputs:
        """The full batches of an epoch whose images, views, draws and what is known lie one after the other."""
        steps = len(index) // batch_size

        def table(column: Tensor) -> Tensor:
            return column[: steps * batch_size].reshape(steps, batch_size, *column.shape[1:])

        return cls(
            index=table(index),
            view=table(view),
            partner=table(draws.partner),
            lam=table(draws.lam),
            noise=table(draws.noise),
            lr=torch.tensor(lr[:steps], dtype=torch.float32, device=index.device),
            answers=None if answers is None else table(answers),
            weight=None if weight is None else table(weight),
        )

    def __len__(self) -> int:
        return len(self.lr)

    def copy_(self, other: GraphInputs) -> None:
        """Take over another epoch's values, in place; it may have fewer steps."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine is not None:
                mine[: len(other)].copy_(theirs)

    def extended(self, steps: int) -> GraphInputs:
        """The same with room for so many steps."""
        grown = {}
        for field in fields(self):
            table = getattr(self, field.name)
            if table is not None:
                table = torch.cat([table, table.new_zeros(steps - len(self), *table.shape[1:])])
            grown[field.name] = table
        return GraphInputs(**grown)


class CapturedStep:
    """A step of an engine over images in memory, recorded once.

    Args:
        engine: what is stepped; its optimiser's learning rate is a tensor
        split: the training images, on the device
        tables: of some epoch; later ones have as many steps or fewer
        record: how the step is recorded; another one than a CUDA graph lets a CPU test the rest

    Raises:
        RuntimeError: the step does what a graph cannot; the engine is as it was before
    """

    def __init__(
        self, engine: Engine, split: MemorySplit, tables: GraphInputs, record: Recorder | None = None
    ) -> None:
        self.engine, self.split, self.tables = engine, split, tables
        self.counter = torch.zeros(1, dtype=torch.int64, device=tables.lr.device)
        self.counts = StepCounts(0, 0, 0, 0)
        before = {name: tensor.detach().clone() for name, tensor in engine.state().items()}
        random = torch.cuda.get_rng_state() if record is None else None
        try:
            self.replay = (record or record_graph)(self.body)
        finally:
            self.restore(before)
            if random is not None:
                torch.cuda.set_rng_state(random)

    def load(self, tables: GraphInputs, done: int = 0) -> None:
        """Begin an epoch, or go on with it after so many steps."""
        self.tables.copy_(tables)
        self.counter.fill_(done)

    def body(self) -> None:
        """Run one step on the row of the input tables that the device-side counter selects."""
        tables = self.tables
        batch = self.split.batch(self.pick(tables.index), self.pick(tables.view))
        if tables.answers is not None:
            batch = replace(batch, answers=self.pick(tables.answers))
        if tables.weight is not None:
            batch = replace(batch, weight=self.pick(tables.weight))
        self.engine.set_learning_rate(self.pick(tables.lr))
        draws = Draws(self.pick(tables.partner), self.pick(tables.lam), self.pick(tables.noise))
        self.counts = self.engine.step(batch, draws).counts
        self.counter += 1
        self.counter %= len(tables)  # an epoch may have fewer steps than the warm-up

    def pick(self, table: Tensor) -> Tensor:
        """The step's row of a table; only the device knows which."""
        return table.index_select(0, self.counter)[0]

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
