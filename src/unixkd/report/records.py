"""What a report knows about a run, as it was read from the run's folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Histogram:
    """An epoch's images by their score, in bins of equal width.

    Args:
        score: which score it is
        low: where the first bin begins
        high: where the last one ends
        kept: kept images in each bin
        dropped: dropped images in each bin
        kept_hard: of those kept, the ones the student got wrong; None without labels
        dropped_hard: of those dropped, the ones the student got wrong
        remembered: the epoch's images were chosen before it by scores of their last visits
    """

    score: str
    low: float
    high: float
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    kept_hard: tuple[int, ...] | None = None
    dropped_hard: tuple[int, ...] | None = None
    remembered: bool = False


@dataclass(frozen=True)
class Kept:
    """What the selection kept in one epoch; every field is a mean or a share, None where unknown.

    Args:
        kept: share of the training images that was kept, 0..1
        distinct: share of the training images used at least once in the epoch, 0..1
        score_kept: mean score of the kept images
        score_dropped: mean score of the dropped images
        hard_kept: share of the kept images that the student got wrong, 0..1
        hard_dropped: share of the dropped images that the student got wrong, 0..1
        histogram: the epoch's images by their score
    """

    kept: float | None = None
    distinct: float | None = None
    score_kept: float | None = None
    score_dropped: float | None = None
    hard_kept: float | None = None
    hard_dropped: float | None = None
    histogram: Histogram | None = None


@dataclass(frozen=True)
class Epoch:
    """One line of `metrics.jsonl`; shares are 0..1 and None where nothing was evaluated.

    Args:
        epoch: number of the epoch, from 1
        accuracy: top-1 accuracy after the epoch
        agreement: share of evaluated images where student and teacher agree
        cost_1x: training FLOPs so far over those of the reference KD run, backward = 1 forward
        cost_2x: the same with backward = 2 forwards
        kept: what the selection kept in this epoch
    """

    epoch: int
    accuracy: float | None = None
    agreement: float | None = None
    cost_1x: float | None = None
    cost_2x: float | None = None
    kept: Kept | None = None


@dataclass(frozen=True)
class Picture:
    """A training image that was kept very often or very rarely, or mixed strongly.

    Args:
        index: its position in the training set
        label: its class, None where there is none
        times: how often it was kept
        png: what it looks like, base64
        mixed: how many images' worth its rows gave to their partners in the whole run; None where unknown
    """

    index: int
    label: str | None
    times: int
    png: str
    mixed: float | None = None


@dataclass(frozen=True)
class Selection:
    """How often the images of a run were kept: `images[i]` of them `times_kept[i]` times."""

    epochs: int
    times_kept: tuple[int, ...]
    images: tuple[int, ...]
    most_kept: tuple[Picture, ...] = ()
    least_kept: tuple[Picture, ...] = ()
    most_mixed: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Planned:
    """What was worked out when the run started, before anything was measured.

    Args:
        exact: whether it must come out so; else it is what was expected
        cost_1x: training FLOPs over those of plain KD, backward = 1 forward
        cost_2x: the same with backward = 2 forwards
        images: scored, teacher_forwarded, trained
    """

    exact: bool
    cost_1x: float
    cost_2x: float
    images: dict[str, int]


@dataclass(frozen=True)
class Command:
    """A command that makes runs of a report again.

    Args:
        what: which runs
        text: to be pasted into a shell
    """

    what: str
    text: str


@dataclass(frozen=True)
class Run:
    """One finished run; accuracies, agreement and costs are fractions, None where unknown.

    Args:
        folder: where it was read from
        method: name of the method, or a label like `kd@unix`
        images: counted images: scored, teacher_forwarded, teacher_cached, trained, evaluated
        reference: epochs and images per epoch of the plain KD run that costs are relative to
        cost_1x: training FLOPs over those of plain KD, backward = 1 forward
        cost_2x: the same with backward = 2 forwards
        flops_1x: training FLOPs, backward = 1 forward
        flops_2x: the same with backward = 2 forwards
        planned: what it was expected to cost
        history: one entry per epoch, in order
        config: the resolved configuration, `config_text` as it was written
        is_teacher: the run that trained the teacher, listed apart
    """

    folder: Path
    method: str
    seed: int
    epochs: int
    accuracy: float | None
    best_accuracy: float | None
    teacher_accuracy: float | None
    images: dict[str, int]
    parameters: int | None = None
    agreement: float | None = None
    calibration_error: float | None = None
    reference: tuple[int | None, int | None] = (None, None)
    cost_1x: float | None = None
    cost_2x: float | None = None
    flops_1x: float | None = None
    flops_2x: float | None = None
    planned: Planned | None = None
    train_seconds: float | None = None
    evaluate_seconds: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    history: tuple[Epoch, ...] = ()
    selection: Selection | None = None
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    is_teacher: bool = False

    @property
    def kd_flops_1x(self) -> float | None:
        """Training FLOPs of the plain KD that costs are relative to, backward = 1 forward."""
        return self.flops_1x / self.cost_1x if self.flops_1x and self.cost_1x else None

    @property
    def kd_flops_2x(self) -> float | None:
        """The same with backward = 2 forwards."""
        return self.flops_2x / self.cost_2x if self.flops_2x and self.cost_2x else None
