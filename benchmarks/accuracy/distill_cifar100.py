"""Real images, end to end: a vgg13 teacher, then a vgg8 student by UNIX, by plain KD and on its own.

CIFAR-100 at 16 pixels. The teacher learns from 10,000 labelled images, then, started from those weights,
from 20,000. The students learn from 2,500 of them, the distilled ones without looking at a label. Every step
is a `unixkd` command, printed before it runs.

Target: the student distilled by UNIX beats the student alone (final epoch, 10,000 test images).

    python benchmarks/accuracy/distill_cifar100.py --root PATH  # took 55 minutes on 2 slow, busy cores; --out goes on
    python benchmarks/accuracy/distill_cifar100.py --root PATH --quick
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish

METHODS = ("unix", "student-alone", "kd")


def commands(root: str, out: Path, quick: bool) -> tuple[list[list[str]], list[list[str]]]:
    """The teacher's commands and the students'."""
    shared = f"--data cifar100 --data.root {root} --data.size 16 --lr 0.05 --resume".split()
    if quick:
        shared += ["--data.holdout", "0.004"]  # evaluate on 200 images
    sizes = ("128", "128", "64") if quick else ("10000", "20000", "2500")
    epochs = ("1", "1", "1") if quick else ("5", "3", "12")
    limits = [["--data.limit", size, "--epochs", number] for size, number in zip(sizes, epochs, strict=True)]
    train = ["unixkd", "train", *shared, "--train.schedule", "onecycle", "--train.eval_every", "5"]
    teacher = [
        [*train, "--model", "vgg13", *limits[0], "--train.threads", "1", "--out", f"{out}/begun"],
        [*train, "--model", f"{out}/begun", *limits[1], "--out", f"{out}/teacher"],
    ]
    distill = ["unixkd", "distill", "--teacher", f"{out}/teacher", "--student", "vgg8", *shared, *limits[2]]
    distill += ["--train.threads", "1", "--train.eval_every", "4"]
    return teacher, [[*distill, "--method", name, "--out", f"{out}/runs/{name}-seed0"] for name in METHODS]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Print a command and start it."""
    print("$", " ".join(command), flush=True)
    return subprocess.Popen(command)


def run_all(teacher: list[list[str]], students: list[list[str]]) -> None:
    """The teacher, then the students, two one-thread runs at a time."""
    for command in teacher:
        if start(command).wait():
            raise SystemExit("the teacher failed")
    with ThreadPoolExecutor(2) as pool:
        failed = list(pool.map(lambda command: start(command).wait(), students))
    if any(failed):
        raise SystemExit("a student failed")


def figures(out: Path) -> dict[str, Any]:
    """Accuracies and costs from the runs' own summaries."""
    summaries = {
        name: json.loads((out / "runs" / f"{name}-seed0" / "summary.json").read_text()) for name in METHODS
    }
    return {
        "teacher_accuracy": summaries["kd"]["accuracy"]["teacher"],
        "n": 1,
        "students": {
            name: {
                "accuracy_last": s["accuracy"]["last"],
                "accuracy_best": s["accuracy"]["best"],
                "agreement": s["agreement"],
                "images": s["cost"]["images"],
                "flops": s["cost"]["flops"],
                "relative_to_kd": s["cost"]["relative_to_kd"],
                "time": s["time"],
            }
            for name, s in summaries.items()
        },
        "run_environment": summaries["kd"]["environment"],
    }


def main() -> int:
    """Run, collect, write the result file, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=os.environ.get("UNIXKD_CIFAR100"), help="folder with CIFAR-100")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: a temporary one)")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps: does it run? The target is not checked"
    )
    options = parser.parse_args()
    if not options.root:
        parser.error("give --root or set UNIXKD_CIFAR100")
    out = options.out or Path(tempfile.mkdtemp(prefix="unixkd-cifar100-"))
    teacher, students = commands(options.root, out, options.quick)
    run_all(teacher, students)
    subprocess.run(["unixkd", "report", str(out)], check=True)
    result = figures(out)
    gain = result["students"]["unix"]["accuracy_last"] - result["students"]["student-alone"]["accuracy_last"]
    shown = [
        " ".join(command).replace(options.root, "$UNIXKD_CIFAR100").replace(str(out), "OUT")
        for command in (*teacher, *students)
    ]
    return finish(
        "distill_cifar100",
        {"commands": shown, **result, "unix_minus_alone": gain},
        target="unix_minus_alone > 0 (not checked with --quick)",
        passed=options.quick or gain > 0,
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
