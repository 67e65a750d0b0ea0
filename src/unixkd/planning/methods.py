"""What each method will cost here, before training: FLOPs in both conventions, a timed step, break-even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unixkd.method.ledger import CONVENTIONS, break_even_ratio
from unixkd.method.method import Method
from unixkd.method.unix import kd
from unixkd.planning.expected import Workload, expected_cost
from unixkd.planning.timing import Pair, median_and_ratio, step_of, time_steps

TIMING_NOISE = 0.03
"""A step counts as slower than plain KD's only beyond this share."""


@dataclass(frozen=True)
class MethodPlan:
    """The predicted cost of one method.

    Args:
        method: the method
        relative: to plain KD's, by convention name
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

    def warnings(self) -> list[str]:
        """A line for each method that would cost more than plain KD."""
        lines = []
        for plan in self.methods:
            where = []
            if dear := [name for name, cost in plan.relative.items() if cost > 1]:
                where.append(f"in FLOPs ({', '.join(dear)})")
            if plan.relative_seconds is not None and plan.relative_seconds > 1 + TIMING_NOISE:
                where.append("in seconds on this machine")
            if where:
                lines.append(f"{plan.method.name} would cost more than plain KD {' and '.join(where)}")
        return lines


def make_plan(pair: Pair, methods: Sequence[Method], workload: Workload, rounds: int = 5) -> Plan:
    """Predict the cost of every method and time its real step, halfway through the run if it changes.

    Args:
        pair: teacher, student and a batch to time on
        methods: what to plan for
        workload: what they are planned for
        rounds: timed rounds; in each, every method takes one step, so that drift hits all alike; 0: no timing
    """
    steps = [step_of(method.at(0.5), pair.size) for method in (kd(), *methods)]
    seconds = time_steps(pair, steps, rounds) if rounds else {}
    plans = []
    for method, step in zip(methods, steps[1:], strict=True):
        cost = expected_cost(method, pair.ledger, workload.sizes, workload.epochs)
        break_even = {name: break_even_ratio(method, backward) for name, backward in CONVENTIONS.items()}
        plan = MethodPlan(method, cost, break_even)
        if rounds:
            median, ratio = median_and_ratio(seconds[step], seconds[steps[0]])
            share = method.mean_share(workload.epochs)
            plan = replace(plan, seconds=median, relative_seconds=share * ratio)
        plans.append(plan)
    student, teacher = pair.ledger.known_flops()
    return Plan(teacher, student, plans)
