"""An epoch's steps, one after the other: replayed from a CUDA graph where that can be, else run eagerly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.config import TrainConfig
from unixkd.data.sampling import EpochRows, num_steps, own_batch_size, split_among_processes
from unixkd.data.split import MemorySplit, Split
from unixkd.errors import first_line
from unixkd.method.batch import Batch, Draws
from unixkd.method.draws import epoch_draws
from unixkd.method.method import Method, StepCounts, pure_rows
from unixkd.method.mixing import num_kept
from unixkd.method.resizing import shrunk_share
from unixkd.names import phase
from unixkd.planning.timing import synchronize
from unixkd.training.answers import EpochAnswers, fetch_answers, read_answers
from unixkd.training.cuda_graph import CapturedStep, Recorder, Tables, tables_of_epoch
from unixkd.training.engine import Engine
from unixkd.training.optimizer import learning_rate
from unixkd.training.static_batch import StaticBatch


@dataclass(frozen=True)
class EpochInputs:
    """Inputs of an epoch's steps: image order, random draws, learning rates, stored teacher logits.

    Args:
        rows: images of this process, and how they are divided into steps
        rates: learning rate of each step
        known: more columns of a `Batch` by field: stored `answers` `[m, classes]`, `weight` in the losses `[m]`
        answers: those answers, where what the store lacks is asked batch by batch
    """

    number: int
    rows: EpochRows
    draws: Draws
    rates: list[float]
    known: dict[str, Tensor]
    answers: EpochAnswers | None = None


@dataclass
class Stepper:
    """Makes the inputs of each epoch's steps, and takes the steps.

    Args:
        train: batch size, schedule, seed, and whether steps may be captured
        fill_ahead: fetch the teacher's stored answers before each epoch
        as_decoded: of those, what the store lacks is asked before each step, of the images that are decoded for it
        record: how a step is captured (default: in a CUDA graph, on a GPU only)
    """

    engine: Engine
    split: Split
    train: TrainConfig
    device: torch.device
    fill_ahead: bool = False
    note: Callable[[str], None] = print
    record: Recorder | None = None
    as_decoded: bool = False
    captured: CapturedStep | None = field(default=None, init=False)
    refused: bool = field(default=False, init=False)
    capture_seconds: float = field(default=0.0, init=False)
    """What the first capture has taken, which is no training time."""
    method: Method = field(init=False)
    """That of the whole run; the distiller has that of the epoch."""

    def __post_init__(self) -> None:
        self.method = self.engine.distiller.method

    @property
    def batch_size(self) -> int:
        """Rows of a full batch that this process has: all of them but among several."""
        return own_batch_size(self.train.batch_size, self.engine.world)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the short last one included."""
        return num_steps(len(self.split), self.train.batch_size, self.engine.world)

    def epoch(self, number: int, done: int = 0) -> Iterator[StepCounts]:
        """Take an epoch's steps after the first `done`; what each one cost comes out when it has been launched."""
        inputs = self.inputs(number)
        batches = self.batches(inputs, done)
        if self.may_capture and done < inputs.rows.full:
            images = self.split if self.captured is None else self.captured.split
            if not isinstance(images, MemorySplit | StaticBatch):
                first = next(batches)  # whose shapes all others have
                images, batches = StaticBatch(first, len(self.split)), chain([first], batches)
            if (captured := self.capture(inputs, done, images)) is not None:
                for _ in range(done, inputs.rows.full):
                    if isinstance(captured.split, StaticBatch):
                        captured.split.fill(next(batches))
                    captured.replay()
                    yield captured.counts
                done = inputs.rows.full
                if isinstance(self.split, MemorySplit):
                    batches = self.batches(inputs, done)
        yield from self.eagerly(inputs, done, batches)
        if self.engine.history is not None:
            self.engine.world.reduce([self.engine.history.fresh], "min")  # inf: no score
            self.engine.history.end_epoch()

    def inputs(self, number: int) -> EpochInputs:
        """The inputs of an epoch's steps."""
        self.change_method(number)
        order = self.split.epoch_order(self.train.seed, number)
        order, weights = self.choose(number, order)
        rows = split_among_processes(order, self.train.batch_size, self.engine.world)
        draws = epoch_draws(
            len(rows.order),
            self.batch_size,
            seed=self.train.seed,
            first_step=number * self.steps_per_epoch,
            rank=self.engine.world.rank,
            per_sample_lambda=self.engine.distiller.method.per_sample_lambda,
            device=self.device,
        )
        rates = [self.rate(number, i, rows.steps) for i in range(rows.steps)]
        known = {}
        if (answers := self.fetch(number, rows.order)) is not None:
            known["answers"] = answers.logits
        if weights is not None:
            known["weight"] = weights[rows.order].to(self.device)
        return EpochInputs(number, rows, draws, rates, known, answers if self.as_decoded else None)

    def change_method(self, number: int) -> None:
        """Set the method of an epoch; where it is another one than before, a captured step is of no use."""
        distiller, size = self.engine.distiller, self.batch_size
        method = self.method.at(number / self.train.epochs)
        if method is not self.method:  # epochs that keep as many, as large, are alike
            keep, share = num_kept(method.keep, size, size) / size, method.size
            if (whole := distiller.ledger.image_size) is not None:
                share = shrunk_share(whole[0], share)
            method = replace(method, keep=keep, size=share)
        if method != distiller.method:
            distiller.method, self.captured = method, None

    def choose(
        self, number: int, order: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " m"], Float[Tensor, " n"] | None]:
        """Those of an epoch's images, in their order, that the method chooses, and the weight of every image.

        A last batch of one image, which BatchNorm may not be able to train on, is left out.
        """
        choice, history = self.engine.distiller.method.choice, self.engine.history
        if choice is None:
            return order, None
        assert history is not None
        history = history.cpu()
        chosen = choice.choose(history, number, self.train.epochs, self.train.seed)
        order = order[chosen.mask[order]]
        if len(order) > 1 and len(order) % self.train.batch_size == 1:
            order = order[:-1]
        self.engine.tally.choose(history.score, order)
        return order, chosen.weight

    def rate(self, number: int, step: int, steps: int) -> float:
        """The learning rate of a step of an epoch; one of fewer steps passes through the same schedule."""
        nominal = number * self.steps_per_epoch + step * self.steps_per_epoch // steps
        return learning_rate(self.train, nominal, self.steps_per_epoch)

    def batches(self, inputs: EpochInputs, done: int) -> Iterator[Batch]:
        """The batches of an epoch after the first `done`, on the device, with what is known of their images.

        What the teacher is asked about a batch is asked and charged when the batch is taken.
        """
        start = done * self.batch_size
        for batch in self.split.train_batches(inputs.number, inputs.rows.order[start:], self.batch_size):
            stop = start + len(batch)
            if inputs.answers is not None:
                filled = inputs.answers.ask_batch(start, batch.pixels)
                self.engine.distiller.ledger.charge_fill(filled)
            known = {name: column[start:stop] for name, column in inputs.known.items()}
            yield replace(batch, **known).to(self.device)
            start = stop

    def eagerly(self, inputs: EpochInputs, done: int, batches: Iterator[Batch]) -> Iterator[StepCounts]:
        """The steps of an epoch that are left, one batch at a time."""
        start = done * self.batch_size
        for step, batch in enumerate(batches, done):
            stop = start + len(batch)
            self.engine.set_learning_rate(inputs.rates[step])
            weight = 1.0 if step < inputs.rows.full else inputs.rows.last
            yield self.engine.step(batch, inputs.draws.rows(start, stop), weight).counts
            start = stop

    def fetch(self, number: int, order: Int[Tensor, " m"]) -> EpochAnswers | None:
        """The teacher's answers for the epoch, where they are fetched ahead; what was asked is charged."""
        teacher, ledger = self.engine.distiller.teacher, self.engine.distiller.ledger
        if not self.fill_ahead or teacher is None or teacher.store is None:
            return None
        if not pure_rows(self.engine.distiller.method, self.batch_size):
            return None  # an epoch of a ramp that mixes every image it keeps
        fetch, doing = fetch_answers, "asking the teacher for the epoch's answers, which are stored"
        if self.as_decoded:
            fetch, doing = read_answers, "reading the epoch's stored answers"
        with phase(doing, once=True):
            answers, charged = fetch(teacher, self.split, number, order)
        ledger.charge_fill(charged)
        return answers

    @property
    def may_capture(self) -> bool:
        """Whether steps may be captured here, and nothing has stood in the way so far."""
        on_gpu = self.device.type == "cuda" or self.record is not None
        if self.refused or not self.train.graph or not on_gpu:
            return False
        if (reason := self.obstacle()) is not None:
            self.refuse(reason)
        return reason is None

    def refuse(self, reason: str) -> None:
        """Run all further steps eagerly, and say why."""
        self.refused = True
        self.note(f"steps run one by one, not as a CUDA graph: {reason}")

    def capture(
        self, inputs: EpochInputs, done: int, images: MemorySplit | StaticBatch
    ) -> CapturedStep | None:
        """The captured step, loaded with the epoch's full batches, so many of them done; None: steps run eagerly."""
        index = inputs.rows.order.to(self.device)
        columns = {"index": index, "view": self.split.epoch_views(inputs.number, index)} | vars(inputs.draws)
        if isinstance(images, MemorySplit):  # else they come with each batch
            columns |= inputs.known
        tables = tables_of_epoch(columns, inputs.rates, self.batch_size)
        try:
            if self.captured is None:
                self.captured = self.record_step(images, tables)
            self.captured.load(tables, done)
        except RuntimeError as error:
            self.refuse(first_line(error))
            return None
        return self.captured

    def record_step(self, images: MemorySplit | StaticBatch, tables: Tables) -> CapturedStep:
        """Capture the step, with whatever it compiles; the first time is set-up, later ones are training."""
        started = time.perf_counter()
        try:
            with phase("capturing a step as a CUDA graph"):
                return CapturedStep(self.engine, images, tables, self.record)
        finally:
            synchronize(self.device)
            self.capture_seconds = self.capture_seconds or time.perf_counter() - started

    def obstacle(self) -> str | None:
        """Why a graph cannot do this run's step, or None."""
        teacher = self.engine.distiller.teacher
        stored = teacher is not None and teacher.store is not None
        obstacles = {
            "several processes train together, and capturing their messages has not been tried": (
                self.engine.world.size > 1
            ),
            "without the fused optimiser the learning rate lies on the host": not self.train.fused,
            "the teacher's stored answers are filled as they are needed": stored and not self.fill_ahead,
        }
        return next((reason for reason, holds in obstacles.items() if holds), None)
