"""Seconds of steps and of other calls, timed on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch

from unixkd.distiller import Distiller
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.ledger import Ledger
from unixkd.method.method import Method
from unixkd.method.network import Network
from unixkd.method.resizing import Size, image_size, shrunk_share
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
    """The step of a method as it is at some epoch, on images of this height and width."""
    share = shrunk_share(size[0], method.size)
    return Step(replace(method, name="", choice=None, ramp=None, size=share), stored)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, and images to time their steps on; the precision is that of `Distiller`."""

    teacher: PixelModel
    student: PixelModel  # in train mode
    batch: Batch  # its number of images is the configured batch size
    student_dtype: torch.dtype | None = None
    teacher_dtype: torch.dtype | None = None

    @classmethod
    def on_random_pixels(cls, teacher: PixelModel, student: PixelModel, rows: int, size: int) -> Pair:
        """A pair with random images of size × size pixels and random labels, on the student's device."""
        device = next(student.parameters()).device
        pixels = torch.rand(rows, student.card.in_channels, size, size, device=device)
        labels = torch.randint(student.card.num_classes, (rows,), device=device)
        return cls(teacher, student, Batch(pixels.to(memory_format=torch.channels_last), labels))

    @property
    def size(self) -> Size:
        """Height and width of the images."""
        return image_size(self.batch.pixels)

    @cached_property
    def ledger(self) -> Ledger:
        """An empty ledger with both networks' forward FLOPs."""
        return Ledger.of(self.student, self.teacher, (self.batch.pixels.shape[1], *self.size))


def time_steps(pair: Pair, steps: Iterable[Step], rounds: int) -> dict[Step, list[float]]:
    """Seconds of every step in each round (≥ 1): its forwards and its backward, without optimiser or loading."""
    batch = pair.batch
    teacher = Network(pair.teacher.requires_grad_(False).eval(), dtype=pair.teacher_dtype)

    def ask_teacher() -> torch.Tensor:
        with torch.no_grad():
            return teacher(batch.images).logits.float()

    steps = dict.fromkeys(steps)
    answers = ask_teacher() if any(step.stored for step in steps) else None
    calls: dict[Step, Callable[[], object]] = {}
    for step in steps:
        if step.method is None:
            calls[step] = ask_teacher
            continue
        distiller = Distiller(
            *(pair.student, pair.teacher, step.method),
            batch_size=len(batch),
            student_dtype=pair.student_dtype,
            teacher_dtype=pair.teacher_dtype,
        )
        calls[step] = _step_call(distiller, replace(batch, answers=answers if step.stored else None))
    return interleaved(calls, rounds, batch.images.device)


def _step_call(distiller: Distiller, batch: Batch) -> Callable[[], None]:
    per_sample = distiller.method.per_sample_lambda
    draws = make_draws(len(batch), seed=0, step=0, per_sample_lambda=per_sample, device=batch.images.device)

    def call() -> None:
        distiller.run(batch, draws).loss.backward()
        distiller.student.module.zero_grad(set_to_none=True)  # a run's steps make their gradients anew too

    return call


def interleaved(
    calls: Mapping[K, Callable[[], object]], rounds: int, device: torch.device
) -> dict[K, list[float]]:
    """Seconds of each call on a device in each round after one that warms up.

    Every other round runs the calls in reverse, so that none always comes first.
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


def median_and_ratio(seconds: Sequence[float], kd_seconds: Sequence[float]) -> tuple[float, float]:
    """The median, and that of the ratios to plain KD's seconds in the same rounds."""
    ratios = (ours / theirs for ours, theirs in zip(seconds, kd_seconds, strict=True))
    return statistics.median(seconds), statistics.median(ratios)


def synchronize(device: torch.device) -> None:
    """Wait for what the caller has queued on an accelerator; on a GPU only for its own stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
