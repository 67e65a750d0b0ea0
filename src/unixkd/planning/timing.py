"""Seconds of steps and of their parts, timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from unixkd.distiller import Distiller
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.losses import KD, CrossEntropy
from unixkd.method.method import Method
from unixkd.method.objective import Objective, Term
from unixkd.method.resizing import Size, shrunk_share
from unixkd.method.unix import kd
from unixkd.models.card import PixelModel
from unixkd.planning.expected import Phase

TEACHER = "teacher"
"""The key of the teacher's forward on a whole batch."""


@dataclass(frozen=True)
class Step:
    """A step that is timed; those of different ways that take the same time are equal.

    Args:
        method: without what does not change a step's time
        answered: whether the answers to images as they are come with the batch
    """

    method: Method
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
    return Step(replace(method, name="", choice=None, ramp=None, size=share), answered)


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
    inputs = replace(batch, answers=batch.answers if step.answered else None)

    def call() -> None:
        distiller.run(inputs, draws).loss.backward()
        student.zero_grad(set_to_none=True)  # as before each step of a run: gradients are made anew

    return call


def interleaved(
    calls: Mapping[K, Callable[[], object]], rounds: int, device: torch.device
) -> dict[K, list[float]]:
    """Seconds of each call in each round; they take turns, in reverse order in every other round.

    Args:
        calls: by any key
        rounds: after one that warms up
        device: where they run, which is waited for
    """
    seconds: dict[K, list[float]] = {key: [] for key in calls}
    for round_number in range(rounds + 1):
        for key in list(calls) if round_number % 2 else reversed(list(calls)):
            synchronize(device)
            started = time.perf_counter()
            calls[key]()
            synchronize(device)
            if round_number:
                seconds[key].append(time.perf_counter() - started)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait for what the caller has queued on an accelerator; on a GPU only for its own stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def time_steps(
    teacher: PixelModel,
    student: PixelModel,
    methods: Sequence[Method],
    batch: Batch,
    rounds: int,
    dtypes: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
) -> dict[str, list[float]]:
    """Seconds of each method's step (forwards and backward, no optimiser), plain KD included.

    The methods take turns, see `interleaved`, so that none always follows the same one.
    """
    by_name = {method.name: method for method in methods}
    by_name.setdefault("kd", kd())
    distillers = {
        name: Distiller(
            student,
            teacher,
            replace(method.at(0.5), choice=None),  # halfway; a step is one, whichever images are in it
            timing_objective(method, batch),
            student_dtype=dtypes[0],
            teacher_dtype=dtypes[1],
        )
        for name, method in by_name.items()
    }

    def step(name: str) -> None:
        distillers[name].step(batch.pixels, batch.labels).loss.backward()
        student.zero_grad(set_to_none=True)  # as before each step of a run: gradients are made anew

    return interleaved({name: partial(step, name) for name in by_name}, rounds, batch.pixels.device)


def timing_objective(method: Method, batch: Batch) -> Objective:
    """KD, or cross-entropy for a method without a teacher."""
    return [Term("kd", KD())] if method.teacher else [Term("ce", CrossEntropy())]


K = TypeVar("K")
