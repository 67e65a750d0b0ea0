"""The page of an evaluation: student and teacher side by side, what is confused, where the two disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from unixkd.errors import UserError
from unixkd.names import NONE, percent, plural, three_digits
from unixkd.report.charts import MUTED, SERIES, Figure, draw, frame, legend_below
from unixkd.report.evaluation import Answers, Evaluation, Judged, Quality
from unixkd.report.evaluation_pictures import Show, confused_pictures, disagreements
from unixkd.report.evaluation_rows import (
    class_headers,
    class_rows,
    curve_rows,
    networks,
    pair_row,
    remarks,
    roles,
    shown_classes,
    summary,
)
from unixkd.report.heat_map import heat_map
from unixkd.report.page import check_page, render, write_html
from unixkd.report.table import PageTable

FEW_CLASSES, WORST = 100, 50
"""Classes up to which the page has all, and how many of the worst of more."""
PAIRS = 12


def write_evaluation_page(found: Evaluation, answers: Answers, show: Show, path: Path) -> list[str]:
    """Write the page of an evaluation; what had to be left out of it, in a line each.

    Args:
        found: its figures
        answers: what was said of each image
        show: gives the pixels and the name of an image
        path: the HTML file; missing folders are made

    Raises:
        UserError: the file is there and no report, or it cannot be written
    """
    check_page(path)
    text, left_out = evaluation_page(found, answers, show)
    write_html(path, text)
    return left_out


def evaluation_page(found: Evaluation, answers: Answers, show: Show) -> tuple[str, list[str]]:
    """The HTML, and what is left out; see `write_evaluation_page`."""
    quality, left_out = found.student.quality, list[str]()
    text = render(
        "evaluation.html.j2",
        title=f"Evaluation: {found.student.source}",
        headline=headline(found),
        counted=[
            found.data,
            plural(found.images, "image"),
            f"{len(found.class_names):,} classes",
        ],
        answers=boxes(found),
        notes=found.data_notes,
        summary=PageTable(
            "Student and teacher" if found.teacher else "Figures", ["", *roles(found)], summary(found)
        ),
        remarks=list(remarks(found)),
        calibration=calibration(found, left_out),
        confusion=None if quality is None else confusion(found, quality, answers, show),
        disagreement=disagreements(found, answers, show),
        classes=None if quality is None else classes(found, quality),
    )
    return text, left_out


def headline(found: Evaluation) -> str:
    """What was found, in a sentence."""
    name, quality = found.student.name, found.student.quality
    if quality is not None:
        line = f"{name} is right on {percent(quality.accuracy)} of the images"
        if found.teacher is None or found.teacher.quality is None:
            return f"{line}."
        return f"{line}, its teacher {found.teacher.name} on {percent(found.teacher.quality.accuracy)}."
    if found.comparison is not None and found.teacher is not None:
        agreement = percent(found.comparison.agreement)
        return f"{name} says what its teacher {found.teacher.name} says on {agreement} of the images."
    return f"{name}: there are no labels and no teacher to judge it by."


Box = tuple[str, str, Sequence[str]]
"""A question, its answer in a few characters, and the lines below it."""


def boxes(found: Evaluation) -> list[Box]:
    """How good, how fast, how large."""
    teacher = found.teacher

    def beside(value: Callable[[Judged], str]) -> list[str]:
        return [] if teacher is None or value(teacher) == NONE else [f"teacher {value(teacher)}"]

    def accuracy(each: Judged) -> str:
        return NONE if each.quality is None else percent(each.quality.accuracy)

    def speed(each: Judged) -> str:
        return NONE if each.speed is None else f"{three_digits(each.speed.milliseconds)} ms"

    def size(each: Judged) -> str:
        return f"{three_digits(each.megabytes)} MB"

    quality, spent, both = found.student.quality, found.student.speed, found.comparison
    good = accuracy(found.student), beside(accuracy)
    if quality is not None:
        good[1].insert(0, f"balanced over classes {percent(quality.balanced_accuracy)}")
    elif both is not None:
        good = percent(both.agreement), ["agreement with the teacher: there are no labels"]
    fast = ["nothing was timed"]
    if spent is not None:
        rate = three_digits(spent.images_per_second)
        fast = ["one image at a time", f"{rate} images per second, {spent.batch_size} at once"]
    weights = [f"{found.student.parameters:,} parameters in fp32"]
    return [
        ("How good?", *good),
        ("How fast?", speed(found.student), [*fast, *beside(speed)]),
        ("How large?", size(found.student), [*weights, *beside(size)]),
    ]


def calibration(found: Evaluation, left_out: list[str]) -> dict[str, Any] | None:
    """The reliability curve and its numbers; a chart that cannot be drawn is left out, and said to be."""
    judged = [(role, each.quality) for role, each in zip(roles(found), networks(found), strict=True)]
    known = [(role, quality) for role, quality in judged if quality is not None and quality.calibration_curve]
    if not known:
        return None
    figures: list[Figure] = []
    try:
        figures = [
            Figure(reliability(known), "How often right", "by confidence"),
            Figure(how_sure(known), "How sure", "images by confidence"),
        ]
    except UserError as why:  # matplotlib is not installed
        left_out.append(f"The reliability curve is left out: {why}")
    headers = ["confidence", "images", "mean confidence", "accuracy"]
    tables = [PageTable(f"Calibration of {role}", headers, curve_rows(quality)) for role, quality in known]
    errors = [f"{role} {percent(quality.calibration_error)}" for role, quality in known]
    return {"figures": figures, "tables": tables, "errors": ", ".join(errors), "left_out": left_out}


def reliability(known: Sequence[tuple[str, Quality]]) -> Markup:
    """Accuracy over confidence, a line for each network."""

    def plot(axes: Any) -> None:
        (ideal,) = axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        lines = lines_of(axes, known, lambda point, quality: point["accuracy"])
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 104)
        frame(axes, "right, %", "confidence, %")
        legend_below(axes, [*lines, (ideal, "as sure as right")])

    errors = (f"{role}: calibration error {percent(quality.calibration_error)}" for role, quality in known)
    return draw(plot, "reliability", "Share of right answers by confidence", ", ".join(errors))


def how_sure(known: Sequence[tuple[str, Quality]]) -> Markup:
    """Share of the images over confidence, a line for each network."""

    def share(point: Mapping[str, float], quality: Quality) -> float:
        return point["images"] / sum(each["images"] for each in quality.calibration_curve)

    def plot(axes: Any) -> None:
        lines = lines_of(axes, known, share)
        axes.set_xlim(0, 102)
        axes.set_ylim(bottom=0)
        frame(axes, "images, %", "confidence, %")
        legend_below(axes, lines)

    tops = [
        (role, max(quality.calibration_curve, key=lambda point: point["images"])) for role, quality in known
    ]
    most = (f"{role}: most images at {percent(point['confidence'])}" for role, point in tops)
    return draw(plot, "sure", "Share of the images by confidence", ", ".join(most))


def lines_of(
    axes: Any,
    known: Sequence[tuple[str, Quality]],
    height: Callable[[Mapping[str, float], Quality], float],
) -> list[tuple[Any, str]]:
    """A line for each network through its bins, in per cent, and what it is called."""
    shown = []
    for (role, quality), colour, marker in zip(known, SERIES, "os", strict=False):
        x = [100 * point["confidence"] for point in quality.calibration_curve]
        y = [100 * height(point, quality) for point in quality.calibration_curve]
        shown += [(line, role) for line in axes.plot(x, y, color=colour, marker=marker, markersize=5)]
    return shown


def confusion(found: Evaluation, quality: Quality, answers: Answers, show: Show) -> dict[str, Any]:
    """The heat map, the pairs, and what they look like."""
    pairs = (pair_row(found, pair, quality) for pair in quality.confused[:PAIRS])
    rows = [(f"{actual}, taken for {said}", *cells) for actual, said, *cells in pairs]
    headers = ["", "images", "of the class"]
    return {
        "map": heat_map(found, quality, answers),
        "table": PageTable("The most confused pairs", headers, rows) if rows else None,
        "pictures": confused_pictures(found, quality, answers, show),
    }


def classes(found: Evaluation, quality: Quality) -> dict[str, Any]:
    """The table of classes: all, or the worst of many."""
    rows = shown_classes(quality, FEW_CLASSES, WORST)
    return {
        "table": PageTable(
            "Every class" if len(rows) == len(quality.classes) else "The worst classes",
            class_headers(found),
            class_rows(found, rows),
        ),
        "left": len(quality.classes) - len(rows),
        "shown": len(rows),
    }
