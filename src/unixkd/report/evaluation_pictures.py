"""Which images a page of an evaluation shows: of the most confused pairs, and where student and teacher disagree."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unixkd.names import plural
from unixkd.report.evaluation import NO_ANSWER, Answers, Evaluation, Quality

Show = Callable[[int], tuple[NDArray[np.uint8], str]]
"""The pixels `[H, W, C]` of an image by its position, and what it is called."""
PAIRS, OF_A_PAIR = 8, 6
"""Most confused pairs that are shown, and images of each."""
DISAGREEING = 18
"""Images of each kind of disagreement."""
DOTS, SMALL = 32, 64
"""Pixels of a side up to which they are shown as squares, and up to which a picture is kept as it is, as a PNG."""
SIDE = 160
"""Pixels of a side of larger ones, as JPEGs."""


def confused_pictures(
    found: Evaluation, quality: Quality, answers: Answers, show: Show
) -> list[dict[str, Any]]:
    """Of each of the most confused pairs the images of which the student was surest."""
    labels, rows = answers.labels, []
    for pair in quality.confused[:PAIRS]:
        where = np.flatnonzero((labels == pair.actual) & (answers.student == pair.predicted))
        chosen = surest(where, answers.student_confidence)[:OF_A_PAIR]
        actual, said = found.class_names[pair.actual], found.class_names[pair.predicted]
        title = f"{actual}, taken for {said}: {plural(pair.images, 'image')}"
        rows.append({"title": title, "pictures": [picture(found, answers, show, i) for i in chosen]})
    return rows


def disagreements(found: Evaluation, answers: Answers, show: Show) -> list[dict[str, Any]]:
    """Images for which student and teacher name different classes, by whose answer is right."""
    teacher, labels = answers.teacher, answers.labels
    if teacher is None or answers.teacher_confidence is None:
        return []
    apart = answers.student != teacher
    ours, theirs = answers.student_confidence, answers.teacher_confidence
    kinds = {"They name different classes": (apart, ours + theirs)}
    if labels is not None and found.student.quality is not None:
        known = apart & (labels >= 0)
        right, teacher_right = answers.student == labels, teacher == labels
        kinds = {
            "The teacher is right, the student is wrong": (known & teacher_right, theirs),
            "The student is right, the teacher is wrong": (known & right, ours),
            "Both are wrong, in different ways": (known & ~right & ~teacher_right, ours + theirs),
        }
    rows = []
    for title, (where, confidence) in kinds.items():
        positions = np.flatnonzero(where)
        chosen = surest(positions, confidence)[:DISAGREEING]
        if len(chosen):
            images = plural(len(positions), "image")
            pictures = [picture(found, answers, show, i) for i in chosen]
            rows.append({"title": f"{title}: {images}", "pictures": pictures})
    return rows


def surest(positions: NDArray[np.int64], confidence: NDArray[np.floating]) -> list[int]:
    """Positions by descending confidence; those without one come last.

    >>> surest(np.array([0, 2, 3]), np.array([0.5, 0.1, np.nan, 0.9]))
    [3, 0, 2]
    """
    sure = np.nan_to_num(confidence[positions], nan=-1.0)
    return positions[np.argsort(-sure, kind="stable")].tolist()


def picture(found: Evaluation, answers: Answers, show: Show, i: int) -> dict[str, Any]:
    """An image as the page shows it: its address, its name and classes in words, and two words below it."""
    pixels, name = show(i)

    def said(classes: NDArray[np.int64], confidence: NDArray[np.floating]) -> str:
        if classes[i] == NO_ANSWER:
            return "no answer"
        return f"{found.class_names[classes[i]]} {100 * confidence[i]:.0f} %"

    student = said(answers.student, answers.student_confidence)
    label = -1 if answers.labels is None else int(answers.labels[i])
    actual = found.class_names[label] if label >= 0 else ""
    words = [name, *([f"it is {actual}"] if actual else []), f"student: {student}"]
    below = (actual, student) if actual else (student, name.rpartition("/")[2])
    if answers.teacher is not None and answers.teacher_confidence is not None:
        teacher = said(answers.teacher, answers.teacher_confidence)
        words.append(f"teacher: {teacher}")
        below = below if actual else (student, f"teacher {teacher}")
    side = max(pixels.shape[:2])
    return {
        "address": address(pixels, side <= SMALL),
        "words": ", ".join(words),
        "label": below[0],
        "figure": below[1],
        "pixelated": side <= DOTS,
    }


def address(pixels: NDArray[np.uint8], small: bool) -> str:
    """The picture as an address that holds it: as it is, or at most `SIDE` pixels wide and high."""
    image, buffer = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), io.BytesIO()
    kind = "png" if small else "jpeg"
    if not small:
        image.thumbnail((SIDE, SIDE))
    image.save(buffer, kind, quality=80)  # which a PNG has not
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
