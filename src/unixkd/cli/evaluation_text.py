"""An evaluation on the terminal, at most 80 columns wide but for the names of folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from unixkd.cli.screen import console, new_table, say
from unixkd.errors import shown
from unixkd.names import plural
from unixkd.report.evaluation import PAIRS_KEPT, Evaluation, Quality
from unixkd.report.evaluation_rows import (
    Row,
    class_headers,
    class_rows,
    curve_rows,
    pair_row,
    remarks,
    roles,
    shown_classes,
    summary,
)

CLASS_WIDTH, NAME_WIDTH = 24, 28
"""Columns of a class's name, whose letters may be two wide, and of other names: the figures need the rest of 80."""
PAIRS = 10


def say_evaluation(found: Evaluation) -> None:
    """Print the figures: a line for programs and hurried people, then tables."""
    say(first_line(found))
    print_table(["", *roles(found)], summary(found), width=NAME_WIDTH)
    for line in remarks(found):
        console.print(shown(line))
    if found.student.quality is not None:
        say_quality(found, found.student.quality)


def first_line(found: Evaluation) -> str:
    """Which network on which data, and its accuracy and calibration, or its agreement with the teacher."""
    line = f"{found.student.source}: {found.student.name} on {found.images:,} images of {found.data}"
    if (quality := found.student.quality) is not None:
        rows = {name: cells[0] for name, *cells in summary(found)}
        line += f": accuracy {rows['accuracy (top-1)']}"
        if quality.calibration_error is not None:
            line += f", calibration error {rows['calibration error']}"
    if found.teacher is not None:
        line += f"; teacher: {found.teacher.name}, {found.teacher.source}"
    return line


def say_quality(found: Evaluation, quality: Quality) -> None:
    """Print the classes, the pairs that are most confused, and the calibration curve."""
    classes = shown_classes(quality)
    if left := len(quality.classes) - len(classes):
        console.print(f"\nThe {len(classes)} worst classes by F1; {plural(left, 'other')}: --json, --html")
    print_table(class_headers(found), class_rows(found, classes))
    if pairs := quality.confused[:PAIRS]:
        rows = [pair_row(found, pair, quality) for pair in pairs]
        print_table(["class", "taken for", "images", "of the class"], rows, left=(0, 1))
        rest = sum(pair.images for pair in quality.confused[PAIRS:])
        if rest:
            least = "at least " * (len(quality.confused) == PAIRS_KEPT)
            console.print(f"and {least}{plural(rest, 'image')} of pairs less confused")
    if rows := curve_rows(quality):
        print_table(["confidence", "images", "mean confidence", "accuracy"], rows)


def print_table(
    headers: Sequence[str], rows: Iterable[Row], left: Sequence[int] = (0,), width: int = CLASS_WIDTH
) -> None:
    """Print rows of cells; names are shown as everywhere, and cut to so many columns."""
    table = new_table(*(shortened(header, width) for header in headers), left=left)
    for row in rows:
        table.add_row(*(shortened(cell, width) for cell in row))
    console.print(table)


def shortened(text: str, width: int) -> str:
    """A name as one line, cut where it is wide.

    >>> shortened("a spider that is large indeed", 24)
    'a spider that is large …'
    """
    name = Text(shown(text))
    name.truncate(width, overflow="ellipsis")
    return name.plain
