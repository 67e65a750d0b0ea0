"""Seconds of the parts of a step on this machine, each by itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unixkd.batch import Batch
from unixkd.distill import score
from unixkd.distiller import Distiller
from unixkd.draws import make_draws
from unixkd.methods import kd
from unixkd.models import PixelModel
from unixkd.planner import interleaved
from unixkd.resizing import Size
from unixkd.scoring_pass import AS_PUBLISHED
from unixkd.step_parts import Part


def part_seconds(
    teacher: PixelModel,
    student: PixelModel,
    parts: Sequence[Part],
    size: Size,
    rounds: int,
    *,
    most_rows: int | None = None,
    dtype: torch.dtype | None = None,
) -> dict[Part, float]:
    """Median seconds of each part over some rounds in which all take turns, on random pixels.

    Args:
        teacher: the teacher
        student: the student, in train mode; its weights stay as they are
        parts: to time
        size: height and width of whole images
        rounds: after one that warms up, ≥ 1
        most_rows: that are timed at once; more are taken to take as much longer. None: any number
        dtype: precision of both networks by autocast; None: as their weights
    """
    timed = {part: limited(part, most_rows) for part in parts}
    calls = part_calls(teacher, student, list(dict.fromkeys(timed.values())), size, dtype)
    device = next(student.parameters()).device
    seconds = {part: statistics.median(found) for part, found in interleaved(calls, rounds, device).items()}
    return {part: seconds[own] * max(1, part.rows) / max(1, own.rows) for part, own in timed.items()}


def limited(part: Part, most_rows: int | None) -> Part:
    """The part on so many rows at most.

    >>> [limited(part, 32).rows for part in (Part("teacher", 256), Part("teacher", 24), Part("optimizer"))]
    [32, 24, 0]
    """
    return part if most_rows is None else Part(part.kind, min(part.rows, most_rows), part.size)


def part_calls(
    teacher: PixelModel,
    student: PixelModel,
    parts: Sequence[Part],
    size: Size,
    dtype: torch.dtype | None = None,
) -> dict[Part, Callable[[], object]]:
    """What does each part once."""
    distiller = Distiller(student, teacher, kd(), student_dtype=dtype, teacher_dtype=dtype)
    assert distiller.teacher is not None
    asked, device = distiller.teacher.network, next(student.parameters()).device

    def pixels(part: Part) -> Tensor:
        images = torch.rand(part.rows, student.card.in_channels, *(part.size or size), device=device)
        return images.to(memory_format=torch.channels_last)

    def call(part: Part) -> Callable[[], object]:
        if part.kind == "optimizer":
            return updates(student)
        images = pixels(part)
        if part.kind == "teacher":
            return lambda: torch.no_grad()(asked)(images)
        if part.kind == "scoring":
            return lambda: score(distiller.student, images, AS_PUBLISHED)
        return trains(distiller, images, teacher.card.num_classes)

    return {part: call(part) for part in parts}


def trains(distiller: Distiller, images: Tensor, classes: int) -> Callable[[], None]:
    """Plain KD's forward, loss and backward, with the teacher's answers at hand."""
    answers = torch.randn(len(images), classes, device=images.device)
    batch = Batch(images, answers=answers)
    draws = make_draws(len(images), seed=0, step=0, per_sample_lambda=False, device=images.device)

    def call() -> None:
        distiller.run(batch, draws).loss.backward()
        distiller.student.module.zero_grad(set_to_none=True)  # as before each step of a run

    return call


def updates(student: PixelModel) -> Callable[[], None]:
    """The step of SGD with momentum; with a rate of 0 the weights stay as they are."""
    parameters = list(student.parameters())
    gradients = [torch.zeros_like(p) for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=5e-4, fused=True)

    def call() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call
