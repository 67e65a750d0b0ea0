"""Evaluations made of a few classes and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unixkd.report.evaluation import (
    NO_ANSWER,
    Answers,
    Comparison,
    Evaluation,
    Judged,
    Speed,
    compare,
    quality,
)
from unixkd.training.predictions import calibration_curve, expected_calibration_error

SPEED = Speed(
    images_per_second=1234.5,
    batch_size=64,
    milliseconds=1.5,
    calls=30,
    device="cpu",
    threads=2,
    precision="fp32",
)


def judged(
    said: Sequence[int],
    labels: Sequence[int] | None,
    names: Sequence[str] = (),
    name: str = "resnet8",
    flops: int | None = 1_000_000,
    speed: Speed | None = None,
) -> Judged:
    """A network that says this with a confidence of 0.75."""
    found, right = None, np.array(said)
    if labels is not None:
        kept = right != NO_ANSWER
        sure, correct = torch.full((int(kept.sum()),), 0.75), torch.tensor((right == np.array(labels))[kept])
        curve = [point._asdict() for point in calibration_curve(sure, correct)] if kept.any() else []
        error = expected_calibration_error(sure, correct) if kept.any() else None
        found = quality(np.array(labels), right, right[:, None], names, error, curve)
    return Judged(
        name=name,
        source=f"runs/{name}",
        parameters=77_754,
        megabytes=0.3137,
        flops=flops,
        unanswered=int((right == NO_ANSWER).sum()),
        quality=found,
        speed=speed,
    )


def evaluation(
    labels: Sequence[int] | None,
    student: Sequence[int],
    teacher: Sequence[int] | None = None,
    classes: int = 2,
    names: Sequence[str] | None = None,
    **changes: Any,
) -> Evaluation:
    """An evaluation of these answers; changes: of `judged`."""
    names = [f"c{i}" for i in range(classes)] if names is None else names
    both: Comparison | None = None
    if teacher is not None:
        right = None if labels is None else np.array(labels)
        both = compare(np.array(student), np.array(teacher), right)
    return Evaluation(
        data="folder:photos",
        data_notes=[],
        images=len(student),
        unlabelled=0 if labels else len(student),
        class_names=list(names),
        absent=[i for i in range(len(names)) if i not in labels] if labels else [],
        student=judged(student, labels, names, **changes),
        teacher=None if teacher is None else judged(teacher, labels, names, "wrn_16_2", **changes),
        comparison=both,
    )


def answers(
    labels: Sequence[int] | None, student: Sequence[int], teacher: Sequence[int] | None = None
) -> Answers:
    """The same answers image by image, the surer the later."""
    sure = np.linspace(0.5, 0.9, len(student))
    theirs = (None, None) if teacher is None else (np.array(teacher), sure)
    return Answers(None if labels is None else np.array(labels), np.array(student), sure, *theirs)
