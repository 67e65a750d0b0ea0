"""What bf16 does to the accuracy: kd and unix on handwritten digits in fp32 and in bf16, same seeds.

Target: the mean paired difference is within 0.2 points, or within twice its standard error, of 0.

    python benchmarks/accuracy/bf16_accuracy.py           # 5 seeds, 6 epochs; minutes where bf16 is emulated
    python benchmarks/accuracy/bf16_accuracy.py --quick   # 2 seeds, 1 epoch: does it run?
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd

METHODS = ("kd", "unix")
TOLERANCE = 0.2
"""Points."""


def commands(out: Path, quick: bool) -> list[str]:
    """A teacher, then the same comparison in both precisions."""
    shared = f"--data digits --epochs {1 if quick else 6}"
    compare = (
        f"unixkd compare --teacher {out}/teacher --student resnet8 --methods {','.join(METHODS)} {shared}"
    )
    seeds = "0,1" if quick else "0,1,2,3,4"
    return [
        f"unixkd train --model wrn_16_2 {shared} --out {out}/teacher",
        *(
            f"{compare} --seeds {seeds} --train.precision {name} --train.teacher_precision {name} --out {out}/{name}"
            for name in ("fp32", "bf16")
        ),
    ]


def accuracies(folder: Path, method: str) -> list[float]:
    """Final accuracy in % by seed."""
    paths = sorted(folder.glob(f"runs/{method}-seed*/summary.json"))
    return [100 * json.loads(path.read_text())["accuracy"]["last"] for path in paths]


def paired(fp32: list[float], bf16: list[float]) -> dict[str, Any]:
    """Both precisions, and bf16 − fp32 seed by seed."""
    difference = mean_sd([b - a for a, b in zip(fp32, bf16, strict=True)])
    error = (difference["sd"] or 0.0) / math.sqrt(difference["n"] or 1)
    return {
        "fp32": mean_sd(fp32),
        "bf16": mean_sd(bf16),
        "difference": difference,
        "standard_error": error,
        "passed": abs(difference["mean"] or 0.0) <= max(TOLERANCE, 2 * error),
    }


def main() -> int:
    """Run the commands, collect, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    out = Path(tempfile.mkdtemp(prefix="unixkd-bf16-"))
    for command in (todo := commands(out, quick)):
        print("$", command, flush=True)
        subprocess.run(command.split(), check=True)
    methods = {
        name: paired(accuracies(out / "fp32", name), accuracies(out / "bf16", name)) for name in METHODS
    }
    return finish(
        "bf16_accuracy",
        {"commands": [c.replace(str(out), "OUT") for c in todo], "points": methods},
        target=f"mean paired difference within {TOLERANCE} points or twice its standard error of 0",
        passed=quick or all(figures["passed"] for figures in methods.values()),
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
