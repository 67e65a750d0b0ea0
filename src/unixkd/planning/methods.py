"""What each method will cost here, before training: FLOPs in both conventions, a timed step, break-even."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unixkd.method.batch import Batch
from unixkd.method.ledger import CONVENTIONS, Ledger, break_even_ratio
from unixkd.method.method import Method
from unixkd.models.card import PixelModel
from unixkd.planning.expected import expected_cost, step_sizes
from unixkd.planning.timing import time_steps

TIMING_NOISE = 0.03
"""A step counts as slower than plain KD's only beyond this share."""


@dataclass(frozen=True)
class MethodPlan:
    """The predicted cost of one method, as shares of plain KD's.

    Args:
        method: the method
        relative: by convention name
        break_even: F_t/F_s below which the method costs more than plain KD, by convention name
        seconds: median seconds of a step, measured here; None where nothing was timed
        relative_seconds: median of the step's time over plain KD's in the same round, times the share of an
            epoch's images that are visited
    """

    method: Method
    relative: dict[str, float]
    break_even: dict[str, float]
    seconds: float | None = None
    relative_seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """A teacher → student pair: forward FLOPs per image and every method's cost."""

    teacher_flops: int
    student_flops: int
    methods: list[MethodPlan]

    @property
    def ratio(self) -> float:
        """F_t/F_s."""
        return self.teacher_flops / self.student_flops

    def warnings(self) -> list[str]:
        """A line for each method that would cost more than plain KD."""
        lines = []
        for plan in self.methods:
            dear = [name for name, cost in plan.relative.items() if cost > 1]
            slow = plan.relative_seconds is not None and plan.relative_seconds > 1 + TIMING_NOISE
            if dear or slow:
                where = [f"in FLOPs ({', '.join(dear)})"] * bool(dear) + ["in seconds on this machine"] * slow
                lines.append(f"{plan.method.name} would cost more than plain KD {' and '.join(where)}")
        return lines


def make_plan(
    teacher: PixelModel,
    student: PixelModel,
    methods: Sequence[Method],
    batch: Batch,
    *,
    epoch_images: int | None = None,
    epochs: int = 240,
    rounds: int = 5,
    student_dtype: torch.dtype | None = None,
    teacher_dtype: torch.dtype | None = None,
) -> Plan:
    """Predict the cost of every method and time its real step.

    Args:
        teacher: the teacher
        student: the student
        methods: what to plan for
        batch: images to time on; its size is the configured batch size
        epoch_images: images of an epoch, whose short last batch is then counted; None: full batches only
        epochs: of the run, over which a method may change how many images it visits
        rounds: timed rounds; in each, every method takes one step, so that drift hits all alike; 0: no timing
        student_dtype: precision of the student's timed forwards by autocast, see `Distiller`
        teacher_dtype: precision of the teacher's
    """
    shape = (batch.pixels.shape[1], batch.pixels.shape[2], batch.pixels.shape[3])
    ledger = Ledger.of(student, teacher, shape)
    dtypes = (student_dtype, teacher_dtype)
    timings = time_steps(teacher, student, methods, batch, rounds, dtypes) if rounds else {}
    sizes, plans = step_sizes(len(batch), epoch_images), []
    for method in methods:
        relative = expected_cost(method, ledger, sizes, epochs)
        seconds, share = timings.get(method.name, []), method.mean_share(epochs)
        against = (
            [share * own / kd for own, kd in zip(seconds, timings["kd"], strict=True)] if seconds else []
        )
        plans.append(
            MethodPlan(
                method,
                relative,
                {name: break_even_ratio(method, backward) for name, backward in CONVENTIONS.items()},
                statistics.median(seconds) if seconds else None,
                statistics.median(against) if against else None,
            )
        )
    return Plan(ledger.teacher_flops, ledger.student_flops, plans)
