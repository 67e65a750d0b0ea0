"""A whole training step of UNIX on a CPU against the bare arithmetic in it.

Whole: a step of the trainer that `unixkd distill` runs, from the images in memory to the updated weights. Bare:
what no such step can do without, timed alone on the same images in the same precision and layout: the student's
forward on N images without gradient, the teacher's on k, the student's forward and backward on k, the optimiser.
Both take turns (whole, bare, bare, whole, ...) with one thread. The difference is everything else: cutting and
flipping the images, ranking, mixing, the losses, the sums.

Target: whole / bare at most 1.05 for both pairs: the median over the rounds, in CPU seconds, which with one
thread are the wall's without what other programs took meanwhile.

    python benchmarks/speed/step_overhead.py           # 2 to 4 minutes on a slow core
    python benchmarks/speed/step_overhead.py --quick   # resnet20 -> resnet8, a few rounds; the target is not checked
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from unixkd.config import DataConfig
from unixkd.method.network import Network
from unixkd.training.optimizer import build_optimizer
from unixkd.training.state import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from inputs import labelled, make_trainer
from plain_way import our_steps
from timing import interleave, ratio

TARGET = 1.05
PAIRS = (("wrn_40_2", "wrn_16_2"), ("vgg13", "vgg8"))
QUICK = (("resnet20", "resnet8"),)
IMAGES, CLASSES, SIZE = 1024, 100, 32


class BareParts:
    """The arithmetic of a UNIX step and nothing else, on a copy of a trainer's student.

    Args:
        trainer: whose networks, precision, layout, batch size and optimiser are taken
    """

    def __init__(self, trainer: Run) -> None:
        distiller, train = trainer.engine.distiller, trainer.config.train
        assert distiller.teacher is not None
        student = copy.deepcopy(trainer.resolved.student).train()
        self.student = Network(student, dtype=distiller.student.dtype)
        self.teacher = distiller.teacher.network
        self.optimizer = build_optimizer(train, student.parameters(), trainer.device)
        batch = next(
            trainer.resolved.data.train.train_batches(0, torch.arange(train.batch_size), train.batch_size)
        )
        kept = trainer.resolved.method.counts(train.batch_size, train.batch_size).trained
        assert batch.labels is not None
        self.images, self.kept, self.labels = batch.images, batch.images[:kept], batch.labels[:kept]
        self.seconds: dict[str, list[float]] = {}

    def score(self) -> None:
        """The student's forward on N images without gradient."""
        with torch.no_grad():
            self.student(self.images)

    def teach(self) -> None:
        """The teacher's forward on k images."""
        with torch.no_grad():
            self.teacher(self.kept)

    def train(self) -> None:
        """The student's forward and backward on k images."""
        F.cross_entropy(self.student(self.kept).logits.float(), self.labels).backward()

    def update(self) -> None:
        """The optimiser's step."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self) -> None:
        """All parts once, each one's CPU seconds noted."""
        for part in (self.score, self.teach, self.train, self.update):
            started = time.process_time()
            part()
            self.seconds.setdefault(part.__name__, []).append(time.process_time() - started)


def measure(data: DataConfig, teacher: str, student: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Whole steps and bare parts of a pair in turns."""
    trainer = make_trainer(data, teacher, student, "unix", folder)
    steps, bare = our_steps(trainer), BareParts(trainer)
    samples = interleave({"whole": steps.__next__, "bare": bare.run}, rounds)
    train = trainer.config.train
    return {
        **{name: each.figures(train.batch_size) for name, each in samples.items()},
        "bare_cpu_seconds": {name: statistics.median(each) for name, each in bare.seconds.items()},
        "precision": {"student": train.precision, "teacher": train.teacher_precision},
        "whole_over_bare": ratio(samples["whole"], samples["bare"]),
    }


def main() -> int:
    """Measure every pair, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="unixkd-overhead-") as name:
        folder = Path(name)
        data = labelled(folder / "images", IMAGES, SIZE, CLASSES)
        pairs = {
            f"{teacher} -> {student}": measure(data, teacher, student, folder, 3 if quick else 12)
            for teacher, student in (QUICK if quick else PAIRS)
        }
    passed = all(pair["whole_over_bare"]["cpu"] <= TARGET for pair in pairs.values())
    return finish(
        "step_overhead",
        {"threads": 1, "image_size": SIZE, "pairs": pairs},
        target=f"whole_over_bare cpu <= {TARGET} for each pair (not checked with --quick)",
        passed=quick or passed,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
