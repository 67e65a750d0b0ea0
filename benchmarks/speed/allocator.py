"""What keeping freed memory is worth: CPU seconds of a step with `train.keep_memory` off over on.

Each setting runs in processes of its own, as what a process has allocated before decides much; they take turns
(A B B A), every process takes a few steps of plain KD after two that warm up, with one thread and the precision that
the processor computes in. The gain grows with the batch: blocks beyond 32 MiB always go back to the system.

Target: off is nowhere faster, median over the rounds >= 0.98.

    python benchmarks/speed/allocator.py           # about 3 minutes
    python benchmarks/speed/allocator.py --quick   # one round; the target is not checked
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from inputs import make_trainer, unlabelled
from plain_way import our_steps
from scaling import native_precision
from timing import Samples, ratio

TARGET = 0.98
CASES = (
    ("vgg13", "vgg8", 64),
    ("wrn_40_2", "wrn_16_2", 64),
    ("resnet20", "resnet8", 64),
    ("resnet20", "resnet8", 1024),
)
QUICK = CASES[2:3]
WARM_UP, STEPS = 2, 5


def child(teacher: str, student: str, batch: int, keep: bool) -> None:
    """Print the CPU and wall seconds of a step."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="unixkd-allocator-") as name:
        folder = Path(name)
        trainer = make_trainer(
            unlabelled(folder / "images", 2 * batch, 32),
            teacher,
            student,
            "kd",
            folder,
            batch_size=batch,
            precision=native_precision(),
            teacher_precision=native_precision(),
            keep_memory=keep,
        )
        steps = our_steps(trainer)
        for _ in range(WARM_UP):
            next(steps)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(STEPS):
            next(steps)
        print(json.dumps([(time.process_time() - cpu) / STEPS, (time.perf_counter() - wall) / STEPS]))


def measure(case: tuple[str, str, int], rounds: int) -> dict[str, Any]:
    """Seconds of both settings, and off over on."""
    samples = {True: Samples(), False: Samples()}
    for number in range(rounds):
        for keep in (True, False) if number % 2 else (False, True):
            words = [sys.executable, __file__, "--child", *map(str, case), str(int(keep))]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            cpu, wall = json.loads(done.stdout.splitlines()[-1])
            samples[keep].cpu.append(cpu)
            samples[keep].wall.append(wall)
    return {
        "on": samples[True].figures(case[2]),
        "off": samples[False].figures(case[2]),
        "off_over_on": ratio(samples[False], samples[True]),
    }


def main() -> int:
    """Measure every case, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        teacher, student, batch, keep = options.child
        child(teacher, student, int(batch), keep == "1")
        return 0
    cases = QUICK if options.quick else CASES
    found = {f"{t} -> {s}, batch {b}": measure((t, s, b), 1 if options.quick else 6) for t, s, b in cases}
    return finish(
        "allocator",
        {"threads": 1, "precision": native_precision(), "cases": found},
        target=f"off_over_on cpu >= {TARGET} in every case (not checked with --quick)",
        passed=options.quick or all(each["off_over_on"]["cpu"] >= TARGET for each in found.values()),
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
