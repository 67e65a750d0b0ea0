"""What each method will cost here, before training: FLOPs in both conventions, a timed step, break-even."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unixkd.batch import Batch
from unixkd.cost import CONVENTIONS, Ledger, break_even_ratio
from unixkd.distiller import Distiller
from unixkd.losses import KD, CrossEntropy
from unixkd.methods import Method, kd
from unixkd.models import PixelModel
from unixkd.objective import Objective, Term

TIMING_NOISE = 0.03
"""A step counts as slower than plain KD's only beyond this share."""


@dataclass(frozen=True)
class MethodPlan:
    """The predicted cost of one method, as shares of plain KD's.

    Args:
        method: the method
        relative: by convention name
        break_even: F_t/F_s below which the method costs more than plain KD, by convention name
        seconds: median seconds of a step, measured here; None where nothing was timed
        relative_seconds: median of the step's time over plain KD's in the same round, times the share of an
            epoch's images that are visited
    """

    method: Method
    relative: dict[str, float]
    break_even: dict[str, float]
    seconds: float | None = None
    relative_seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """A teacher → student pair: forward FLOPs per image and every method's cost."""

    teacher_flops: int
    student_flops: int
    methods: list[MethodPlan]

    @property
    def ratio(self) -> float:
        """F_t/F_s."""
        return self.teacher_flops / self.student_flops

    def warnings(self) -> list[str]:
        """A line for each method that would cost more than plain KD."""
        lines = []
        for plan in self.methods:
            dear = [name for name, cost in plan.relative.items() if cost > 1]
            slow = plan.relative_seconds is not None and plan.relative_seconds > 1 + TIMING_NOISE
            if dear or slow:
                where = [f"in FLOPs ({', '.join(dear)})"] * bool(dear) + ["in seconds on this machine"] * slow
                lines.append(f"{plan.method.name} would cost more than plain KD {' and '.join(where)}")
        return lines


def make_plan(
    teacher: PixelModel,
    student: PixelModel,
    methods: Sequence[Method],
    batch: Batch,
    *,
    epoch_images: int | None = None,
    epochs: int = 240,
    rounds: int = 5,
    student_dtype: torch.dtype | None = None,
    teacher_dtype: torch.dtype | None = None,
) -> Plan:
    """Predict the cost of every method and time its real step.

    Args:
        teacher: the teacher
        student: the student
        methods: what to plan for
        batch: images to time on; its size is the configured batch size
        epoch_images: images of an epoch, whose short last batch is then counted; None: full batches only
        epochs: of the run, over which a method may change how many images it visits
        rounds: timed rounds; in each, every method takes one step, so that drift hits all alike; 0: no timing
        student_dtype: precision of the student's timed forwards by autocast, see `Distiller`
        teacher_dtype: precision of the teacher's
    """
    shape = (batch.images.shape[1], batch.images.shape[2], batch.images.shape[3])
    ledger = Ledger.of(student, teacher, shape)
    dtypes = (student_dtype, teacher_dtype)
    timings = time_steps(teacher, student, methods, batch, rounds, dtypes) if rounds else {}
    sizes, plans = step_sizes(len(batch), epoch_images), []
    for method in methods:
        relative = expected_cost(method, ledger, sizes, epochs)
        seconds, share = timings.get(method.name, []), method.mean_share(epochs)
        against = (
            [share * own / kd for own, kd in zip(seconds, timings["kd"], strict=True)] if seconds else []
        )
        plans.append(
            MethodPlan(
                method,
                relative,
                {name: break_even_ratio(method, backward) for name, backward in CONVENTIONS.items()},
                statistics.median(seconds) if seconds else None,
                statistics.median(against) if against else None,
            )
        )
    return Plan(ledger.teacher_flops, ledger.student_flops, plans)


def expected_cost(method: Method, ledger: Ledger, sizes: Sequence[int], epochs: int) -> dict[str, float]:
    """What a run is expected to cost without stored answers, over plain KD's on all images.

    Args:
        method: which may change from epoch to epoch
        ledger: an empty one with both networks' forward FLOPs
        sizes: of an epoch's batches, a short last one included; the first is the configured size
        epochs: of the run

    >>> from unixkd.methods import random
    >>> expected_cost(random(), Ledger(1, 3), [64], epochs=2)
    {'backward_1x': 0.75, 'backward_2x': 0.75}
    """
    total = dict.fromkeys(CONVENTIONS, 0.0)
    methods = ((method.at(epoch / epochs), method.scoring.now(epoch)) for epoch in range(epochs))
    for (now, scored), same in itertools.groupby(methods):
        one = ledger.emptied()
        for size in sizes:
            counts = now.counts(size, sizes[0], ledger.image_size)
            one.charge(counts if scored else replace(counts, scored=0))
        weight = len(list(same)) / epochs
        total = {name: total[name] + weight * cost for name, cost in one.relative_to_kd().items()}
    share = method.mean_share(epochs)
    return {name: share * cost for name, cost in total.items()}


def step_sizes(batch_size: int, epoch_images: int | None) -> list[int]:
    """The batch sizes of an epoch.

    >>> step_sizes(64, 144)
    [64, 64, 16]
    """
    if epoch_images is None:
        return [batch_size]
    full, rest = divmod(epoch_images, batch_size)
    return [batch_size] * full + [rest] * bool(rest)


def time_steps(
    teacher: PixelModel,
    student: PixelModel,
    methods: Sequence[Method],
    batch: Batch,
    rounds: int,
    dtypes: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
) -> dict[str, list[float]]:
    """Seconds of each method's step (forwards and backward, no optimiser), plain KD included.

    The methods take turns, in reverse order in every other round, so that none always follows the same one.
    """
    by_name = {method.name: method for method in methods}
    by_name.setdefault("kd", kd())
    distillers = {
        name: Distiller(
            student,
            teacher,
            replace(
                method.at(0.5), choice=None, scoring=replace(method.scoring, every=1, batches=1)
            ),  # halfway; a step is one, whichever images are in it
            timing_objective(method, batch),
            student_dtype=dtypes[0],
            teacher_dtype=dtypes[1],
        )
        for name, method in by_name.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in by_name}
    for round_number in range(rounds + 1):
        for name in list(by_name) if round_number % 2 else reversed(by_name):
            synchronize(batch.images.device)
            started = time.perf_counter()
            distillers[name].step(batch.images, batch.labels).loss.backward()
            student.zero_grad(set_to_none=True)  # as before each step of a run: gradients are made anew
            synchronize(batch.images.device)
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    return seconds


def timing_objective(method: Method, batch: Batch) -> Objective:
    """KD, or cross-entropy for a method without a teacher."""
    return [Term("kd", KD())] if method.teacher else [Term("ce", CrossEntropy())]


def synchronize(device: torch.device) -> None:
    """Wait for what the caller has queued on an accelerator; on a GPU only for its own stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
