"""An epoch's steps, one after the other: replayed from a CUDA graph where that can be, else run eagerly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.batch import Draws
from unixkd.capture import CapturedStep, Recorder, Tables
from unixkd.config import TrainConfig
from unixkd.data import MemorySplit, Split, epoch_order
from unixkd.draws import epoch_draws
from unixkd.engine import Engine
from unixkd.methods import StepCounts
from unixkd.planner import synchronize
from unixkd.schedules import learning_rate
from unixkd.teacher.filling import fetch_answers


@dataclass
class Stepper:
    """Makes what an epoch's steps are told, and takes them.

    Args:
        engine: takes a step
        split: training images
        train: batch size, schedule, seed, and whether steps may be captured
        device: where steps run
        fill_ahead: fetch the teacher's stored answers before each epoch
        note: shows the user a line
        record: how a step is captured (default: in a CUDA graph, on a GPU only)
    """

    engine: Engine
    split: Split
    train: TrainConfig
    device: torch.device
    fill_ahead: bool = False
    note: Callable[[str], None] = print
    record: Recorder | None = None
    captured: CapturedStep | None = field(default=None, init=False)
    refused: bool = field(default=False, init=False)
    capture_seconds: float = field(default=0.0, init=False)
    """What captures have taken, which is no training time."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the short last one included."""
        return -(-len(self.split) // self.train.batch_size)

    def epoch(self, number: int) -> Iterator[StepCounts]:
        """Take an epoch's steps; what each one cost comes out when it has been launched."""
        size, first = self.train.batch_size, number * self.steps_per_epoch
        order = epoch_order(len(self.split), self.train.seed, number)
        distiller = self.engine.distiller
        draws = epoch_draws(
            len(order),
            size,
            seed=self.train.seed,
            first_step=first,
            per_sample_lambda=distiller.method.per_sample_lambda,
            device=self.device,
        )
        rates = [
            learning_rate(self.train, first + i, self.steps_per_epoch) for i in range(len(order) // size)
        ]
        answers = self.fetch(number, order)
        done = 0
        if (captured := self.capture(number, order, draws, rates, answers)) is not None:
            done = len(captured.tables)
            for _ in range(done):
                captured.replay()
                yield captured.counts
        yield from self.eagerly(number, order, draws, answers, done)

    def eagerly(
        self,
        number: int,
        order: Int[Tensor, " m"],
        draws: Draws,
        answers: Float[Tensor, "m classes"] | None,
        done: int,
    ) -> Iterator[StepCounts]:
        """The steps of an epoch that are left, one batch at a time."""
        size, first = self.train.batch_size, number * self.steps_per_epoch
        start = done * size
        for batch in self.split.train_batches(number, order[start:], size):
            stop = start + len(batch)
            self.engine.set_learning_rate(learning_rate(self.train, first + done, self.steps_per_epoch))
            batch = replace(batch, answers=None if answers is None else answers[start:stop])
            yield self.engine.step(batch.to(self.device), draws.part(start, stop)).counts
            start, done = stop, done + 1

    def fetch(self, number: int, order: Int[Tensor, " m"]) -> Float[Tensor, "m classes"] | None:
        """The teacher's answers for the epoch, where they are fetched ahead; what was asked is charged."""
        teacher, ledger = self.engine.distiller.teacher, self.engine.distiller.ledger
        if not self.fill_ahead or teacher is None or teacher.store is None:
            return None
        answers, filled = fetch_answers(teacher.network, teacher.store, self.split, number, order)
        ledger.charge_fill(filled)
        return answers

    def capture(
        self,
        number: int,
        order: Int[Tensor, " m"],
        draws: Draws,
        rates: list[float],
        answers: Float[Tensor, "m classes"] | None,
    ) -> CapturedStep | None:
        """The captured step, loaded with the epoch's full batches; None where steps run eagerly."""
        on_gpu = self.device.type == "cuda" or self.record is not None
        if self.refused or not self.train.graph or not on_gpu or not rates:
            return None
        if (reason := self.obstacle()) is None:
            assert isinstance(self.split, MemorySplit)
            index = order.to(self.device)
            view = self.split.epoch_views(number, index)
            tables = Tables.of_epoch(index, view, draws, rates, answers, self.train.batch_size)
            try:
                if self.captured is None:
                    self.captured = self.record_step(self.split, tables)
                self.captured.load(tables)
                return self.captured
            except RuntimeError as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
        self.refused = True
        self.note(f"steps run one by one, not as a CUDA graph: {reason}")
        return None

    def record_step(self, split: MemorySplit, tables: Tables) -> CapturedStep:
        """Capture the step, with whatever it compiles; the time goes to `capture_seconds`."""
        started = time.perf_counter()
        try:
            return CapturedStep(self.engine, split, tables, self.record)
        finally:
            synchronize(self.device)
            self.capture_seconds += time.perf_counter() - started

    def obstacle(self) -> str | None:
        """Why a graph cannot do this run's step, or None."""
        teacher = self.engine.distiller.teacher
        if not isinstance(self.split, MemorySplit):
            return "the images are decoded from disk"
        if not self.train.fused:
            return "without the fused optimiser the learning rate lies on the host"
        if self.engine.average is not None:
            return "the moving average of the weights counts its steps on the host"
        if teacher is not None and teacher.store is not None and not self.fill_ahead:
            return "the teacher's stored answers are filled as they are needed"
        return None
