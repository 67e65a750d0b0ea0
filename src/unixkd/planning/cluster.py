"""A run on many GPUs on paper: seconds, images and FLOPs, by arithmetic on the parts of a step and what it sends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from unixkd.data.sampling import PER_PROCESS, Place, check_kept
from unixkd.errors import UserError
from unixkd.method.ledger import CONVENTIONS, Ledger
from unixkd.method.method import Method, StepCounts
from unixkd.method.resizing import Size
from unixkd.planning.expected import Phase, distinct_answers, expected_images, phases
from unixkd.planning.links import Cluster, Traffic


@dataclass(frozen=True)
class Paper:
    """What is planned.

    Args:
        images: of the training set
        batch_size: N, of all processes together
        epochs: of the run
        cluster: who trains
        traffic: what a step sends
        loading: images per second that a process's loaders deliver, while it computes; None: as many as it takes
        runs: that share one store of answers, where there is one

    Raises:
        UserError: the batch cannot be shared out evenly
    """

    images: int
    batch_size: int
    epochs: int
    cluster: Cluster
    traffic: Traffic
    loading: float | None = None
    runs: int = 1

    def __post_init__(self) -> None:
        processes = self.cluster.processes
        if processes > 1 and (self.batch_size % processes or self.rows < PER_PROCESS):
            raise UserError(
                f"batches of {self.batch_size:,} images cannot be shared out among {processes:,} processes: give a "
                f"--batch_size that is a multiple of {processes:,} and at least {PER_PROCESS * processes:,}"
            )

    @property
    def rows(self) -> int:
        """Of a batch that a process has."""
        return self.batch_size // self.cluster.processes

    @property
    def steps(self) -> float:
        """Full batches' worth of images in all epochs."""
        return self.epochs * self.images / self.batch_size


@dataclass(frozen=True)
class PaperRun:
    """One method's run on paper.

    Args:
        method: the method
        images: that are scored, asked of the teacher and trained, as `expected_images` names them
        flops: of training, by convention name
        steps: how many there are, in full batches
        step: its seconds on average; None: nothing was timed
    """

    method: Method
    images: dict[str, float]
    flops: dict[str, float]
    steps: float
    step: StepTime | None

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Of the run, at least and at most."""
        return None if self.step is None else (self.steps * self.step.fastest, self.steps * self.step.slowest)


def needed_parts(methods: Sequence[Method], paper: Paper, size: Size) -> list[Part]:
    """Every part that the methods' steps consist of, each once."""
    each = (counts_of(p, paper, size) for method in methods for p in phases(method, paper.epochs))
    return list(dict.fromkeys(part for counts in each for part in parts_of(counts)))


def counts_of(phase: Phase, paper: Paper, size: Size | None) -> StepCounts:
    """What a process's step costs in some epochs."""
    counts = phase.method.counts(paper.rows, paper.rows, size)
    return counts if phase.scores else replace(counts, scored=0)


def asked_share(paper: Paper, views: int) -> float:
    """What a run asks the teacher, of what it needs, where answers to V views that take turns are stored.

    >>> asked_share(Paper(1000, 10, 90, Cluster(), Traffic(4), runs=3), views=9)  # 9 epochs of the three runs' 270
    0.03333333333333333
    """
    return distinct_answers([1.0] * paper.epochs, views, paper.runs, in_turn=True) / paper.epochs / paper.runs


def predict(
    method: Method, paper: Paper, ledger: Ledger, seconds: Mapping[Part, float] | None, asked: float = 1.0
) -> PaperRun:
    """One method's run.

    Args:
        method: which may change from epoch to epoch
        paper: what is planned
        ledger: an empty one with both networks' forward FLOPs
        seconds: of every part; None: nothing was timed
        asked: share of the teacher's forwards that stored answers leave

    Raises:
        UserError: a process would train on less than two rows
    """
    check_kept(method.keep, paper.batch_size, Place(size=paper.cluster.processes))
    count, one_step = paper.steps * paper.cluster.processes, []
    flops, images = dict.fromkeys(CONVENTIONS, 0.0), expected_images(method, [paper.rows], paper.epochs)
    for phase in phases(method, paper.epochs):
        counts, own = counts_of(phase, paper, ledger.image_size), ledger.emptied()
        own.charge(counts)
        saved = (1 - asked) * counts.teacher_forwarded * ledger.teacher_flops
        for name, backward in CONVENTIONS.items():
            flops[name] += phase.weight * count * (own.training_flops(backward) - saved)
        if seconds is not None:
            one_step.append((step_time(phase, counts, paper, seconds, asked), phase.weight))
    scale = paper.images / paper.rows
    images = {name: number * scale for name, number in images.items()}
    images["teacher_forwarded"] *= asked
    share = method.mean_share(paper.epochs)
    return PaperRun(method, images, flops, share * paper.steps, mean(one_step))


def step_time(
    phase: Phase, counts: StepCounts, paper: Paper, seconds: Mapping[Part, float], asked: float
) -> StepTime:
    """A step of some epochs."""
    parts = {part.kind: seconds[part] for part in parts_of(counts)}
    cluster, traffic, exchange = paper.cluster, paper.traffic, 0.0
    if phase.method.ranks:
        exchange = traffic.exchange_seconds(cluster, paper.batch_size, counts.trained * cluster.processes)
    return StepTime(
        parts.get("scoring", 0.0),
        asked * parts.get("teacher", 0.0),
        parts["training"],
        parts["optimizer"],
        traffic.gradient_seconds(cluster),
        traffic.buffer_seconds(cluster),
        exchange,
        0.0 if paper.loading is None else counts.seen / paper.loading,
    )


Kind = Literal["scoring", "teacher", "training", "optimizer"]


BACKWARD = 2 / 3
"""Share of a forward and backward that is the backward, during which gradients may be sent."""


@dataclass(frozen=True)
class Part:
    """What is timed of a process's step, without the others.

    Args:
        kind: the student's forward without gradient | the teacher's forward | the student's forward, loss and
            backward | the optimiser's step
        rows: images; 0 for the optimiser
        size: height and width of images that were shrunk; None: as large as they come
    """

    kind: Kind
    rows: int = 0
    size: Size | None = None


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, on average over a run.

    Args:
        scoring: the student's forwards for scores
        teacher: its forwards
        training: the student's forwards and backwards
        optimizer: the update of the weights
        gradients: summing them up over all processes, with nothing else going on
        buffers: handing out the first process's
        exchange: of scores and rows, under global selection
        loading: the loaders', beside all this
    """

    scoring: float = 0.0
    teacher: float = 0.0
    training: float = 0.0
    optimizer: float = 0.0
    gradients: float = 0.0
    buffers: float = 0.0
    exchange: float = 0.0
    loading: float = 0.0

    @property
    def compute(self) -> float:
        """What one process spends without the others."""
        return self.scoring + self.teacher + self.training + self.optimizer

    @property
    def sending(self) -> float:
        """What all send each other, with nothing else going on."""
        return self.gradients + self.buffers + self.exchange

    @property
    def slowest(self) -> float:
        """The step if gradients are sent after the backward: an upper bound."""
        return max(self.loading, self.compute + self.sending)

    @property
    def fastest(self) -> float:
        """The step if gradients are sent all through the backward: a lower bound."""
        hidden = min(self.gradients, BACKWARD * self.training)
        return max(self.loading, self.compute + self.sending - hidden)

    def times(self, factor: float) -> StepTime:
        """Every part so many times."""
        return StepTime(*(factor * getattr(self, field.name) for field in fields(self)))


def parts_of(counts: StepCounts) -> Iterator[Part]:
    """What a process's step consists of.

    >>> from unixkd.method.unix import unix
    >>> [(part.kind, part.rows) for part in parts_of(unix().counts(32, batch_size=32))]
    [('scoring', 32), ('teacher', 24), ('training', 24), ('optimizer', 0)]
    """
    if counts.scored:
        yield Part("scoring", counts.scored, counts.scored_size)
    if counts.teacher_forwarded:
        yield Part("teacher", counts.teacher_forwarded)
    yield Part("training", counts.trained, counts.trained_size)
    yield Part("optimizer")


def from_flops(parts: Sequence[Part], ledger: Ledger, rate: float) -> dict[Part, float]:
    """Seconds of each part on a processor that reaches so many FLOPs per second, a backward counted as 2 forwards.

    The optimiser, which computes next to nothing, takes none.
    """
    forwards = {"scoring": 1, "training": 3, "optimizer": 0}

    def flops(part: Part) -> int:
        if part.kind == "teacher":
            return part.rows * ledger.teacher_flops
        return part.rows * forwards[part.kind] * ledger.flops_at(part.size)

    return {part: flops(part) / rate for part in parts}


def mean(steps: Sequence[tuple[StepTime, float]]) -> StepTime | None:
    """Weighted mean, part by part; None of nothing."""
    if not steps:
        return None
    whole = math.fsum(weight for _, weight in steps)
    scaled = [step.times(weight / whole) for step, weight in steps]
    return StepTime(*(math.fsum(getattr(s, field.name) for s in scaled) for field in fields(StepTime)))
