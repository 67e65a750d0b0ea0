"""Seconds that `unixkd plan --match-kd` takes on a machine whose other core is busy.

The command runs as a user types it, in a fresh process each time, for two CIFAR pairs and for one on photos of 224
pixels (generated, as their content does not matter), while another process keeps one core busy. CPU time stands
beside the wall's, and the load of the machine, as others may use it too.

Target: the median is at most 30 s for CIFAR pairs and 60 s at 224 pixels.

    python benchmarks/speed/plan_seconds.py           # about 5 minutes on 2 slow cores
    python benchmarks/speed/plan_seconds.py --quick   # one small pair, once; the target is not checked
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from inputs import labelled
from timing import Samples, busy_core, interleave

CIFAR, PHOTOS = 30.0, 60.0
"""Seconds on the wall."""
PAIRS = {("wrn_40_2", "wrn_16_2"): CIFAR, ("resnet32x4", "resnet8x4"): CIFAR}
QUICK = {("resnet20", "resnet8"): CIFAR}
PHOTO_PAIR = ("torchvision:resnet18", "torchvision:resnet18")
ROUNDS = 2


def plan(teacher: str, student: str, *data: str) -> None:
    """Run the command; what it prints is dropped."""
    words = [sys.executable, "-m", "unixkd", "plan", "--match-kd", "--teacher", teacher, "--student", student]
    subprocess.run([*words, *data], check=True, capture_output=True)


def figures(samples: Samples, target: float) -> dict[str, Any]:
    """Medians of a pair, every round, and its target."""
    return {**samples.figures(), "wall": samples.wall, "cpu": samples.cpu, "target": target}


def reached(samples: Samples, target: float) -> bool:
    """Whether a pair is planned in time."""
    return statistics.median(samples.wall) <= target


def main() -> int:
    """Plan every pair in turns, check the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    os.environ.pop("OMP_NUM_THREADS", None)  # plan decides
    targets = {" -> ".join(pair): target for pair, target in (QUICK if quick else PAIRS).items()}
    cifar = ("--data", "cifar100")
    calls = {name: lambda name=name: plan(*name.split(" -> "), *cifar) for name in targets}
    with tempfile.TemporaryDirectory(prefix="unixkd-plan-seconds-") as folder, busy_core():
        if not quick:
            photos = labelled(Path(folder) / "photos", 64, 224, 2).name
            name = f"{' -> '.join(PHOTO_PAIR)} at 224 px"
            words = ("--data", photos, "--data.size", "224", "--data.views", "8")
            targets[name], calls[name] = PHOTOS, lambda: plan(*PHOTO_PAIR, *words)
        samples = interleave(calls, 1 if quick else ROUNDS, warmup=0)
        load = os.getloadavg()[1]
    pairs = {name: figures(samples[name], target) for name, target in targets.items()}
    return finish(
        "plan_seconds",
        {"command": "unixkd plan --match-kd", "load": load, "pairs": pairs},
        target="median seconds <= each pair's target (not checked with --quick)",
        passed=quick or all(reached(samples[name], target) for name, target in targets.items()),
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
