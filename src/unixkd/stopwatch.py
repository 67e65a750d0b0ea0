"""Seconds of a step as a way to distil takes it, with the teacher asked or its answers at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from unixkd.batch import Batch
from unixkd.distiller import Distiller
from unixkd.draws import make_draws
from unixkd.expected import Phase
from unixkd.methods import Method
from unixkd.models import PixelModel
from unixkd.planner import interleaved
from unixkd.resizing import Size, shrunk_share

TEACHER = "teacher"
"""The key of the teacher's forward on a whole batch."""


@dataclass(frozen=True)
class Step:
    """A step that is timed; those of different ways that take the same time are equal.

    Args:
        method: without what does not change a step's time
        scores: whether it scores; False: the scores come with the batch
        answered: whether the answers to images as they are come with the batch
    """

    method: Method
    scores: bool
    answered: bool


def step_of(phase: Phase, size: Size, *, answered: bool) -> Step:
    """The step of some epochs.

    Args:
        phase: the epochs
        size: height and width of the images
        answered: whether stored answers are at hand
    """
    method = phase.method
    share = shrunk_share(size[0], method.size)
    scoring = replace(method.scoring, every=1, batches=1)
    plain = replace(method, name="", choice=None, ramp=None, size=share, scoring=scoring)
    return Step(plain, phase.scores, answered)


def step_seconds(
    teacher: PixelModel, student: PixelModel, steps: Iterable[Step], batch: Batch, rounds: int
) -> dict[Step | str, list[float]]:
    """Seconds of every step and of the teacher's forward, in each of some rounds in which they take turns.

    A step is its forwards and its backward; cutting the images and the optimiser are left out.

    Args:
        teacher: the teacher
        student: the student, in train mode
        steps: to time, each once however often it is named
        batch: images to time on; its size is the configured batch size
        rounds: after one that warms up, ≥ 1
    """
    asked = Distiller(student, teacher).teacher
    assert asked is not None
    with torch.no_grad():
        logits = asked.network(batch.images).logits.float()
    calls: dict[Step | str, Callable[[], object]] = {
        TEACHER: lambda: torch.no_grad()(asked.network)(batch.images)
    }
    for step in dict.fromkeys(steps):
        calls[step] = _call(teacher, student, step, replace(batch, answers=logits))
    return interleaved(calls, rounds, batch.images.device)


def _call(teacher: PixelModel, student: PixelModel, step: Step, batch: Batch) -> Callable[[], None]:
    distiller = Distiller(student, teacher, step.method, batch_size=len(batch))
    draws = make_draws(
        len(batch),
        seed=0,
        step=0,
        per_sample_lambda=step.method.per_sample_lambda,
        device=batch.images.device,
    )
    given = step.method.scorer is not None and not step.scores
    told = replace(
        batch,
        answers=batch.answers if step.answered else None,
        scores=draws.noise if given else None,
    )

    def call() -> None:
        distiller.run(told, draws).loss.backward()
        student.zero_grad(set_to_none=True)  # as before each step of a run: gradients are made anew

    return call
