"""`distill`: a teacher into a student, by a method or by the strategy that `plan` names first for a target."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from unixkd.cli.plan import data_shape, planned_networks, workload_of
from unixkd.cli.plan_ranking import ANSWERS, first_of, ranked, requirements, run_of
from unixkd.cli.plan_timing import planned_pair
from unixkd.cli.schedule import suited
from unixkd.cli.screen import say
from unixkd.cli.sizes import at_teachers_size
from unixkd.cli.train import check_named, earlier_run, run_and_show, slug
from unixkd.config import RunConfig
from unixkd.errors import UsageError, UserError
from unixkd.names import percent
from unixkd.planning.catalogue import Budget, MatchKD, Strategy, parse_target, strategies
from unixkd.planning.expected import Workload
from unixkd.planning.strategies import StrategyEstimate


def distill(options: Namespace) -> None:
    """`unixkd distill`: a teacher into a student."""
    check_named(teacher=options.teacher, student=options.student)
    keys = ("student", "teacher", "method", "loss", "data", "answers", "train", "label", "reference_epochs")
    default = f"{options.method.name}-{slug(options.student.name)}"
    data, training = suited(options, options.student, earlier_run(options, default))
    config = replace(RunConfig(**{key: options[key] for key in keys}), data=data, train=training)
    if (target := parse_target(options.budget, options.match_kd)) is not None:
        config = towards(target, config, options)
    run_and_show(config, options, f"{config.method.name}-{slug(config.student.name)}")


def towards(target: Budget | MatchKD, config: RunConfig, options: Namespace) -> RunConfig:
    """The run that reaches a target, where plain KD would have the configured epochs; says why it is that one.

    Costs are counted in FLOPs, so the choice is the same on every machine.

    Raises:
        UserError: no strategy does, or an option names what the target decides
    """
    for name, given in (("data.mixes", config.data.mixes), ("reference_epochs", config.reference_epochs)):
        if given is not None:
            raise UsageError(f"a target decides about --{name}: leave it or the target out")
    config = replace(config, data=at_teachers_size(config.data, options.teacher))
    shape = data_shape(config.data, options.teacher)
    batch_size = config.train.batch_size
    pair = planned_pair(*planned_networks(options, shape), batch_size, shape.size, timed=False)
    workload = workload_of(config.data, shape, batch_size, config.train.epochs)
    compares_features = config.loss.at or config.loss.sp  # which are not stored
    known = [
        each
        for each in strategies(shape.images, config.train.epochs)
        if not (each.stored and compares_features)
    ]
    estimates, groups = ranked(known, target, workload, pair, rounds=0)
    best = first_of(groups)
    if best is None:
        cheapest = groups[0].strategies[0].name
        cost = percent(estimates[cheapest].relative["backward_2x"])
        raise UserError(
            f"no strategy is within the budget; the cheapest is {cheapest}, at {cost} of plain KD's cost"
        )
    say(*reasons(best, estimates[best.name], workload), *requirements(best, workload, shape.classes))
    if config.answers.path is not None and not best.stored:
        say(f"it stores no answers: --answers.path {config.answers.path} is not used")
    chosen = run_of(best, config, workload, config.answers.path or ANSWERS)
    if not best.stored or config.answers.path is not None:
        return chosen
    return replace(chosen, answers=replace(chosen.answers, path=str(answers_beside(options.out, chosen))))


def reasons(strategy: Strategy, estimate: StrategyEstimate, workload: Workload) -> list[str]:
    """What was chosen, what it will cost, and the evidence that it is as accurate as plain KD."""
    cost = percent(estimate.relative["backward_2x"])
    lines = [f"{strategy.name}: {cost} of plain KD's cost is expected, a backward counted as 2 forwards"]
    if strategy.exact:
        return [*lines, "its training is plain KD's"]
    if (found := strategy.evidence) is not None:
        gain = f"{found.difference:+.2f} ± {found.sd:.2f} points, {found.n} seeds"
        return [*lines, f"measured against plain KD: {gain}, on {found.where}, {found.images:,} images"]
    lines.append(
        f"its accuracy was not measured with {workload.images:,} images and {workload.epochs:,} epochs; it relies on "
        f"{strategy.relies_on}"
    )
    return lines


def answers_beside(out: str | None, config: RunConfig) -> Path:
    """Where answers are stored unless --answers.path says: beside the run, so that runs with the same teacher and data
    share them, and others have a folder of their own.
    """
    asked = repr((config.teacher, config.data, config.answers, config.loss.temperature))
    name = f"{ANSWERS}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
    return (Path(out).parent if out else Path("runs")) / name
