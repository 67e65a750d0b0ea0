"""How a step's time and memory grow with the batch size and with the number of classes, on a CPU.

Steps of `kd` and `unix` by the trainer that `unixkd distill` runs, resnet20 -> resnet8, with one thread, in bf16
where the processor computes in it, else in fp32; images of 32 pixels for the batch sizes, of 8 for the classes, so
that there the classifiers are much of the work. All sizes take turns in one process; seconds are CPU seconds, the
median over the rounds: with one thread the wall's without what other programs took meanwhile. Bytes are the most
that two steps hold beyond what a process holds before them, for each size in a process of its own.

Targets, nothing grows worse than linearly:
- seconds and bytes per image at the largest batch at most 1.25 times those at the smallest
- what classes add to a step's seconds and bytes at most 1.25 times what they add to the two classifiers, the
  loss and the optimiser by themselves, which are linear in the classes

    python benchmarks/speed/scaling.py           # about 4 minutes on a slow core
    python benchmarks/speed/scaling.py --quick   # small sizes; the targets are not checked
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from unixkd.config import DataConfig, Precision
from unixkd.training.precision import has_native_bf16

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from inputs import make_trainer, unlabelled
from plain_way import our_steps
from timing import interleave

TARGET = 1.25
TEACHER, STUDENT, FEATURES = "resnet20", "resnet8", 64
METHODS = ("kd", "unix")
CLASSIFIERS = "classifiers"
BATCHES, QUICK_BATCHES = (64, 128, 256, 512, 1024), (16, 64)
CLASSES, QUICK_CLASSES = (10, 100, 1000, 10_000), (10, 1000)
ROUNDS, QUICK_ROUNDS = (3, 30), (1, 2)
"""For the batch sizes, for the classes."""


def native_precision() -> Precision:
    """Not probed: all sizes alike, and a probe's memory would be counted as the step's."""
    return "bf16" if has_native_bf16(torch.device("cpu")) else "fp32"


@dataclass(frozen=True)
class Case:
    """One size to measure: a method, or the classifiers alone."""

    method: str
    batch_size: int = 64
    classes: int = 100
    image_size: int = 32
    precision: Precision = field(default_factory=native_precision)


def make_step(case: Case, data: DataConfig, folder: Path) -> Callable[[], object]:
    """What takes a step of this size."""
    if case.method == CLASSIFIERS:
        return classifiers_step(case.batch_size, case.classes)
    data = replace(data, size=case.image_size)
    trainer = make_trainer(
        data,
        TEACHER,
        STUDENT,
        case.method,
        folder,
        classes=case.classes,
        batch_size=case.batch_size,
        precision=case.precision,
        teacher_precision=case.precision,
    )
    return our_steps(trainer).__next__


def classifiers_step(batch_size: int, classes: int) -> Callable[[], None]:
    """The part of a KD step that knows of classes: both last layers, the loss, the optimiser."""
    teacher, student = nn.Linear(FEATURES, classes).requires_grad_(False), nn.Linear(FEATURES, classes)
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    features = torch.rand(batch_size, FEATURES, requires_grad=True)

    def step() -> None:
        answers, logits = teacher(features.detach()), student(features)
        soft, target = torch.log_softmax(logits / 4, 1), torch.log_softmax(answers / 4, 1)
        loss = F.kl_div(soft, target, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peak_bytes(case: Case, data: DataConfig, folder: Path) -> int:
    """The most that two steps hold beyond what this process held before; to be called in a fresh one."""
    torch.set_num_threads(1)
    step = make_step(case, data, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def measure(cases: Sequence[Case], data: DataConfig, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds and bytes of a step of every size."""
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(
        ["unixkd.training.run", "torchvision.transforms"]
    )  # imported once, not in every process
    with ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as pool:
        peaks = list(pool.map(partial(peak_bytes, data=data, folder=folder), cases))
    steps = {str(case): make_step(case, data, folder) for case in cases}
    samples = interleave(steps, rounds)
    return [
        {**asdict(case), "seconds": statistics.median(samples[str(case)].cpu), "bytes": peak}
        for case, peak in zip(cases, peaks, strict=True)
    ]


def of_method(rows: Sequence[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """The rows of one method, in their order."""
    return [row for row in rows if row["method"] == method]


def growth_by_batch(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """One method's seconds and bytes per image at the largest batch over the smallest, and log-log slopes."""
    found, ratio = {}, rows[-1]["batch_size"] / rows[0]["batch_size"]
    sizes = [math.log(row["batch_size"]) for row in rows]
    for what in ("seconds", "bytes"):
        found[what] = rows[-1][what] / rows[0][what] / ratio
        found[f"{what}_exponent"] = statistics.linear_regression(
            sizes, [math.log(row[what]) for row in rows]
        ).slope
    return found


def growth_by_classes(rows: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the most classes add to one method's step over what they add to the classifiers alone."""
    return {
        what: (rows[-1][what] - rows[0][what]) / (alone[-1][what] - alone[0][what])
        for what in ("seconds", "bytes")
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """A line for every size."""
    print(
        f"{'step':<12}{'batch':>7}{'classes':>9}{'pixels':>8}{'ms':>10}{'us/image':>10}{'MB':>8}{'kB/image':>10}"
    )
    for row in rows:
        size = row["batch_size"]
        print(
            f"{row['method']:<12}{size:>7}{row['classes']:>9}{row['image_size']:>8}"
            f"{1e3 * row['seconds']:>10.1f}{1e6 * row['seconds'] / size:>10.0f}"
            f"{row['bytes'] / 1e6:>8.1f}{row['bytes'] / 1e3 / size:>10.0f}"
        )


def main() -> int:
    """Measure all sizes, check the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    batches, classes = (QUICK_BATCHES, QUICK_CLASSES) if quick else (BATCHES, CLASSES)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    by_batch = [Case(method, batch_size=size) for method in METHODS for size in batches]
    by_class = [Case(m, classes=number, image_size=8) for m in (*METHODS, CLASSIFIERS) for number in classes]
    with tempfile.TemporaryDirectory(prefix="unixkd-scaling-") as name:
        folder = Path(name)
        data = unlabelled(folder / "images", 2 * max(batches), 32)
        batch_rows = measure(by_batch, data, folder, rounds[0])
        class_rows = measure(by_class, data, folder, rounds[1])
    print_table([*batch_rows, *class_rows])
    alone = of_method(class_rows, CLASSIFIERS)
    growth = {
        "per_image_by_batch": {m: growth_by_batch(of_method(batch_rows, m)) for m in METHODS},
        "added_by_classes": {m: growth_by_classes(of_method(class_rows, m), alone) for m in METHODS},
    }
    judged = [
        found[what] for each in growth.values() for found in each.values() for what in ("seconds", "bytes")
    ]
    return finish(
        "scaling",
        {
            "threads": 1,
            "pair": f"{TEACHER} -> {STUDENT}",
            "rows": [*batch_rows, *class_rows],
            "growth": growth,
        },
        target=f"growth in seconds and in bytes <= {TARGET} each (not checked with --quick)",
        passed=quick or max(judged) <= TARGET,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
