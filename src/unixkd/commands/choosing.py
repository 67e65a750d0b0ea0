"""`plan` with a target: ways to distil, ranked, and the command of the first."""

from __future__ import annotations

import shlex

from jsonargparse import Namespace
from rich import box
from rich.table import Table

from unixkd.batch import Batch
from unixkd.commands.screen import console, say
from unixkd.commands.wording import command_words
from unixkd.config import DataConfig
from unixkd.flops import forward_flops
from unixkd.forecast import Forecast, Setting, make_forecasts
from unixkd.models import PixelModel
from unixkd.recipes import PAIRS
from unixkd.targets import Budget, Group, MatchKD
from unixkd.teacher.contents import Contents
from unixkd.ways import Evidence, Way, ways


def choose(
    options: Namespace,
    target: Budget | MatchKD,
    data: DataConfig,
    setting: Setting,
    teacher: PixelModel,
    student: PixelModel,
    batch: Batch,
) -> None:
    """Rank the ways, say what each relies on, print the command of the first that reaches the target."""
    known = ways(setting.images)
    forecasts = {
        each.way.name: each
        for each in make_forecasts(known, teacher, student, batch, setting, options.rounds)
    }
    shape = (batch.pixels.shape[1], batch.pixels.shape[2], batch.pixels.shape[3])
    flops = (forward_flops(teacher, shape), forward_flops(student, shape))
    say(pair_line(flops, options.teacher.name, options.student.name))
    say(about(setting))
    cost = {name: each.relative["backward_2x"] for name, each in forecasts.items()}
    groups = target.groups([each.way for each in forecasts.values()], cost)
    console.print(ranking(groups, forecasts))
    for line in notes(known, forecasts, setting.images):
        say(line)
    best = next((group.ways[0] for group in groups if group.eligible), None)
    if best is None:
        say(f"\nNo way is within the budget; the cheapest is {groups[0].ways[0].name}.", style="yellow")
        return
    say(f"\nThe first: {best.name}{', of unknown accuracy' if best.matches is None else ''}.")
    for line in needs(best, setting, teacher.card.num_classes):
        say(line)
    say("  " + shlex.join(command_words(options, best, data, setting)))


def pair_line(flops: tuple[int, int], teacher: str, student: str) -> str:
    """Both networks, what a forward of each costs, and their ratio.

    Args:
        flops: of the teacher's and the student's forward
        teacher: its name
        student: its name
    """
    published = {(p.teacher, p.student): p.ratio for p in PAIRS}.get((teacher, student))
    beside = f" (published: {published})" if published else ""
    return (
        f"{teacher} → {student}: one forward costs {flops[0] / 1e6:,.1f} and "
        f"{flops[1] / 1e6:,.1f} MFLOPs per image, F_t/F_s = {flops[0] / flops[1]:.2f}{beside}"
    )


def about(setting: Setting) -> str:
    """What is planned, in a line."""
    runs = "1 run" if setting.runs == 1 else f"the mean of {setting.runs} runs that share stored answers"
    views = "views without end" if setting.views is None else f"{setting.views:,} views each"
    return f"{setting.epochs:,} epochs of {setting.images:,} images with {views}, {runs}"


def ranking(groups: list[Group], forecasts: dict[str, Forecast]) -> Table:
    """The ways as a table, those that miss the target dimmed and without a rank."""
    table = Table(
        "",
        "way",
        *("cost\n×1 %", "cost\n×2 %", "s per\nrun", "time %\nof kd"),
        "against kd,\npoints",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for position, column in enumerate(table.columns):
        column.no_wrap = True
        column.justify = "left" if position in (1, 6) else "right"
    rank = 0
    for group in groups:
        style = None if group.eligible else "dim"
        table.add_section()
        table.add_row("", f"[italic]{group.heading}[/italic]", style=style)
        for way in group.ways:
            rank += group.eligible
            table.add_row(str(rank) if group.eligible else "–", *cells(forecasts[way.name]), style=style)
    return table


def cells(forecast: Forecast) -> list[str]:
    """A way's line of the table without its rank."""
    seconds, share = forecast.seconds, forecast.relative_seconds
    return [
        forecast.way.name,
        f"{100 * forecast.relative['backward_1x']:.1f}",
        f"{100 * forecast.relative['backward_2x']:.1f}",
        "–" if seconds is None else f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}",
        "–" if share is None else f"{100 * share:.0f}",
        shown(forecast.way),
    ]


def shown(way: Way) -> str:
    """What is known of a way's accuracy, in few words."""
    if way.exact:
        return "the same run" if way.stored else "itself"
    found = way.evidence
    return "not measured" if found is None else points(found)


def points(found: Evidence) -> str:
    """A measured difference, its spread and the number of seeds.

    >>> points(Evidence(difference=-0.1, sd=0.25, n=5, images=500, where="…"))
    '-0.10 ± 0.25 (5)'
    """
    return f"{found.difference:+.2f} ± {found.sd:.2f} ({found.n})"


def notes(known: list[Way], forecasts: dict[str, Forecast], images: int) -> list[str]:
    """What is to be said of the table, for a training set of so many images."""
    lines = [
        "Costs are shares of plain KD's, with the backward pass counted as 1 or 2 forwards; ×2 counts here."
    ]
    if any(each.seconds is not None for each in forecasts.values()):
        lines.append(
            "Times are forwards and backwards of random pixels, timed here in turns with plain KD's."
        )
    shown_ways = [each.way for each in forecasts.values()]
    lines += [f"{way.name} was measured on {way.evidence.where}." for way in shown_ways if way.evidence]
    lines += [
        f"{way.name} was measured with {way.elsewhere.images:,} images only ({points(way.elsewhere)}, "
        f"{way.elsewhere.where}): that says nothing of {images:,}."
        for way in shown_ways
        if way.elsewhere
    ]
    if any(way.matches is None for way in shown_ways):
        lines.append("Not measured: whether it is as accurate is not known; compare it with plain KD.")
    missing = [way.name for way in known if way.name not in forecasts]
    if missing:
        lines.append(f"Left out as views have no end: {', '.join(missing)}; --data.views limits them.")
    width = max(len(way.name) for way in shown_ways)
    lines.append("\nTo be as accurate as plain KD, each relies on")
    return lines + [f"  {way.name:<{width}}  {way.relies_on}" for way in shown_ways if way.relies_on]


def needs(way: Way, setting: Setting, classes: int) -> list[str]:
    """What a way that stores answers needs of the disk, and how further runs make use of it."""
    lines = []
    if way.stored:
        views = way.views(setting.epochs, setting.views) or setting.views
        assert views is not None
        lines.append(f"Its answers take {Contents({}, setting.images, views, classes, 'fp16')}.")
    if setting.runs > 1:
        lines.append("Further runs are the same command, each with a --seed of its own:")
    return lines
