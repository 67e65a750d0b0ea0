"""Real images, end to end: a vgg13 teacher, then a vgg8 student by UNIX, by plain KD and on its own.

CIFAR-100 at 16 pixels. The teacher learns from 20,000 labelled images; the students from 5,000 of
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
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

METHODS = ("unix", "student-alone", "kd")
RESULTS = Path(__file__).parent / "results"


def commands(root: str, out: Path, quick: bool) -> tuple[list[str], dict[str, list[str]]]:
    """The teacher's command and each student's."""
    data = f"--data cifar100 --data.root {root} --data.size 16".split()
    if quick:
        data += ["--data.holdout", "0.02"]  # evaluate on 1,000 images
    teacher_images, student_images = (640, 320) if quick else (20000, 5000)
    teacher_epochs, student_epochs = (1, 1) if quick else (5, 12)
    train = ["unixkd", "train", "--model", "vgg13", *data, "--data.limit", str(teacher_images), "--overwrite"]
    train += f"--epochs {teacher_epochs} --train.schedule onecycle --lr 0.05 --train.eval_every 5".split()
    distill = ["unixkd", "distill", "--teacher", str(out / "teacher"), "--student", "vgg8", *data, "--overwrite"]
    distill += ["--data.limit", str(student_images), "--train.threads", "1"]
    distill += f"--epochs {student_epochs} --train.schedule cosine --lr 0.05 --train.eval_every 3".split()
    students = {
        name: [*distill, "--method", name, "--out", str(out / "runs" / f"{name}-seed0")] for name in METHODS
    }
    return [*train, "--out", str(out / "teacher")], students


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Print a command and start it."""
    print("$", " ".join(command), flush=True)
    return subprocess.Popen(command)


def run_all(teacher: list[str], students: dict[str, list[str]]) -> None:
    """The teacher with all threads, then the students, two one-thread runs at a time."""
    if start(teacher).wait():
        raise SystemExit("the teacher failed")
    waiting, running = list(students.values()), []
    while waiting or running:
        while waiting and len(running) < 2:
            running.append(start(waiting.pop(0)))
        if running.pop(0).wait():
            raise SystemExit("a student failed")


def figures(out: Path) -> dict[str, object]:
    """Accuracies and costs from the runs' own summaries."""
    summaries = {name: json.loads((out / "runs" / f"{name}-seed0" / "summary.json").read_text()) for name in METHODS}
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
        "environment": summaries["kd"]["environment"],
    }


def main() -> int:
    """Run, collect, write the result file, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=os.environ.get("UNIXKD_CIFAR100"), help="folder with CIFAR-100")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run? The target is not checked")
    options = parser.parse_args()
    if not options.root:
        parser.error("give --root or set UNIXKD_CIFAR100")
    out = options.out or Path(tempfile.mkdtemp(prefix="unixkd-cifar100-"))
    teacher, students = commands(options.root, out, options.quick)
    run_all(teacher, students)
    subprocess.run(["unixkd", "report", str(out)], check=True)
    result = figures(out)
    gain = result["students"]["unix"]["accuracy_last"] - result["students"]["student-alone"]["accuracy_last"]
    passed = options.quick or gain > 0
    shown = [" ".join(c).replace(options.root, "$UNIXKD_CIFAR100").replace(str(out), "OUT") for c in (teacher, *students.values())]
    result = {
        "benchmark": "distill_cifar100",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "unixkd": version("unixkd"),
        "quick": options.quick,
        "commands": shown,
        **result,
        "unix_minus_alone": gain,
        "target": "unix_minus_alone > 0",
        "passed": passed,
    }
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"distill_cifar100-{result['date']}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
