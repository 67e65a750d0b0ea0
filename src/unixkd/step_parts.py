"""The parts of a process's step, and the step that they add up to; plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from unixkd.cost import Ledger
from unixkd.methods import StepCounts
from unixkd.resizing import Size

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

    >>> from unixkd.methods import unix
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
