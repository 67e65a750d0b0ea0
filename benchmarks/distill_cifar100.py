"""Real images, end to end: a vgg13 teacher, then a vgg8 student by UNIX, by plain KD and on its own.

CIFAR-100 at 16 pixels. The teacher learns from 10,000 labelled images; the students from 2,500 of
them, the distilled ones without looking at a label. Every step is a `unixkd` command, printed before it runs.

Target: the student distilled by UNIX beats the student alone (final epoch, 10,000 test images).

    python benchmarks/distill_cifar100.py --root PATH      # about 40 minutes on 2 cores
    python benchmarks/distill_cifar100.py --root PATH --quick
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import finish

METHODS = ("unix", "student-alone", "kd")


def commands(root: str, out: Path, quick: bool) -> tuple[list[str], dict[str, list[str]]]:
    """The teacher's command and each student's."""
    data = f"--data cifar100 --data.root {root} --data.size 16".split()
    if quick:
        data += ["--data.holdout", "0.02"]  # evaluate on 1,000 images
    teacher_images, student_images = (640, 320) if quick else (10000, 2500)
    teacher_epochs, student_epochs = (1, 1) if quick else (5, 20)
    train = ["unixkd", "train", "--model", "vgg13", *data, "--data.limit", str(teacher_images), "--overwrite"]
    train += f"--epochs {teacher_epochs} --train.schedule onecycle --lr 0.05 --train.eval_every 5 --train.threads 1".split()
    distill = [
        "unixkd",
        "distill",
        "--teacher",
        str(out / "teacher"),
        "--student",
        "vgg8",
        *data,
        "--overwrite",
    ]
    distill += ["--data.limit", str(student_images), "--train.threads", "1"]
    distill += f"--epochs {student_epochs} --train.schedule cosine --lr 0.05 --train.eval_every 5".split()
    students = {
        name: [*distill, "--method", name, "--out", str(out / "runs" / f"{name}-seed0")] for name in METHODS
    }
    return [*train, "--out", str(out / "teacher")], students


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Print a command and start it."""
    print("$", " ".join(command), flush=True)
    return subprocess.Popen(command)


def run_all(teacher: list[str], students: dict[str, list[str]]) -> None:
    """The teacher, then the students, two at a time; every run has one thread."""
    if start(teacher).wait():
        raise SystemExit("the teacher failed")
    waiting, running = list(students.values()), []
    while waiting or running:
        while waiting and len(running) < 2:
            running.append(start(waiting.pop(0)))
        if running.pop(0).wait():
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
        for command in (teacher, *students.values())
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
