"""What a checkpoint after every epoch costs, as a share of a short run's time.

CIFAR-100 at 16 pixels, 2,500 images, batches of 64, UNIX, one thread, evaluated every fourth epoch: the students of
`distill_cifar100.py`. The clock is read around every save (copying, hashing, writing, syncing, removing the one before
the last) and around the whole of an epoch. The teacher has seen 128 images, which takes as long. Saves are few and a
disk is moody: the mean is over the runs, each of which has one save an epoch.

Target: under 2 % for each pair.

    python benchmarks/speed/checkpoint_cost.py --root CIFAR100            # some five minutes
    python benchmarks/speed/checkpoint_cost.py --root CIFAR100 --quick    # a few steps; the target is not checked
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.training import resume
from unixkd.training.run import run
from unixkd.training.state import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd

PAIRS = (("vgg13", "vgg8"), ("wrn_40_2", "wrn_16_2"))
TARGET = 0.02


def measured(config: RunConfig, folder: Path) -> dict[str, float]:
    """One run: seconds of its saves, their share of its epochs' time, and the size of a checkpoint."""
    saves: list[float] = []
    original = resume.save

    def save(trainer: Run) -> None:
        started = time.perf_counter()
        original(trainer)
        saves.append(time.perf_counter() - started)

    resume.save = save
    try:
        summary = run(config, folder, mode="overwrite")
    finally:
        resume.save = original
    epochs = summary["time"]["train_seconds"] + summary["time"]["evaluate_seconds"]
    size = max(path.stat().st_size for path in folder.glob("checkpoints/*/state.safetensors"))
    return {
        "saves": len(saves),
        "seconds_of_a_save": sum(saves) / len(saves),
        "share": sum(saves) / (epochs + sum(saves)),
        "megabytes": size / 1e6,
    }


def configuration(teacher: Path | None, student: str, root: str, quick: bool) -> RunConfig:
    """A short run; without a teacher, of the student on labels."""
    data = DataConfig(
        "cifar100", root=root, size=16, limit=128 if quick else 2500, holdout=0.004 if quick else 0.0
    )
    train = TrainConfig(epochs=1 if quick else 8, threads=1, eval_every=4, checkpoint_every=1)
    if teacher is None:
        return RunConfig(ModelConfig(student), None, MethodConfig("student-alone"), data=data, train=train)
    return RunConfig(
        ModelConfig(student), ModelConfig(str(teacher)), MethodConfig("unix"), data=data, train=train
    )


def main() -> int:
    """Measure, keep, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=os.environ.get("UNIXKD_CIFAR100"), help="folder with CIFAR-100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few steps; no result file")
    options = parser.parse_args()
    if not options.root:
        parser.error("give --root or set UNIXKD_CIFAR100")
    pairs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="unixkd-") as place:
        for teacher, student in PAIRS[:1] if options.quick else PAIRS:
            run(configuration(None, teacher, options.root, quick=True), Path(place) / teacher)
            found = [
                measured(
                    configuration(Path(place) / teacher, student, options.root, options.quick),
                    Path(place) / "run",
                )
                for _ in range(1 if options.quick else options.rounds)
            ]
            pairs[f"{teacher}->{student}"] = {
                name: mean_sd([one[name] for one in found]) for name in found[0]
            }
            print(f"{teacher}->{student}: {pairs[f'{teacher}->{student}']}", flush=True)
    passed = options.quick or all(pair["share"]["mean"] < TARGET for pair in pairs.values())
    return finish(
        "checkpoint_cost",
        {"pairs": pairs},
        target="share < 0.02 for each pair",
        passed=passed,
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
