"""Images of a run for its report: those kept often and rarely, and those on which student and teacher disagree.

A report needs no data set: small pictures are written into the run folder.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from unixkd.data.disk import DiskSplit
from unixkd.data.load import Data
from unixkd.data.split import Split
from unixkd.data.thumbnails import encoded
from unixkd.run_files import Disagreement, Disagreements, Picture, Selection, TimesKept
from unixkd.training.epoch_stats import MIXED_UNIT, EpochStats
from unixkd.training.predictions import Predictions

NUM_THUMBNAILS = 16
"""Pictures of a kind."""


def selection(tally: EpochStats, epochs: int, data: Data) -> Selection:
    """How often the training images were kept; those kept most and least, and those mixed most strongly."""
    times, mixed = tally.times_kept.cpu(), tally.mixed.cpu()
    order, by_mixing = (torch.argsort(t, descending=True, stable=True) for t in (times, mixed))
    images = torch.bincount(times.long(), minlength=epochs + 1).tolist()

    def picture(index: int) -> Picture:
        return Picture(
            index=index,
            label=label_of(data.train, index, data),
            file=file_of(data.train, index),
            times=int(times[index]),
            mixed=int(mixed[index]) / MIXED_UNIT,
            **encoded(data.train.image(index)),
        )

    def pictures(indices: Tensor) -> tuple[Picture, ...]:
        return tuple(picture(int(i)) for i in indices[:NUM_THUMBNAILS])

    return Selection(
        epochs=epochs,
        histogram=TimesKept(times_kept=tuple(range(len(images))), images=tuple(images)),
        most_kept=pictures(order),
        least_kept=pictures(order.flip(0)),
        most_mixed=pictures(by_mixing[mixed[by_mixing] > 0]),
    )


def disagreements(student: Predictions, teacher: Predictions, data: Data) -> Disagreements:
    """The evaluation images on which student and teacher say different classes, those of which the teacher is right
    first; among these the ones of which both are most certain.

    Both have answered all of them, in the split's order.
    """
    assert data.test is not None
    differ = student.classes != teacher.classes
    certain = student.confidence.double() * teacher.confidence.double()
    teacher_right = student_right = torch.zeros_like(differ)
    if student.labels is not None:
        teacher_right, student_right = (
            differ & (each.classes == student.labels) for each in (teacher, student)
        )
    rank = 2 - 2 * teacher_right.int() - student_right.int()  # the teacher is right, the student, neither
    places = differ.nonzero().flatten().tolist()
    places.sort(key=lambda i: (int(rank[i]), -float(certain[i].nan_to_num(0.0)), i))

    def shown(i: int) -> Disagreement:
        assert data.test is not None
        return Disagreement(
            index=i,
            label=label_of(data.test, i, data),
            file=file_of(data.test, i),
            student=class_name(int(student.classes[i]), data),
            student_confidence=share(student.confidence[i]),
            teacher=class_name(int(teacher.classes[i]), data),
            teacher_confidence=share(teacher.confidence[i]),
            **encoded(data.test.image(i)),
        )

    labelled = student.labels is not None
    return Disagreements(
        images=len(student),
        differ=len(places),
        teacher_right=int(teacher_right.sum()) if labelled else None,
        student_right=int(student_right.sum()) if labelled else None,
        shown=tuple(shown(i) for i in places[:NUM_THUMBNAILS]),
    )


def share(value: Tensor) -> float | None:
    """A probability, to four digits; None where it is not finite."""
    return min(1.0, max(0.0, round(value.item(), 4))) if value.isfinite() else None


def label_of(split: Split, index: int, data: Data) -> str | None:
    """The name of an image's class; None where it has none."""
    number = -1 if split.labels is None else int(split.labels[index])
    return None if number < 0 else class_name(number, data)


def class_name(number: int, data: Data) -> str:
    """What a class is called."""
    names = data.class_names
    return names[number] if names and number < len(names) else str(number)


def file_of(split: Split, index: int) -> str | None:
    """The name of an image's file without its folders, which are nobody else's business; None in memory."""
    return PurePath(split.records.name(index)).name if isinstance(split, DiskSplit) else None


def record(value: Selection | Disagreements) -> dict[str, Any]:
    """A record for JSON, pictures without the fields that they lack."""
    optional = ("file", "png", "jpeg")

    def pruned(each: Any) -> Any:
        if isinstance(each, dict):
            return {k: pruned(v) for k, v in each.items() if v is not None or k not in optional}
        return [pruned(v) for v in each] if isinstance(each, list | tuple) else each

    pruned_record: dict[str, Any] = pruned(asdict(value))
    return pruned_record
