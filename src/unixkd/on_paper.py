"""A run on many GPUs on paper: seconds, images, FLOPs, plain arithmetic on a step's parts and what it sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unixkd.communication import Cluster, Traffic
from unixkd.cost import CONVENTIONS, Ledger
from unixkd.errors import UserError
from unixkd.expected import Phase, expected_images, phases
from unixkd.fills import distinct_answers
from unixkd.methods import Method, StepCounts
from unixkd.parallel import PER_PROCESS, World
from unixkd.resizing import Size
from unixkd.shares import check_kept
from unixkd.step_parts import Part, StepTime, mean, parts_of


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
    check_kept(method.keep, paper.batch_size, World(size=paper.cluster.processes))
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
