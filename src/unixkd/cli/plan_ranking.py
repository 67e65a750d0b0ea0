"""`plan` with a target: strategies ranked by cost and evidence, and the command of the first."""

from __future__ import annotations

import shlex
from dataclasses import replace

from jsonargparse import Namespace
from rich.table import Table
from rich.text import Text

from unixkd.cli.plan_timing import how_timed
from unixkd.cli.screen import console, new_table, percents, say, say_pair
from unixkd.config import DataConfig, RunConfig, TrainConfig, flatten, to_plain
from unixkd.errors import UsageError
from unixkd.names import NONE, chosen_options, run_words
from unixkd.planning.catalogue import Budget, Evidence, Group, MatchKD, Strategy, strategies
from unixkd.planning.expected import Workload
from unixkd.planning.strategies import StrategyEstimate, estimate_strategies, with_all_views
from unixkd.planning.timing import Pair
from unixkd.teacher.format import Contents

ANSWERS = "answers"
"""Folder of the stored answers in a printed command."""


def rank_strategies(
    options: Namespace, target: Budget | MatchKD, data: DataConfig, workload: Workload, pair: Pair
) -> None:
    """Rank the strategies, say what each relies on, print the command of the first that reaches the target."""
    if options.data.mixes is not None:
        raise UsageError("plan ranks fixed mixes among the other strategies: leave --data.mixes out")
    say_pair(options, pair.ledger)
    say(about(workload))
    known = strategies(workload.images, workload.epochs)
    estimates, groups = ranked(known, target, workload, pair, options.rounds)
    console.print(ranking(groups, estimates))
    for line in notes(known, estimates, workload, how_timed(pair)):
        say(line)
    best = first_of(groups)
    if best is None:
        cheapest = groups[0].strategies[0].name
        say("", f"No strategy is within the budget; the cheapest is {cheapest}.", style="yellow")
        return
    say("", f"The first: {best.name}{', of unknown accuracy' if best.matches is None else ''}.")
    for line in requirements(best, workload, pair.teacher.card.num_classes):
        say(line)
    say("  " + shlex.join(command_words(options, best, data, workload)))


def ranked(
    known: list[Strategy], target: Budget | MatchKD, workload: Workload, pair: Pair, rounds: int
) -> tuple[dict[str, StrategyEstimate], list[Group]]:
    """What each strategy that is possible will cost, by name, and the strategies in groups, the best first."""
    if isinstance(target, Budget):
        known = with_all_views(known, target.share, pair, workload)
    estimates = {each.strategy.name: each for each in estimate_strategies(known, pair, workload, rounds)}
    cost = {name: each.relative["backward_2x"] for name, each in estimates.items()}
    return estimates, target.groups([each.strategy for each in estimates.values()], cost)


def first_of(groups: list[Group]) -> Strategy | None:
    """The best strategy that reaches the target."""
    return next((group.strategies[0] for group in groups if group.eligible), None)


def about(workload: Workload) -> str:
    """What is planned, in a line."""
    runs = "1 run" if workload.runs == 1 else f"the mean of {workload.runs} runs that share stored answers"
    views = "views without end" if workload.views is None else f"{workload.views:,} views each"
    return f"{workload.epochs:,} epochs of {workload.images:,} images with {views}, {runs}"


def ranking(groups: list[Group], estimates: dict[str, StrategyEstimate]) -> Table:
    """The strategies as a table, those that miss the target dimmed and without a rank."""
    headers = ("strategy", "cost\n×1 %", "cost\n×2 %", "s per\nrun", "time %\nof kd", "against kd,\npoints")
    table = new_table("", *headers, left=(1, 6))
    rank = 0
    for group in groups:
        style = None if group.eligible else "dim"
        table.add_section()
        table.add_row("", Text(group.heading, style="italic"), style=style)
        for each in group.strategies:
            rank += group.eligible
            table.add_row(str(rank) if group.eligible else NONE, *cells(estimates[each.name]), style=style)
    return table


def cells(estimate: StrategyEstimate) -> list[str]:
    """A strategy's line of the table without its rank."""
    seconds, share = estimate.seconds, estimate.relative_seconds
    return [
        estimate.strategy.name,
        *percents(estimate.relative),
        NONE if seconds is None else f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}",
        NONE if share is None else f"{100 * share:.0f}",
        accuracy(estimate.strategy),
    ]


def accuracy(strategy: Strategy) -> str:
    """What is known of a strategy's accuracy, in few words."""
    if strategy.exact:
        return "the same run" if strategy.stored else "itself"
    return "not measured" if strategy.evidence is None else points(strategy.evidence)


def points(evidence: Evidence) -> str:
    """A measured difference, its standard deviation and the number of seeds.

    >>> points(Evidence(difference=-0.1, sd=0.25, n=5, images=500, where="…"))
    '-0.10 ± 0.25 (5)'
    """
    return f"{evidence.difference:+.2f} ± {evidence.sd:.2f} ({evidence.n})"


def notes(
    known: list[Strategy], estimates: dict[str, StrategyEstimate], workload: Workload, how: str
) -> list[str]:
    """Remarks below the table for the training that is planned, with how steps were timed."""
    shown = [each.strategy for each in estimates.values()]
    lines = [
        "Costs are shares of plain KD's, with the backward pass counted as 1 or 2 forwards; ×2 counts here."
    ]
    if any(each.seconds is not None for each in estimates.values()):
        lines.append(
            f"Times are forwards and backwards of random pixels, interleaved with plain KD's: {how}."
        )
    lines += [f"{each.name} was measured on {each.evidence.where}." for each in shown if each.evidence]
    lines += [
        f"{each.name} was measured with {each.elsewhere.images:,} images only ({points(each.elsewhere)}, "
        f"{each.elsewhere.where}): that does not count for {workload.images:,} and {workload.epochs:,} epochs."
        for each in shown
        if each.elsewhere
    ]
    if any(each.matches is None for each in shown):
        lines.append("Not measured: whether it is as accurate is not known; compare it with plain KD.")
    missing = [each.name for each in known if each.name not in estimates]
    if missing:
        lines.append(f"Left out as views have no end: {', '.join(missing)}; --data.views limits them.")
    width = max(len(each.name) for each in shown)
    lines += ["", "To be as accurate as plain KD, each relies on"]
    return lines + [f"  {each.name:<{width}}  {each.relies_on}" for each in shown if each.relies_on]


def requirements(strategy: Strategy, workload: Workload, classes: int) -> list[str]:
    """The disk space that stored answers take, and how further runs make use of them."""
    lines = []
    if strategy.stored:
        views = strategy.views(workload.epochs, workload.views) or workload.views
        assert views is not None
        lines.append(f"Its answers take {Contents({}, workload.images, views, classes, 'fp16')}.")
    if workload.runs > 1:
        lines.append("Further runs are the same command, each with a --seed of its own:")
    return lines


def run_of(strategy: Strategy, base: RunConfig, workload: Workload, answers: str) -> RunConfig:
    """The run of a strategy under a protocol whose epochs are plain KD's; its answers are stored in `answers`."""
    epochs, views = strategy.epochs(workload.epochs), strategy.views(workload.epochs, workload.views)
    data = base.data
    if views is not None:
        data = replace(data, mixes=views) if strategy.mixed else replace(data, views=views)
    return replace(
        base,
        method=strategy.method,
        data=data,
        answers=replace(base.answers, path=answers if strategy.stored else None),
        train=replace(base.train, epochs=epochs),
        reference_epochs=None if epochs == workload.epochs else workload.epochs,
    )


def command_words(options: Namespace, strategy: Strategy, data: DataConfig, workload: Workload) -> list[str]:
    """The words of `unixkd distill ...` that run a strategy as planned."""
    train = TrainConfig(workload.epochs, workload.batch_size)
    base = RunConfig(options.student, options.teacher, data=data, train=train)
    values = flatten(to_plain(run_of(strategy, base, workload, ANSWERS)))
    del values["train.seed"]  # each run has its own
    program, command, *words = run_words(values, settled=False)
    others = options.recipe or chosen_options(values)  # which may have another batch than the default
    if others and "--train.batch_size" not in words:
        words += ["--train.batch_size", str(workload.batch_size)]
    return [program, command, *(["--recipe", options.recipe] if options.recipe else []), *words]
