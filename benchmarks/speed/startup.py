"""CPU time until `unixkd distill` takes its first training step, on the digits and on photographs of 224 pixels.

The command runs as a user types it, in a fresh process each time; the user and system time of all its threads is
read when the first step begins (`first_step.py`). To import torch alone, which nothing can do without, is
measured beside it. The photographs (`--photos`, a folder of train and val with a folder per class) are distilled from
torchvision's resnet18, with random weights, into another.

Target: at most 4 s in every run on the digits, 20 s on photographs.

    python benchmarks/speed/startup.py --photos hymenoptera  # about five minutes on a slow core
    python benchmarks/speed/startup.py --quick               # fewer runs, another teacher; the target is not checked
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

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd

TARGET, PHOTOS_TARGET = 4.0, 20.0
"""CPU seconds."""
TEACHER, QUICK_TEACHER, STUDENT = "wrn_16_2", "resnet8", "wrn_16_1"
RUNS, PHOTO_RUNS, TORCH_RUNS = 5, 3, 3
IMPORT_TORCH = "import json, time, torch; print(json.dumps({'torch': time.process_time()}))"


def last_line(command: list[str]) -> dict[str, float]:
    """The JSON that a fresh Python process prints last."""
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def train_teacher(name: str, out: Path) -> None:
    """A teacher for the digits, trained for one epoch; it also leaves everything compiled and on file."""
    command = ["unixkd", "train", "--model", name, "--data", "digits", "--epochs", "1", "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def photo_words(photos: Path, folder: Path) -> list[str]:
    """The words of the command on photographs, for as many classes as there are folders."""
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    weights = folder / "resnet18.safetensors"
    classes = sum(path.is_dir() for path in (photos / "train").iterdir())
    save_file(resnet18(num_classes=classes).state_dict(), weights)
    pair = ["--teacher", "torchvision:resnet18", "--student", "torchvision:resnet18"]
    data = ["--data", f"folder:{photos}", "--data.size", "224"]
    return ["distill", *pair, "--teacher.weights", str(weights), *data]


def breakdown(runs: list[dict[str, float]]) -> dict[str, Any]:
    """CPU seconds to the first step, and of that to import everything and to set the run up.

    Args:
        runs: CPU seconds since the process began, by what was reached
    """
    first = [run["first_step"] for run in runs]
    return {
        "first_step": {**mean_sd(first), "max": max(first)},
        "of_which_imports": mean_sd([run["imports"] for run in runs]),
        "of_which_setup": mean_sd([run["first_step"] - run["imports"] for run in runs]),
    }


def main() -> int:
    """Start the command several times, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--photos", type=Path, help="photographs to start on too")
    options = parser.parse_args()
    quick = options.quick
    os.environ.pop("OMP_NUM_THREADS", None)  # it would be the user's choice
    child = str(Path(__file__).with_name("first_step.py"))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="unixkd-startup-") as name:
        folder = Path(name)
        train_teacher(QUICK_TEACHER if quick else TEACHER, folder / "teacher")
        digits = ["distill", "--teacher", f"{folder / 'teacher'}", "--student", STUDENT, "--data", "digits"]
        cases = {"digits": (digits, 2 if quick else RUNS, TARGET)}
        if options.photos is not None:
            words = photo_words(options.photos, folder)
            cases["photos"] = (words, 1 if quick else PHOTO_RUNS, PHOTOS_TARGET)
        for case, (words, runs, target) in cases.items():
            seconds = [last_line([child, *words, "--out", f"{folder / case}-{i}"]) for i in range(runs)]
            said = " ".join(["unixkd", *words]).replace(str(folder), "OUT")
            said = said if options.photos is None else said.replace(str(options.photos), "PHOTOS")
            figures[case] = {"command": said, "target": target, "cpu_seconds": breakdown(seconds)}
        torch = [last_line(["-c", IMPORT_TORCH])["torch"] for _ in range(1 if quick else TORCH_RUNS)]
    passed = all(each["cpu_seconds"]["first_step"]["max"] <= each["target"] for each in figures.values())
    return finish(
        "startup",
        {**figures, "import_torch_alone_cpu_seconds": mean_sd(torch)},
        target="cpu_seconds.first_step.max <= each one's target (not checked with --quick)",
        passed=quick or passed,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
