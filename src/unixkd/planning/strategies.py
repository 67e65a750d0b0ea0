"""What a run of each strategy will cost here, averaged over runs that share their stored answers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from unixkd.method.from_config import build_method
from unixkd.method.ledger import Ledger
from unixkd.method.method import sees_clean_images
from unixkd.method.network import has_statistics
from unixkd.method.resizing import Size, shrunk_share
from unixkd.planning.catalogue import Strategy, find_strategy
from unixkd.planning.expected import Workload, answerable, distinct_answers, expected_cost, phases, visited
from unixkd.planning.timing import TEACHER_FORWARD, Pair, Step, median_and_ratio, step_of, time_steps


class TeacherForwards(NamedTuple):
    """Forwards of the teacher on unmixed images, per training image, over a run."""

    needed: float  # images that are trained on unmixed
    asked: float  # those that the store lacks: the run's share of what all runs that share the store ask


@dataclass(frozen=True)
class StrategyEstimate:
    """What a run of one strategy will cost.

    Args:
        strategy: the strategy
        relative: its cost over that of plain KD for the planned epochs, by convention name
        forwards: of the teacher on unmixed images
        seconds: of a run here, the median over the timed rounds; None: nothing was timed
        relative_seconds: over those of plain KD's run, the median over the rounds
    """

    strategy: Strategy
    relative: dict[str, float]
    forwards: TeacherForwards
    seconds: float | None = None
    relative_seconds: float | None = None


def estimate_strategies(
    strategies: Sequence[Strategy], pair: Pair, workload: Workload, rounds: int
) -> list[StrategyEstimate]:
    """Predict the cost of each strategy that is possible, and its seconds from steps timed here in these rounds."""
    estimates, refreshes = [], has_statistics(pair.student)
    for strategy in strategies:
        if is_possible(strategy, workload):
            forwards = teacher_forwards(strategy, workload)
            cost = run_cost(strategy, forwards, pair.ledger, workload, refreshes)
            estimates.append(StrategyEstimate(strategy, cost, forwards))
    return with_seconds(estimates, pair, workload, rounds) if rounds else estimates


def with_all_views(
    strategies: Sequence[Strategy], budget: float, pair: Pair, workload: Workload
) -> list[Strategy]:
    """The strategies, those of few fixed views or mixes with as many of them as a budget pays for.

    None gets fewer than it has. The rest of the budget buys answers to more views, which is more augmentation.

    Args:
        budget: as a share of plain KD's cost, a backward counted as 2 forwards
    """
    refreshes = has_statistics(pair.student)

    def limited(strategy: Strategy, views: int) -> Strategy:
        return replace(strategy, views_share=views / workload.epochs)

    def cost(strategy: Strategy) -> float:
        forwards = teacher_forwards(strategy, workload)
        return run_cost(strategy, forwards, pair.ledger, workload, refreshes)["backward_2x"]

    def widest(strategy: Strategy) -> Strategy:
        least = strategy.views(workload.epochs, workload.views)
        if least is None:
            return strategy
        more = range(least + 1, strategy.epochs(workload.epochs) + 1)
        paid = bisect_right(more, budget, key=lambda views: cost(limited(strategy, views)))
        return limited(strategy, least + paid) if paid else strategy

    return [widest(strategy) for strategy in strategies]


def is_possible(strategy: Strategy, workload: Workload) -> bool:
    """False where it would have to store the answers to views without end: few of them are another training."""
    return not (strategy.stored and strategy.exact and workload.views is None)


def teacher_forwards(strategy: Strategy, workload: Workload) -> TeacherForwards:
    """Teacher forwards per image on unmixed images: needed, and left after the stored answers."""
    method, epochs = build_method(strategy.method), strategy.epochs(workload.epochs)
    progress = [epoch / epochs for epoch in range(epochs)]
    shown = [visited(method, point) for point in progress]
    trained = [
        share * answerable(method.at(p), workload.sizes) for share, p in zip(shown, progress, strict=True)
    ]
    needed = math.fsum(trained)
    if not strategy.stored:
        return TeacherForwards(needed, needed)
    limit = strategy.views(workload.epochs, workload.views)
    views, in_turn = (workload.views, workload.in_turn) if limit is None else (limit, True)
    assert views is not None
    chances = shown if workload.ahead else trained
    stored = distinct_answers(chances, views, workload.runs, in_turn=in_turn)
    return TeacherForwards(needed, stored / workload.runs)


def run_cost(
    strategy: Strategy, forwards: TeacherForwards, ledger: Ledger, workload: Workload, refreshes: bool
) -> dict[str, float]:
    """A run's cost over that of plain KD for the planned epochs, by convention name.

    Args:
        ledger: an empty one with both networks' forward FLOPs
        refreshes: whether the student has statistics that may have to be estimated anew
    """
    method, epochs = build_method(strategy.method), strategy.epochs(workload.epochs)
    last = method.at((epochs - 1) / epochs)
    if ledger.image_size is not None:
        last = replace(last, size=shrunk_share(ledger.image_size[0], last.size))
    clean = not strategy.mixed and sees_clean_images(last)
    refreshed = min(workload.bn_images, workload.images) if refreshes and not clean else 0.0
    answered, refreshed = (forwards.needed - forwards.asked) / epochs, refreshed / workload.images / epochs
    cost = expected_cost(method, ledger, workload.sizes, epochs, answered=answered, refreshed=refreshed)
    return {name: value * epochs / workload.epochs for name, value in cost.items()}


def with_seconds(
    estimates: Sequence[StrategyEstimate], pair: Pair, workload: Workload, rounds: int
) -> list[StrategyEstimate]:
    """The estimates with seconds: every step that a strategy takes and the teacher's forward are timed."""
    plain = find_strategy("kd")
    strategies = [plain, *(estimate.strategy for estimate in estimates)]
    steps = {strategy.name: strategy_steps(strategy, workload, pair.size) for strategy in strategies}
    to_time = [TEACHER_FORWARD, *(step for counted in steps.values() for step, _ in counted)]
    seconds = time_steps(pair, to_time, rounds)
    timed_rounds = len(seconds[TEACHER_FORWARD])

    def run_seconds(strategy: Strategy, asked: float) -> list[float]:
        """Of a run, round by round; what the store lacks is asked in batches."""
        counted = [*steps[strategy.name], (TEACHER_FORWARD, asked * workload.images / workload.batch_size)]
        return [math.fsum(seconds[step][i] * times for step, times in counted) for i in range(timed_rounds)]

    kd_seconds, timed = run_seconds(plain, 0.0), []
    for estimate in estimates:
        strategy = estimate.strategy
        rounds_of_run = run_seconds(strategy, estimate.forwards.asked if strategy.stored else 0.0)
        median, ratio = median_and_ratio(rounds_of_run, kd_seconds)
        timed.append(replace(estimate, seconds=median, relative_seconds=ratio))
    return timed


def strategy_steps(strategy: Strategy, workload: Workload, size: Size) -> list[tuple[Step, float]]:
    """The steps of a run, those that are alike as one, and how many full batches' worth there are of each."""
    epochs = strategy.epochs(workload.epochs)
    batches = epochs * workload.images / workload.batch_size
    return [
        (step_of(method, size, stored=strategy.stored), weight * batches)
        for method, weight in phases(build_method(strategy.method), epochs)
    ]
