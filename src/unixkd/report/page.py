"""The report as one HTML file: no scripts, nothing loaded from elsewhere, light and dark; its sections in order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unixkd.errors import UserError, shown
from unixkd.names import NONE, count, flops, plural, seconds
from unixkd.report.charts import DARK, LIGHT, Figure, Style, styles_of, training_curves
from unixkd.report.cost_chart import accuracy_against_cost
from unixkd.report.disagreement import teachers_cost, where_they_disagree
from unixkd.report.records import Command, Run
from unixkd.report.runs import Group, MeanStd, curve, group_runs, paired_difference, teacher_runs
from unixkd.report.selection import how_often, what_was_kept
from unixkd.report.table import PageTable, columns_of, teacher_accuracy, teacher_line
from unixkd.report.wording import (
    baseline_of,
    explain,
    headline,
    hero_of,
    measure_of,
    percent,
    points,
    protocol_notes,
    why_no_baseline,
)
from unixkd.run_files import Cost, Planned, write


def write_page(
    runs: Sequence[Run],
    path: Path,
    title: str = "Distillation report",
    notes: Sequence[str] = (),
    commands: Sequence[Command] = (),
) -> None:
    """Write the report of some runs; the same runs give the same bytes.

    Args:
        runs: from `find_runs`, at least one
        path: the HTML file; missing folders are made
        title: stands in the browser's tab and above the headline
        notes: what is said of runs that are left out, see `runs.left_out`
        commands: what makes the runs again

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written
    """
    check_page(path)
    write_html(path, page(runs, title, notes, commands))


def write_html(path: Path, text: str) -> None:
    """Write a page, and the folders that are missing; raises UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent in (Path("/dev"), Path("/dev/fd")):  # /dev/stdout is not to be replaced
            path.write_text(text, encoding="utf-8", newline="\n")
        else:
            write(path, text)
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}") from error


def check_page(path: Path) -> None:
    """Raise where a file that is no report would be replaced; a link is replaced, what it points to stays."""
    if path.is_symlink() or not path.is_file():
        return
    if (content := path.read_bytes()) and b'class="eyebrow"' not in content:
        raise UserError(f"{path} is no report: it is not replaced, give another name with --html")


def page(runs: Sequence[Run], title: str, notes: Sequence[str] = (), commands: Sequence[Command] = ()) -> str:
    """The HTML of the report: `page.html.j2` with what the runs give; a section that is None or empty is left out."""
    groups = group_runs(runs)
    styles = styles_of(groups)
    return render(
        "page.html.j2",
        title=title,
        **first_screen(runs, groups, notes),
        measure=measure_of(groups).name.capitalize(),
        results=results(runs, groups, styles),
        cost=accuracy_against_cost(groups, styles),
        plan=plan_beside_measurement(groups, styles),
        training=training(runs, groups, styles),
        kept=what_was_kept(groups, styles),
        often=how_often(groups, styles),
        disagree=where_they_disagree(groups, styles),
        surroundings=surroundings(runs, groups),
        commands=[(what, re.split(" (?=--)", text)) for what, text in commands],
        configuration=configuration(groups),
        evaluated_on=_evaluated_on(groups),
    )


def render(template: str, **values: Any) -> str:
    """The HTML of a template of this package; every text is escaped except those marked as `Markup`."""
    environment = Environment(
        loader=PackageLoader("unixkd.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    environment.filters |= {"anchor": _anchor, "unbroken": _unbroken, "lines": _lines}
    return environment.get_template(template).render(light=LIGHT, dark=DARK, **values)


def _anchor(title: str) -> str:
    """The id of the section with this title."""
    return re.sub(r"[^a-z]+", "-", title.lower())


def _shown(value: object) -> object:
    """A text with its line breaks and control characters as escape sequences; markup is the page's own."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """A text whose line breaks are its own: a file, a header of two lines."""
    return Markup("\n").join(map(shown, text.split("\n")))


def _unbroken(text: str) -> str:
    """Figures stay on a line with their units and signs."""
    return re.sub(r"(?<=[\d=±]) (?=[\w%±])| (?=[=±])", "\u00a0", text)


def first_screen(runs: Sequence[Run], groups: Sequence[Group], notes: Sequence[str]) -> dict[str, Any]:
    """The headline, the three answers, and what has to be said with them."""
    first, *others = headline(groups)
    number = sum(len(group.runs) for group in groups)
    hero = hero_of(groups)
    kd = baseline_of(groups, hero)
    return {
        "headline": first,
        "counted": [plural(number, "run"), plural(len(groups), "method")],
        "answers": [got(runs, groups, hero, kd), cost(hero), plain_kd(hero, kd)],
        "lead": " ".join(others),
        "notes": [*notes, *protocol_notes(groups)],
    }


Answer = tuple[str, str, Sequence[str]]
"""A question, its answer in a few characters, and the lines below it."""


def got(runs: Sequence[Run], groups: Sequence[Group], hero: Group, kd: Group | None) -> Answer:
    """The result after the last epoch, beside plain KD's and the teacher's."""
    question, measure = "What did I get?", measure_of(groups)
    result = hero.mean_std(measure.of_run)
    if result is None:
        return question, NONE, [f"{hero.method} had neither labels nor a teacher to be judged by"]
    over = "1 run" if result.n == 1 else f"± over {result.n} runs"
    lines = [f"{hero.method}: {measure.name}, last epoch, {over}"]
    if kd is None:
        lines.append(why_no_baseline(groups, hero))
    elif kd is not hero:
        lines.append(f"plain KD {_percent(kd.mean_std(measure.of_run))}")
        if (difference := paired_difference(hero, kd, measure.of_run)) is not None:
            lines.append(f"difference {points(difference)} points")
    teacher = teacher_accuracy([run for run in runs if run.setting == hero.setting])
    if teacher is not None and measure.name == "accuracy":
        lines.append(f"teacher {_percent(teacher)}")
    return question, _percent(result), lines


def cost(hero: Group) -> Answer:
    """Computation over plain KD's in both conventions, and what was measured."""
    question = "What did it cost?"
    share_1x, share_2x = hero.cost(1), hero.cost(2)
    spent, took = hero.mean_std(lambda run: run.flops(2)), hero.train_seconds
    amounts = [flops(spent.mean)] if spent is not None else []
    amounts += [f"{seconds(took.mean)} of training, measured"] if took is not None else []
    if share_1x is None or share_2x is None:
        first, *others = amounts or [NONE]
        return question, first, ["computation, backward = 2 forwards", *others] if spent is not None else []
    line = ", ".join(amounts)
    if hero.name == "kd" and share_2x.mean == 1:
        return question, "100 %", ["it is plain KD itself", line]
    lines = [
        "of plain KD’s computation, backward = 2 forwards",
        f"{_percent(share_1x, 1)} if a backward counts as 1 forward",
    ]
    return question, _percent(share_2x, 1), [*lines, line] if line else lines


def plain_kd(hero: Group, kd: Group | None) -> Answer:
    """What plain KD costs: by arithmetic, and in seconds where it was run."""
    question = "What would plain KD have cost?"
    spent_1x = hero.mean_std(lambda run: run.kd_flops(1))
    spent_2x = hero.mean_std(lambda run: run.kd_flops(2))
    if spent_1x is None or spent_2x is None:
        spent = [run.summary.cost.flops for run in hero.runs]
        unknown = any(part.teacher is None and part.student_forward is not None for part in spent)
        reason = "the teacher's cost is not known" if unknown else "no teacher was asked here"
        return question, NONE, [f"{reason}: there is nothing to compare with"]
    took = kd and kd.train_seconds
    lines = [
        f"backward = 2 forwards; {flops(spent_1x.mean)} if it is 1",
        f"{seconds(took.mean)} of training, measured" if took else "no seconds of it were measured",
    ]
    if reference := _reference(hero.runs[0]):
        lines.append(f"worked out for {reference}")
    return question, flops(spent_2x.mean), lines


def _percent(stat: MeanStd | None, digits: int = 2) -> str:
    return NONE if stat is None else f"{percent(stat, digits, sd=digits > 1)} %"


def results(runs: Sequence[Run], groups: Sequence[Group], styles: dict[str, Style]) -> dict[str, Any]:
    """The table, what the methods are and what the columns mean."""
    columns = columns_of(groups)
    table = PageTable(
        "Results of every method",
        [column.header for column in columns],
        [[column.cell(group) for column in columns] for group in groups],
        styles=[styles[group.method] for group in groups],
        titles=[column.meaning for column in columns],
        hero=[group.method for group in groups].index(hero_of(groups).method),
    )
    return {
        "teacher": teacher_line(runs),
        "table": table,
        "methods": [(group.method, explain(group.method)) for group in groups if explain(group.method)],
        "columns": [(" ".join(column.header.split()), column.meaning) for column in columns],
    }


def training(runs: Sequence[Run], groups: Sequence[Group], styles: dict[str, Style]) -> dict[str, Any] | None:
    """Curves over epochs and over computation, and their numbers."""
    measure, teacher = measure_of(groups), teacher_accuracy(runs)
    captions = {False: ("by epoch", ""), True: ("by computation", "backward = 2 forwards")}
    figures = []
    for by_cost, caption in captions.items():
        svg = training_curves(groups, styles, measure, teacher, by_cost)
        if svg is not None:
            figures.append(Figure(svg, *caption))
    if not figures:
        return None
    curves = {group.method: dict(curve(group, measure.of_epoch)) for group in groups}
    epochs = sorted(set[int]().union(*curves.values()))
    rows = [[str(epoch), *(percent(curves[group.method].get(epoch)) for group in groups)] for epoch in epochs]
    headers = ["epoch", *(group.method for group in groups)]
    table = PageTable(f"{measure.name.capitalize()} in % after every epoch", headers, rows)
    return {"figures": figures, "table": table}


def surroundings(runs: Sequence[Run], groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Teacher, student, data and machine."""
    students = [run for group in groups for run in group.runs]
    summaries = [run.summary for run in students]
    teacher = teacher_accuracy(runs)
    lines = [("Teacher’s accuracy", "" if teacher is None else f"{percent(teacher)} %")]
    if unchecked := sum(not run.is_checked for run in runs):
        some = f"{unchecked} of {plural(len(runs), 'run')} left no checksums"
        lines.append(("Not checked", f"{some}: whether their files were edited cannot be known"))
    for run in teacher_runs(runs):
        size = f", {run.summary.parameters:,} parameters" if run.summary.parameters else ""
        lines.append(("Teacher’s own training", f"{run.summary.epochs} epochs{size}, seed {run.seed}"))
    lines += teachers_cost(groups)
    sizes = (f"{each.parameters:,}" for each in summaries if each.parameters)
    references = (f"plain KD for {text}" for text in map(_reference, students) if text)
    errors = [(group.method, group.mean_std(lambda run: run.summary.calibration_error)) for group in groups]
    lines += [
        ("Student’s parameters", _distinct(sizes)),
        ("Epochs", _distinct(str(each.epochs) for each in summaries)),
        ("Reference for costs", _distinct(references)),
        ("Expected calibration error", ", ".join(f"{name} {stat.mean:.3f}" for name, stat in errors if stat)),
    ]
    names = dict.fromkeys(name for each in summaries for name in each.environment)
    lines += [
        (name, _distinct(str(each.environment.get(name, NONE)) for each in summaries)) for name in names
    ]
    return [(name, value) for name, value in lines if value]


def _evaluated_on(groups: Sequence[Group]) -> str:
    data = [run.config.get("data") for group in groups for run in group.runs]
    held_out = all(isinstance(each, dict) and each.get("holdout") for each in data)
    return "held-out training images" if held_out else "the evaluation images of the data set"


def _reference(run: Run) -> str:
    reference = run.summary.cost.reference
    if reference.epochs is None or reference.images is None:
        return ""
    return f"{plural(reference.epochs, 'epoch')} of {count(reference.images)} images"


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(filter(None, dict.fromkeys(values)))


_CONVENTIONS = ("backward_1x", "backward_2x")
_IMAGES = {"scored": "images\nscored", "teacher_forwarded": "teacher\nqueries", "trained": "images\ntrained"}


def plan_beside_measurement(groups: Sequence[Group], styles: dict[str, Style]) -> PageTable | None:
    """A line of predictions and one of measurements for every method; None where nothing was predicted."""
    headers = ["method", "", "cost %\nback ×1", "cost %\nback ×2", *_IMAGES.values(), "train\nseconds"]
    rows, marks = [], []
    for group in groups:
        with_plan = Group(group.method, tuple(run for run in group.runs if run.planned))
        plans = [run.planned for run in with_plan.runs if run.planned]
        if plans:
            word = "planned" if all(plan.exact for plan in plans) else "expected"
            took = with_plan.train_seconds
            measured = _costs([run.summary.cost for run in with_plan.runs])
            rows += [
                [group.method, word, *_costs(plans), NONE],
                [group.method, "measured", *measured, NONE if took is None else seconds(took.mean)],
            ]
            marks += [styles[group.method]] * 2
    return PageTable("Planned and measured cost of every method", headers, rows, marks) if rows else None


def _costs(costs: Sequence[Planned | Cost]) -> list[str]:
    """Mean computation over plain KD's in both conventions, and mean images through each forward."""
    shares = (MeanStd.of(getattr(each.relative_to_kd, name, None) for each in costs) for name in _CONVENTIONS)
    images = (fmean(getattr(each.images, name) for each in costs) for name in _IMAGES)
    return [*(percent(share, sd=False) for share in shares), *map(count, images)]


def configuration(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """The configuration of the first run of every method, under the run's name."""
    firsts = [(f"{group.method}, seed {group.runs[0].seed}", group.runs[0].config_text) for group in groups]
    return [(name, text.strip()) for name, text in firsts if text.strip()]
