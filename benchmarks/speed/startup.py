"""CPU time until `unixkd distill` takes its first training step, on the digits.

The command runs as a user types it, in a fresh process each time; the user and system time of all its threads is
read when the first step begins (`first_step.py`). To import torch alone, which nothing can do without, is
measured beside it.

Target: at most 5 s in every run.

    python benchmarks/speed/startup.py           # about a minute on a slow core
    python benchmarks/speed/startup.py --quick   # fewer runs, another teacher; the target is not checked
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd

TARGET = 5.0
"""CPU seconds."""
TEACHER, QUICK_TEACHER, STUDENT = "wrn_16_2", "resnet8", "wrn_16_1"
RUNS, TORCH_RUNS = 5, 3
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
    quick = parser.parse_args().quick
    child = str(Path(__file__).with_name("first_step.py"))
    with tempfile.TemporaryDirectory(prefix="unixkd-startup-") as name:
        folder = Path(name)
        train_teacher(QUICK_TEACHER if quick else TEACHER, folder / "teacher")
        words = ["distill", "--teacher", f"{folder / 'teacher'}", "--student", STUDENT, "--data", "digits"]
        runs = [
            last_line([child, *words, "--out", f"{folder / str(i)}"]) for i in range(2 if quick else RUNS)
        ]
        torch = [last_line(["-c", IMPORT_TORCH])["torch"] for _ in range(1 if quick else TORCH_RUNS)]
    figures = {
        "command": " ".join(["unixkd", *words]).replace(str(folder), "OUT"),
        "cpu_seconds": {**breakdown(runs), "import_torch_alone": mean_sd(torch)},
    }
    return finish(
        "startup",
        figures,
        target=f"cpu_seconds.first_step.max <= {TARGET} (not checked with --quick)",
        passed=quick or figures["cpu_seconds"]["first_step"]["max"] <= TARGET,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
