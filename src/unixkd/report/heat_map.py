"""The confusion matrix as a picture: the numbers of an `<svg>` element, whose colours are the page's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unixkd.report.evaluation import NO_ANSWER, Answers, Confused, Evaluation, Quality

MOST = 20
"""Classes that are shown; of more, those that are most confused."""
CELL, LETTER, LONGEST, GAP = 30, 8.0, 18, 8
"""Pixels: side of a cell, width of a letter; letters of a name; pixels between names and cells."""
PALE = 0.7
"""Share of a class up to which a cell's number is in the page's ink, and above it in the colour of its ground."""


@dataclass(frozen=True)
class Cell:
    """One pair of classes: where it is drawn, how dark in [0, 1], its number (empty: 0) and what it means."""

    x: float
    y: float
    share: float
    text: str
    words: str

    @property
    def ink(self) -> str:
        """The colour of its number."""
        return "card" if self.share > PALE else "ink"


@dataclass(frozen=True)
class HeatMap:
    """What is drawn; names stand left of the rows and, turned, above the columns."""

    names: list[str]
    cells: list[Cell]
    margin: float  # of the names, on both sides
    cell: int
    classes: int  # of which these are the most confused

    @property
    def side(self) -> float:
        """Width and height."""
        return self.margin + self.cell * len(self.names) + 1


def heat_map(found: Evaluation, quality: Quality, answers: Answers) -> HeatMap | None:
    """The matrix of all classes, or of those that are most confused; None where none of many is."""
    shown = chosen_classes(len(found.class_names), quality.confused)
    if not shown or answers.labels is None:
        return None
    counts = counted(answers.labels, answers.student, shown)
    names = [found.class_names[i] for i in shown]
    labels = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    margin = LETTER * max(map(len, labels)) + 2 * GAP
    cells = []
    for row, actual in enumerate(shown):
        images = quality.classes[actual].images
        for column, number in enumerate(counts[row].tolist()):
            share = number / images if images else 0.0
            words = f"{names[row]} taken for {names[column]}: {number} of {images}"
            text = f"{number}" if number else ""
            cells.append(Cell(margin + CELL * column, margin + CELL * row, share, text, words))
    return HeatMap(labels, cells, margin, CELL, len(found.class_names))


def chosen_classes(classes: int, confused: Sequence[Confused]) -> list[int]:
    """All classes where they are few, else those of the most confused pairs, in their order.

    >>> chosen_classes(30, [Confused(actual=7, predicted=2, images=3)])
    [2, 7]
    """
    if classes <= MOST:
        return list(range(classes))
    found = dict.fromkeys(number for pair in confused for number in (pair.actual, pair.predicted))
    return sorted(list(found)[:MOST])


def counted(labels: NDArray[np.int64], said: NDArray[np.int64], shown: list[int]) -> NDArray[np.int64]:
    """Images by class and by the class that was named, of these classes only.

    >>> counted(np.array([0, 0, 5]), np.array([5, 0, 1]), [0, 5]).tolist()
    [[1, 1], [0, 0]]
    """
    place = {number: i for i, number in enumerate(shown)}
    counts = np.zeros((len(shown), len(shown)), dtype=np.int64)
    kept = np.isin(labels, shown) & np.isin(said, shown) & (said != NO_ANSWER)
    for actual, named in zip(labels[kept].tolist(), said[kept].tolist(), strict=True):
        counts[place[actual], place[named]] += 1
    return counts
