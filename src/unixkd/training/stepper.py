"""An epoch's steps, one after the other: replayed from a CUDA graph where that can be, else run eagerly.

Scores may come with the batch: those of an earlier epoch, or of several batches scored at once before their steps.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.config import TrainConfig
from unixkd.data.sampling import num_steps, own_batch_size, share_out
from unixkd.data.split import MemorySplit, Split
from unixkd.method.batch import Batch, Draws, join
from unixkd.method.draws import epoch_draws
from unixkd.method.method import Method, StepCounts, pure_rows
from unixkd.method.mixing import num_kept
from unixkd.method.resizing import shrunk_share
from unixkd.planning.timing import synchronize
from unixkd.training.answers import fetch_answers
from unixkd.training.cuda_graph import CapturedStep, GraphInputs, Recorder
from unixkd.training.engine import Engine
from unixkd.training.optimizer import learning_rate


@dataclass(frozen=True)
class EpochPlan:
    """What an epoch's steps are told, one after the other.

    Args:
        number: of the epoch
        order: images to visit `[m]`
        draws: of each step `[m]`
        rates: learning rate of each step
        answers: the teacher's stored logits `[m, classes]`, or None
        weight: of each image in the losses `[m]`, or None
        full_steps: how many batches are full
        last: what the loss of a short last batch is multiplied by (`Shares`)
        scores: of each image, where they are not of the steps' own making `[m]`; what is scored ahead is filled in
    """

    number: int
    order: Int[Tensor, " m"]
    draws: Draws
    rates: list[float]
    answers: Float[Tensor, "m classes"] | None
    weight: Float[Tensor, " m"] | None
    full_steps: int
    last: float = 1.0
    scores: Float[Tensor, " m"] | None = None


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
    spare: CapturedStep | None = field(default=None, init=False)
    """The other of two: of a method that scores in some epochs only, each kind has its own."""
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
        """Take an epoch's steps; what each one cost comes out when it has been launched.

        Args:
            number: of the epoch
            done: how many of its steps an interrupted run has taken already, as `can_stop` allows
        """
        plan = self.plan(number)
        if (captured := self.capture(plan, done)) is not None:
            for step in range(done, plan.full_steps):
                fill_scores(self.engine, self.split, captured, number, step, plan.full_steps)
                captured.replay()
                done += 1
                yield captured.counts
        yield from self.eagerly(plan, done)
        if self.engine.history is not None:
            self.engine.world.reduce([self.engine.history.fresh], "min")  # inf: no score
            self.engine.history.end_epoch()

    def can_stop(self, number: int, done: int) -> bool:
        """Whether an epoch can be left after so many steps: not among batches that were scored at once."""
        size = batches_at_once(self.engine.distiller.method, number)
        return not size or done % size == 0 or done == self.steps_per_epoch

    def plan(self, number: int) -> EpochPlan:
        """What an epoch's steps are told, step after step."""
        self.change_method(number)
        order = self.split.epoch_order(self.train.seed, number)
        order, weights = self.choose(number, order)
        shares, size = share_out(order, self.train.batch_size, self.engine.world), self.batch_size
        order = shares.order
        draws = epoch_draws(
            len(order),
            size,
            seed=self.train.seed,
            first_step=number * self.steps_per_epoch,
            rank=self.engine.world.rank,
            per_sample_lambda=self.engine.distiller.method.per_sample_lambda,
            device=self.device,
        )
        rates = [self.rate(number, i, shares.steps) for i in range(shares.steps)]
        answers, scores = self.fetch(number, order), known_scores(self.engine, number, order.to(self.device))
        weight = None if weights is None else weights[order].to(self.device)
        return EpochPlan(number, order, draws, rates, answers, weight, shares.full, shares.last, scores)

    def change_method(self, number: int) -> None:
        """Set the method of an epoch; where it is another one than before, a captured step is of no use."""
        distiller, size = (
            self.engine.distiller,
            self.train.batch_size if self.engine.across else self.batch_size,
        )
        method = self.method.at(number / self.train.epochs)
        if method is not self.method:  # epochs that keep as many, as large, are alike
            keep, share = num_kept(method.keep, size, size) / size, method.size
            if (whole := distiller.ledger.image_size) is not None:
                share = shrunk_share(whole[0], share)
            method = replace(method, keep=keep, size=share)
        if method != distiller.method:
            distiller.method, self.captured, self.spare = method, None, None
        given = method.scorer is not None and not method.scoring.within_step(number)
        if self.captured is not None and given != (self.captured.tables.scores is not None):
            self.captured, self.spare = self.spare, self.captured

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

    def eagerly(self, plan: EpochPlan, done: int) -> Iterator[StepCounts]:
        """The steps of an epoch that are left, one batch at a time."""
        start = done * self.batch_size
        batches = self.split.train_batches(plan.number, plan.order[start:], self.batch_size)
        on_device = (batch.to(self.device) for batch in batches)
        groups = scored_in_groups(self.engine, plan.number, on_device)
        for step, batch in enumerate(groups, done):
            stop = start + len(batch)
            self.engine.set_learning_rate(plan.rates[step])
            told = {name: getattr(plan, name) for name in ("answers", "weight", "scores")}
            known = {name: t[start:stop] for name, t in told.items() if t is not None}
            if batch.scores is not None:
                known["scores"] = batch.scores
            batch = replace(batch, **known).to(self.device)
            weight = 1.0 if step < plan.full_steps else plan.last
            yield self.engine.step(batch, plan.draws.part(start, stop), weight).counts
            start = stop

    def fetch(self, number: int, order: Int[Tensor, " m"]) -> Float[Tensor, "m classes"] | None:
        """The teacher's answers for the epoch, where they are fetched ahead; what was asked is charged."""
        teacher, ledger = self.engine.distiller.teacher, self.engine.distiller.ledger
        if not self.fill_ahead or teacher is None or teacher.store is None:
            return None
        if not pure_rows(self.engine.distiller.method, self.batch_size):
            return None  # an epoch of a ramp that mixes every image it keeps
        answers, filled = fetch_answers(teacher, self.split, number, order)
        ledger.charge_fill(filled)
        return answers

    def capture(self, plan: EpochPlan, done: int) -> CapturedStep | None:
        """The captured step, loaded with the epoch's full batches, so many of them done; None: steps run eagerly."""
        on_gpu = self.device.type == "cuda" or self.record is not None
        if self.refused or not self.train.graph or not on_gpu or not plan.full_steps:
            return None
        if (reason := self.obstacle()) is None:
            assert isinstance(self.split, MemorySplit)
            index, size = plan.order.to(self.device), self.train.batch_size
            view = self.split.epoch_views(plan.number, index)
            known = (plan.answers, plan.weight, plan.scores)
            tables = GraphInputs.of_epoch(index, view, plan.draws, plan.rates, size, *known)
            try:
                if self.captured is None:  # no epoch has more steps than one of all images
                    self.captured = self.record_step(self.split, tables.extended(len(self.split) // size))
                self.captured.load(tables, done)
                return self.captured
            except RuntimeError as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
        self.refused = True
        self.note(f"steps run one by one, not as a CUDA graph: {reason}")
        return None

    def record_step(self, split: MemorySplit, tables: GraphInputs) -> CapturedStep:
        """Capture the step, with whatever it compiles; the first time is set-up, later ones are training."""
        started = time.perf_counter()
        try:
            return CapturedStep(self.engine, split, tables, self.record)
        finally:
            synchronize(self.device)
            self.capture_seconds = self.capture_seconds or time.perf_counter() - started

    def obstacle(self) -> str | None:
        """Why a graph cannot do this run's step, or None."""
        teacher = self.engine.distiller.teacher
        if self.engine.world.size > 1:
            return "several processes train together"
        if self.train.micro_batch is not None:
            return "a step is taken in parts (micro_batch)"
        if not isinstance(self.split, MemorySplit):
            return "the images are decoded from disk"
        if not self.train.fused:
            return "without the fused optimiser the learning rate lies on the host"
        if self.engine.average is not None:
            return "the moving average of the weights counts its steps on the host"
        if teacher is not None and teacher.store is not None and not self.fill_ahead:
            return "the teacher's stored answers are filled as they are needed"
        if teacher is not None and teacher.store is None and teacher.lender is not None:
            return "the teacher's answers are lent as they are needed"
        return None


def known_scores(engine: Engine, number: int, order: Int[Tensor, " m"]) -> Float[Tensor, " m"] | None:
    """The scores that an epoch's steps do not make themselves: each image's last, or room for those to come.

    Args:
        engine: with the method of the epoch
        number: of the epoch
        order: images to visit, on the device `[m]`

    Returns:
        None where steps score for themselves, or nothing is scored.
    """
    method = engine.distiller.method
    if method.scorer is None or method.scoring.within_step(number):
        return None
    if method.scoring.now(number):
        return torch.zeros(len(order), device=order.device)
    assert engine.history is not None
    return engine.history.score[order]


def batches_at_once(method: Method, number: int) -> int:
    """How many batches of an epoch are scored at once, ahead of their steps; 0: none are."""
    ahead = method.scorer is not None and method.scoring.batches > 1 and method.scoring.now(number)
    return method.scoring.batches if ahead else 0


def scored_in_groups(engine: Engine, number: int, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, where the method wants it with their scores: a group is scored when its first one is taken.

    Args:
        engine: scores, and charges for it
        number: of the epoch
        batches: of the epoch, on the device
    """
    size = batches_at_once(engine.distiller.method, number)
    if not size:
        yield from batches
        return
    for _, alike in itertools.groupby(
        batches, key=len
    ):  # a short last batch alone, as behind a captured step
        while group := list(itertools.islice(alike, size)):
            scores = engine.score_ahead(join(group)).split([len(batch) for batch in group])
            yield from (replace(batch, scores=own) for batch, own in zip(group, scores, strict=True))


def fill_scores(
    engine: Engine, split: Split, captured: CapturedStep, number: int, step: int, full_steps: int
) -> None:
    """Before the first of some captured steps that are scored at once: write their scores into the table.

    Args:
        engine: scores, and charges for it
        split: the training images
        captured: the step, loaded with the epoch
        number: of the epoch
        step: that comes next
        full_steps: of the epoch
    """
    size = batches_at_once(engine.distiller.method, number)
    if not size or step % size:
        return
    tables = captured.tables
    assert isinstance(split, MemorySplit)
    assert tables.scores is not None
    rows = slice(step, min(step + size, full_steps))
    index, view = tables.index[rows].flatten(), tables.view[rows].flatten()
    tables.scores[rows] = engine.score_ahead(split.batch(index, view)).view_as(tables.scores[rows])
