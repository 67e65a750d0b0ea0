"""Tables: the one of results for the terminal, Markdown and (its columns) the page, and what a table of the page is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unixkd.names import NONE, count
from unixkd.report.charts import Style
from unixkd.report.records import Run
from unixkd.report.runs import Group, MeanStd, group_runs, paired_difference, teacher_runs
from unixkd.report.wording import baseline_of, explain, hero_of, measure_of, percent, points

_MEDIUM = ("method", "result", "best", "difference", "cost_1x", "cost_2x", "seconds", "n")
_SMALL = ("method", "result", "difference", "cost_2x")
_TINY = ("method", "result", "cost_2x")


@dataclass(frozen=True)
class PageTable:
    """A table whose first column heads its rows.

    Args:
        caption: for those who cannot see the heading above it
        headers: one per column
        rows: texts, as many per row as there are headers
        styles: one per row, shown before the first cell; or none
        titles: one per column, shown on hovering its header; or none
        hero: the row to set in bold
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[Style] = ()
    titles: Sequence[str] = ()
    hero: int | None = None


@dataclass(frozen=True)
class Column:
    """One column: its key, its header, a line on what it means, and what stands in it."""

    key: str
    header: str
    meaning: str
    cell: Callable[[Group], str]


def columns_of(groups: Sequence[Group]) -> list[Column]:
    """The columns that have something to say about these groups."""
    measure, kd = measure_of(groups), baseline_of(groups)
    short = "accuracy" if measure.name == "accuracy" else "agreement"
    columns = [
        Column("method", "method", "what was kept of each batch", lambda group: group.method),
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
            lambda group: points(paired_difference(group, kd, measure.of_run)),
        ),
        *_spent_columns(),
        Column("seconds", "train\nseconds", "measured training time without evaluation", _seconds),
        Column("n", "n", "number of runs", lambda group: str(len(group.runs))),
    ]
    runs = [run for group in groups for run in group.runs]
    empty = {
        "best": all(run.summary.accuracy.best is None for run in runs),
        "difference": kd is None or len(groups) == 1,
        "seconds": all(run.train_seconds is None for run in runs),
    }
    return [column for column in columns if not empty.get(column.key)]


def _spent_columns() -> list[Column]:
    """Images that went through each network, and computation."""
    return [
        Column(
            "scored",
            "images\nscored",
            "images scored by the student",
            lambda group: _count(group.mean_std(lambda run: run.summary.cost.images.scored)),
        ),
        Column(
            "queries",
            "teacher\nqueries",
            "images that went through the teacher (answered from the store)",
            _queries,
        ),
        Column(
            "trained",
            "images\ntrained",
            "images the student was trained on",
            lambda group: _count(group.mean_std(lambda run: run.summary.cost.images.trained)),
        ),
        Column(
            "cost_1x",
            "cost %\nback ×1",
            "computation in % of plain KD, backward = 1 forward",
            lambda group: percent(group.mean_std(lambda run: run.cost_1x), digits=1, sd=False),
        ),
        Column(
            "cost_2x",
            "cost %\nback ×2",
            "computation in % of plain KD, backward = 2 forwards",
            lambda group: percent(group.mean_std(lambda run: run.cost_2x), digits=1, sd=False),
        ),
    ]


def render_table(runs: Sequence[Run], width: int | None = None) -> Table:
    """The results as a rich table.

    Args:
        runs: from `find_runs`
        width: columns of the terminal; a narrow one gets fewer columns (default: all of them)
    """
    groups = group_runs(runs)
    columns = columns_of(groups)
    for keys in (None, _MEDIUM, _SMALL, _TINY):
        chosen = [column for column in columns if keys is None or column.key in keys]
        table = _table(groups, chosen, _caption(runs, len(chosen) < len(columns)))
        if width is None or Console(width=1000).measure(table).maximum <= width:
            break
    return table


def markdown_table(runs: Sequence[Run]) -> str:
    """The results as a GitHub-flavoured Markdown table, all columns, ending in a newline."""
    groups = group_runs(runs)
    columns = columns_of(groups)
    lines = [[column.header.replace("\n", " ") for column in columns], [":--", *["--:"] * (len(columns) - 1)]]
    lines += [[column.cell(group).replace("|", "\\|") for column in columns] for group in groups]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def teacher_line(runs: Sequence[Run]) -> str:
    """The teacher's accuracy in words; empty where it is unknown."""
    stat = teacher_accuracy(runs)
    return "" if stat is None else f"Teacher: {percent(stat)} % accuracy."


def teacher_accuracy(runs: Sequence[Run]) -> MeanStd | None:
    """As the students' runs measured it, else as the teacher's own run did."""
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
        left = column.key == "method"
        table.add_column(
            column.header, justify="left" if left else "right", no_wrap=not left, overflow="fold"
        )
    for group in groups:
        style = "bold" if group.method == hero else ""
        table.add_row(*[Text(column.cell(group)) for column in columns], style=style)
    return table


def _caption(runs: Sequence[Run], shortened: bool) -> Text:
    groups = group_runs(runs)
    lines = [teacher_line(runs)]
    controls = [group.method for group in groups if group.method.startswith("kd@")]
    if len(controls) == 1:
        lines.append(f"{controls[0]}: {explain(controls[0])}.")
    elif controls:
        lines.append("kd@X: plain KD for as many epochs as the computation of X buys.")
    lines.append("Cost in % of plain KD, counting the backward pass as 1 or 2 forwards.")
    if shortened:
        lines.append("A wider terminal shows more columns.")
    return Text("\n".join(line for line in lines if line))


def _count(stat: MeanStd | None) -> str:
    return NONE if stat is None else count(stat.mean)


def _queries(group: Group) -> str:
    asked = group.mean_std(lambda run: run.summary.cost.images.teacher_forwarded)
    stored = group.mean_std(lambda run: run.summary.cost.images.teacher_cached)
    return f"{_count(asked)} ({_count(stored)})" if stored is not None and stored.mean else _count(asked)


def _seconds(group: Group) -> str:
    stat = group.mean_std(lambda run: run.train_seconds)
    return NONE if stat is None else f"{stat.mean:.{1 if stat.mean < 100 else 0}f}"
