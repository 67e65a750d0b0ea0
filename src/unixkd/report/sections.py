"""The sections of the page; each gives HTML, empty where its runs have nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from unixkd.report import charts
from unixkd.report.figures import NONE, count, percent
from unixkd.report.kept import how_often, what_was_kept
from unixkd.report.markup import details, figure, html_table, section
from unixkd.report.planned import plan_beside_measurement
from unixkd.report.records import Run
from unixkd.report.reproduce import commands_to_reproduce, configuration
from unixkd.report.runs import Group, curve, teacher_runs
from unixkd.report.svg import Style
from unixkd.report.table import columns_of, teacher_accuracy, teacher_line
from unixkd.report.tradeoff import accuracy_against_cost
from unixkd.report.words import explain, hero_of, measure_of

__all__ = [
    "accuracy_against_cost", "commands_to_reproduce", "configuration", "how_often", "how_to_read",
    "plan_beside_measurement", "results", "surroundings", "training", "what_was_kept",
]  # fmt: skip


def results(runs: Sequence[Run], groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """The table and what the methods are."""
    columns = columns_of(groups)
    rows = [[column.cell(group) for column in columns] for group in groups]
    headers = [column.header for column in columns]
    table = html_table(
        "Results of every method",
        headers,
        rows,
        styles=[styles[group.method] for group in groups],
        titles=[column.meaning for column in columns],
        hero=[group.method for group in groups].index(hero_of(groups).method),
    )
    explained = [
        f"<dt>{escape(group.method)}</dt><dd>{escape(explain(group.method))}</dd>"
        for group in groups
        if explain(group.method)
    ]
    teacher = f'<p class="note">{escape(teacher_line(runs))}</p>' if teacher_line(runs) else ""
    columns_meant = "".join(
        f"<dt>{escape(' '.join(column.header.split()))}</dt><dd>{escape(column.meaning)}</dd>"
        for column in columns
    )
    meant = details("What the columns mean", f"<dl>{columns_meant}</dl>")
    return section("Results", teacher + table + f"<dl>{''.join(explained)}</dl>" + meant)


def training(runs: Sequence[Run], groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """Curves over epochs and over computation, and their numbers."""
    measure, teacher = measure_of(groups), teacher_accuracy(runs)
    figures = []
    for by_cost, caption in ((False, "by epoch"), (True, "by computation")):
        svg = charts.training_curves(groups, styles, measure, teacher, by_cost, f"curve{int(by_cost)}")
        if svg is not None:
            figures.append(figure(svg, caption, "backward = 2 forwards" if by_cost else ""))
    if not figures:
        return ""
    note = "Mean over seeds; band: one standard deviation. The axis starts where training settles."
    curves = {group.method: dict(curve(group, measure.of_epoch)) for group in groups}
    epochs = sorted(set[int]().union(*curves.values()))
    rows = [[str(epoch), *(percent(curves[group.method].get(epoch)) for group in groups)] for epoch in epochs]
    table = html_table(
        f"{measure.name.capitalize()} in % after every epoch",
        ["epoch", *(group.method for group in groups)],
        rows,
    )
    body = f'<p class="note">{note}</p><div class="charts">{"".join(figures)}</div>'
    return section("Training", body + details("The curves as a table", table))


def surroundings(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """Teacher, student, data and machine."""
    lines = [("Teacher’s accuracy", f"{percent(teacher_accuracy(runs))} %")] if teacher_accuracy(runs) else []
    for run in teacher_runs(runs):
        size = f", {run.parameters:,} parameters" if run.parameters else ""
        lines.append(("Teacher’s own training", f"{run.epochs} epochs{size}, seed {run.seed}"))
    students = [run for group in groups for run in group.runs]
    lines.append(
        ("Student’s parameters", _distinct(f"{run.parameters:,}" for run in students if run.parameters))
    )
    lines.append(("Epochs", _distinct(str(run.epochs) for run in students)))
    lines.append(("Reference for costs", _distinct(map(_reference, students))))
    lines.append(("Expected calibration error", ", ".join(filter(None, map(_calibration, groups)))))
    names = list(dict.fromkeys(name for run in students for name in run.environment))
    lines += [(name, _distinct(str(run.environment.get(name, NONE)) for run in students)) for name in names]
    cells = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines if value]
    return section("Teacher, student and environment", f"<dl>{''.join(cells)}</dl>")


def how_to_read(groups: Sequence[Group]) -> str:
    """What the numbers mean, in the order in which they are met."""
    holdouts = {_holdout(run) for group in groups for run in group.runs}
    where = "held-out training images" if holdouts == {True} else "the evaluation images of the data set"
    lines = [
        ("Result", f"What the student reaches after its last epoch on {where}. The best epoch is picked by "
         "looking at those same images, so it flatters: it stands beside the result and is not it."),
        ("±", "Sample standard deviation over the runs of a method (seeds); none is given for a single run. "
         "The difference to KD is taken seed by seed, then averaged, over the seeds that both ran."),
        ("Computation", "Floating-point operations of training over those of plain KD on all images: scoring "
         "forwards of the student, forwards of the teacher, and the student’s training passes. A backward "
         "pass is counted as 1 forward (the convention of the UNIX paper) or as 2 (nearer to what it takes). "
         "Evaluation is not counted. A stored answer of the teacher costs the run that asked for it, and nothing "
         "after that: what a run costs depends on what the runs before it have stored."),
        ("Seconds", "Measured on the machine named above. Less computation need not be less time: scoring "
         "adds a pass, and small batches use a machine less well."),
        ("Hard", "An image that the student got wrong at the moment it was kept or dropped."),
        ("Histograms", "Images of one epoch by their score, as shares of all its images that have one, mean over the "
         "runs. Scores beyond the range are counted in the outermost bins. Entropy ends at log C, a guess among C "
         "classes; a loss has no end and is cut off."),
        ("Short names", "Charts write the paper’s symbols: k for keep (k/N), b for mix_from (b/N), w for "
         "steepness."),
        ("Mixed most strongly", "Images whose own rows gave most to their partners, summed over the run: sure enough "
         "to be mixed, unsure enough to be kept. Partners are drawn at random, and what an image gave as one is not "
         "counted."),
    ]  # fmt: skip
    cells = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines]
    return section("How to read this", f"<dl>{''.join(cells)}</dl>")


def _reference(run: Run) -> str:
    epochs, images = run.reference
    if epochs is None or images is None:
        return ""
    return f"plain KD for {epochs} epochs of {count(images)} images"


def _calibration(group: Group) -> str:
    spread = group.spread(lambda run: run.calibration_error)
    return "" if spread is None else f"{group.method} {spread.mean:.3f}"


def _holdout(run: Run) -> bool:
    data = run.config.get("data")
    return isinstance(data, dict) and bool(data.get("holdout"))


def _distinct(values: object) -> str:
    return ", ".join(filter(None, dict.fromkeys(values)))  # type: ignore[call-overload]
