"""Seconds of steps and of other calls, timed on this machine."""

from __future__ import annotations

import math
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
from unixkd.names import phase

K = TypeVar("K")
PIXELS = 32 * 32 * 32
"""That are timed at once on a CPU, in as many images as have them: larger images fill it in smaller numbers."""


def timed_rows(rows: int, size: Size, least: int) -> int:
    """How many images of a batch to time at once on a CPU.

    >>> timed_rows(64, (32, 32), 4), timed_rows(64, (224, 224), 4), timed_rows(64, (8, 8), 4)
    (32, 4, 64)
    """
    return min(rows, max(least, PIXELS // (size[0] * size[1])))


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
    """A teacher and a student, and images to time their steps on.

    Args:
        teacher: the teacher
        student: the student, in train mode
        batch: images that are timed at once
        student_dtype: precision, as `Distiller` has it
        teacher_dtype: of the teacher
        scale: images of a run's step over those of the batch; it is taken to take so many times longer
        limit: seconds after which no further round is timed; one always is
        record: makes of a step what repeats it, as a CUDA graph does; None: steps run eagerly
    """

    teacher: PixelModel
    student: PixelModel
    batch: Batch
    student_dtype: torch.dtype | None = None
    teacher_dtype: torch.dtype | None = None
    scale: float = 1.0
    limit: float = math.inf
    record: Callable[[Callable[[], None]], Callable[[], None]] | None = None

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


@phase("timing steps")
def time_steps(pair: Pair, steps: Iterable[Step], rounds: int) -> dict[Step, list[float]]:
    """Seconds of every step of a run in each round: its forwards and its backward, without optimiser or loading.

    There are as many rounds (≥ 1) as asked for, or as fit the pair's limit. On a CPU steps are compared by CPU time,
    which other processes hardly change, as shares of the time that all took on the wall. What records steps does not
    record the teacher's own forward: a run asks it eagerly, ahead of an epoch.
    """
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
        call = _step_call(distiller, replace(batch, answers=answers if step.stored else None))
        calls[step] = call if pair.record is None else pair.record(call)
    on_cpu = batch.images.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    wall, begun = time.perf_counter(), clock()
    timed = interleaved(calls, rounds, batch.images.device, limit=pair.limit, clock=clock)
    scale = pair.scale * (time.perf_counter() - wall) / (clock() - begun)
    return {step: [scale * each for each in seconds] for step, seconds in timed.items()}


def _step_call(distiller: Distiller, batch: Batch) -> Callable[[], None]:
    per_sample = distiller.method.per_sample_lambda
    draws = make_draws(len(batch), seed=0, step=0, per_sample_lambda=per_sample, device=batch.images.device)

    def call() -> None:
        distiller.run(batch, draws).loss.backward()
        distiller.student.module.zero_grad(set_to_none=True)  # a run's steps make their gradients anew too

    return call


def interleaved(
    calls: Mapping[K, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    limit: float = math.inf,
    least: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[K, list[float]]:
    """Seconds of each call on a device in each round after one that warms up.

    Every other round runs the calls in reverse, so that none always comes first.

    Args:
        calls: what is timed
        rounds: how many, at least 1
        device: waited for before and after each call
        limit: seconds on the wall; no round that would go beyond them is begun
        least: rounds that are timed all the same; with 0 the first one counts where there is no other
        clock: seconds by it
    """
    seconds: dict[K, list[float]] = {key: [] for key in calls}
    begun = time.perf_counter()
    for done in range(rounds + 1):
        for key in list(calls) if done % 2 else reversed(list(calls)):
            synchronize(device)
            started = clock()
            calls[key]()
            synchronize(device)
            seconds[key].append(clock() - started)
        taken = time.perf_counter() - begun
        if done >= least and taken * (done + 2) / (done + 1) > limit:
            break
    return {key: each[1:] or each for key, each in seconds.items()}


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
