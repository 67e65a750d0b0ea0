"""Seconds of steps and of other calls, timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from unixkd.distiller import Distiller
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.method import Method
from unixkd.method.network import Network
from unixkd.method.resizing import Size, shrunk_share
from unixkd.models.card import PixelModel

K = TypeVar("K")


@dataclass(frozen=True)
class Step:
    """A step to time; steps of different methods that take the same time are equal.

    Args:
        method: without what does not change a step's time; None: the teacher's forward on a whole batch, nothing else
        stored: whether the teacher's answers to unmixed images come with the batch
    """

    method: Method | None
    stored: bool = False


TEACHER_FORWARD = Step(None)


def step_of(method: Method, size: Size, *, stored: bool = False) -> Step:
    """The step of a method.

    Args:
        method: as it is at some epoch
        size: height and width of the images
        stored: whether the teacher's answers to unmixed images are stored
    """
    share = shrunk_share(size[0], method.size)
    return Step(replace(method, name="", choice=None, ramp=None, size=share), stored)


def random_batch(student: PixelModel, rows: int, size: int) -> Batch:
    """Random pixels and labels to time steps on, on the student's device.

    Args:
        student: says how many channels and classes there are
        rows: N
        size: side of the images in pixels
    """
    device = next(student.parameters()).device
    pixels = torch.rand(rows, student.card.in_channels, size, size, device=device)
    labels = torch.randint(student.card.num_classes, (rows,), device=device)
    return Batch(pixels.to(memory_format=torch.channels_last), labels)


def time_steps(
    teacher: PixelModel,
    student: PixelModel,
    steps: Iterable[Step],
    batch: Batch,
    rounds: int,
    dtypes: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
) -> dict[Step, list[float]]:
    """Seconds of every step in each round; a step is its forwards and its backward, without optimiser or loading.

    Args:
        teacher: the teacher
        student: the student, in train mode
        steps: to time, each once however often it is named
        batch: images to time on; its size is the configured batch size
        rounds: after one that warms up, ≥ 1
        dtypes: precision of the student's and of the teacher's forwards by autocast, see `Distiller`
    """
    network = Network(teacher.requires_grad_(False).eval(), dtype=dtypes[1])

    def ask_teacher() -> torch.Tensor:
        with torch.no_grad():
            return network(batch.images).logits.float()

    steps = dict.fromkeys(steps)
    answers = ask_teacher() if any(step.stored for step in steps) else None
    calls: dict[Step, Callable[[], object]] = {}
    for step in steps:
        if step.method is None:
            calls[step] = ask_teacher
            continue
        distiller = Distiller(
            *(student, teacher, step.method),
            batch_size=len(batch),
            student_dtype=dtypes[0],
            teacher_dtype=dtypes[1],
        )
        calls[step] = _step_call(distiller, replace(batch, answers=answers if step.stored else None))
    return interleaved(calls, rounds, batch.images.device)


def _step_call(distiller: Distiller, batch: Batch) -> Callable[[], None]:
    draws = make_draws(
        len(batch),
        seed=0,
        step=0,
        per_sample_lambda=distiller.method.per_sample_lambda,
        device=batch.images.device,
    )

    def call() -> None:
        distiller.run(batch, draws).loss.backward()
        distiller.student.module.zero_grad(set_to_none=True)  # a run's steps make their gradients anew too

    return call


def interleaved(
    calls: Mapping[K, Callable[[], object]], rounds: int, device: torch.device
) -> dict[K, list[float]]:
    """Seconds of each call in each round; every other round runs them in reverse, so that none always comes first.

    Args:
        calls: by any key
        rounds: after one that warms up
        device: where they run; its queue is waited for
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
