"""Tables: the one of results for the terminal and (its columns) the page, and what a table of the page is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from unixkd.errors import shown
from unixkd.names import NONE, count
from unixkd.report.charts import Style
from unixkd.report.records import SETTING, Run
from unixkd.report.runs import Group, MeanStd, group_runs, matched_to, paired_difference, teacher_runs
from unixkd.report.wording import baseline_of, explain, hero_of, measure_of, percent, points

_MEDIUM = ("method", "result", "best", "difference", "cost_1x", "cost_2x", "seconds", "n")
_SMALL = ("method", "result", "difference", "cost_2x")
_TINY = ("method", "result", "cost_2x")


class PageTable(NamedTuple):
    """A table whose first column heads its rows; the caption is for those who cannot see the heading above it."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[Style] = ()  # one per row, shown before its first cell
    titles: Sequence[str] = ()  # one per column, shown on hovering its header
    hero: int | None = None  # the row to set in bold


class Column(NamedTuple):
    """One column: its key, its header, a line on what it means, and what stands in it."""

    key: str
    header: str
    meaning: str
    cell: Callable[[Group], str]


def columns_of(groups: Sequence[Group]) -> list[Column]:
    """The columns that have something to say about these groups."""
    measure = measure_of(groups)
    short = "accuracy" if measure.name == "accuracy" else "agreement"

    def against_kd(group: Group) -> MeanStd | None:
        return paired_difference(group, baseline_of(groups, group), measure.of_run)

    columns = [
        Column("method", "method", "what was kept of each batch", lambda group: group.method),
        *(Column(what, what, f"the {what} of these runs", _setting(i)) for i, what in enumerate(SETTING)),
        Column(
            "result",
            f"last epoch\n{short} %",
            f"{measure.name} after the last epoch, mean ± standard deviation over seeds",
            lambda group: percent(group.mean_std(measure.of_run)),
        ),
        Column(
            "best",
            "best epoch\naccuracy %",
            "best epoch, picked on the evaluated images: flattering, not the result",
            lambda group: percent(group.mean_std(lambda run: run.summary.accuracy.best), sd=False),
        ),
        Column(
            "difference",
            "vs kd\npoints",
            f"difference of {measure.name} to plain KD in points, seed by seed",
            lambda group: points(against_kd(group)),
        ),
        Column("scored", "images\nscored", "images scored by the student", _images("scored")),
        Column(
            "queries",
            "teacher\nqueries",
            "images that went through the teacher (answered from the store)",
            _queries,
        ),
        Column("trained", "images\ntrained", "images the student was trained on", _images("trained")),
        Column("cost_1x", "cost %\nback ×1", "computation in % of plain KD, backward = 1 forward", _cost(1)),
        Column("cost_2x", "cost %\nback ×2", "computation in % of plain KD, backward = 2 forwards", _cost(2)),
        Column(
            "shared",
            "of it shared\n%, back ×2",
            "computation in % of plain KD that is charged as if each run were alone, but was saved: other runs had "
            "stored the answers; train seconds are without it",
            lambda group: percent(group.mean_std(_shared), digits=1, sd=False),
        ),
        Column("seconds", "train\nseconds", "measured training time without evaluation", _seconds),
        Column("n", "n", "number of runs", lambda group: str(len(group.runs))),
    ]
    silent = _silent(groups)
    if all(against_kd(group) is None for group in groups):
        silent.add("difference")
    return [column for column in columns if column.key not in silent]


def _silent(groups: Sequence[Group]) -> set[str]:
    """Keys of the columns in which no group has anything to say, but for the difference to plain KD."""
    runs = [run for group in groups for run in group.runs]
    says = {
        "best": any(run.summary.accuracy.best is not None for run in runs),
        "shared": any(map(_shared, runs)),
        **{what: any(group.setting[i] for group in groups) for i, what in enumerate(SETTING)},
        "seconds": any(group.train_seconds is not None for group in groups),
    }
    return {key for key, something in says.items() if not something}


def render_table(runs: Sequence[Run], width: int) -> Table:
    """The results as a rich table; a terminal of few columns (`width`) gets fewer of the table's."""
    groups = group_runs(runs)
    columns = columns_of(groups)
    for keys in (None, _MEDIUM, _SMALL, _TINY):
        chosen = [column for column in columns if keys is None or column.key in (*keys, *SETTING)]
        table = _table(groups, chosen, _caption(runs, len(chosen) < len(columns)))
        if Console(width=1000).measure(table).maximum <= width:
            break
    return table


def teacher_line(runs: Sequence[Run]) -> str:
    """The teacher's accuracy in words; empty where it is unknown."""
    stat = teacher_accuracy(runs)
    return "" if stat is None else f"Teacher: {percent(stat)} % accuracy."


def teacher_accuracy(runs: Sequence[Run]) -> MeanStd | None:
    """As the students' runs measured it, else as the teacher's own run did; None where runs have several settings."""
    if len({group.setting for group in group_runs(runs)}) > 1:
        return None
    students = MeanStd.of(run.summary.accuracy.teacher for group in group_runs(runs) for run in group.runs)
    if students is not None:
        # one teacher, measured again in every run: a deviation of zero would suggest several
        return MeanStd(students.mean, students.sd or None, students.n)
    return MeanStd.of(run.accuracy for run in teacher_runs(runs))


def _table(groups: Sequence[Group], columns: Sequence[Column], caption: Text) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=caption)
    table.caption_justify = "left"
    hero = hero_of(groups).method
    for column in columns:
        first = column.key in ("method", *SETTING)
        justify: JustifyMethod = "left" if first else "right"
        table.add_column(column.header, justify=justify, no_wrap=not first, overflow="fold")
    for group in groups:
        style = "bold" if group.method == hero else ""
        table.add_row(*[Text(shown(column.cell(group))) for column in columns], style=style)
    return table


def _caption(runs: Sequence[Run], shortened: bool) -> Text:
    groups = group_runs(runs)
    lines = [teacher_line(runs)]
    controls = [group.method for group in groups if matched_to(group.method)]
    if len(controls) == 1:
        lines.append(f"{controls[0]}: {explain(controls[0])}.")
    elif controls:
        lines.append("kd@X: plain KD for as many epochs as the computation of X buys.")
    lines.append("Cost in % of plain KD, counting the backward pass as 1 or 2 forwards.")
    if shortened:
        lines.append("A wider terminal shows more columns.")
    return Text("\n".join(shown(line) for line in lines if line))


def _images(name: str) -> Callable[[Group], str]:
    """Writes a method's mean of this field of `run_files.Images`."""
    return lambda group: count(fmean(getattr(run.summary.cost.images, name) for run in group.runs))


def _setting(place: int) -> Callable[[Group], str]:
    return lambda group: group.setting[place] or NONE


def _queries(group: Group) -> str:
    asked, stored = _images("teacher_forwarded")(group), _images("teacher_cached")(group)
    return asked if stored == "0" else f"{asked} ({stored})"


def _cost(backward: int) -> Callable[[Group], str]:
    return lambda group: percent(group.cost(backward), digits=1, sd=False)


def _shared(run: Run) -> float | None:
    return None if run.summary.cost.shared is None else run.summary.cost.shared.backward_2x


def _seconds(group: Group) -> str:
    stat = group.train_seconds
    return NONE if stat is None else f"{stat.mean:.{1 if stat.mean < 100 else 0}f}"
