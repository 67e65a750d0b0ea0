"""`unixkd demo`, measured: kd, unix, random and hard on handwritten digits over 3 seeds.

Target: under 2 minutes from the first command to the finished report on 2 cores.

    python benchmarks/accuracy/demo_digits.py           # about 2 minutes
    python benchmarks/accuracy/demo_digits.py --quick   # 1 seed of kd and unix for 2 epochs
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd

QUICK = (
    "unixkd train --model resnet20 --data digits --epochs 2 --out {out}/teacher",
    "unixkd compare --teacher {out}/teacher --student resnet8 --data digits --epochs 2"
    " --methods kd,unix --seeds 0 --out {out}",
)


def main() -> int:
    """Run the demo as a user would, then collect the runs' own summaries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    out = Path(tempfile.mkdtemp(prefix="unixkd-demo-"))
    commands = [c.format(out=out) for c in QUICK] if quick else [f"unixkd demo --out {out}"]
    started = time.perf_counter()
    for command in commands:
        subprocess.run(command.split(), check=True)
    seconds = time.perf_counter() - started
    methods: dict[str, list[dict]] = {}
    for path in sorted(out.glob("runs/*/summary.json")):
        summary = json.loads(path.read_text())
        methods.setdefault(summary["method"], []).append(summary)
    figures = {
        "commands": [c.replace(str(out), "OUT") for c in commands],
        "wall_seconds": seconds,
        "teacher_accuracy": json.loads((out / "teacher" / "summary.json").read_text())["accuracy"]["last"],
        "methods": {
            name: {
                "accuracy": mean_sd([r["accuracy"]["last"] for r in runs]),
                "train_seconds": mean_sd([r["time"]["train_seconds"] for r in runs]),
                "images": runs[0]["cost"]["images"],
                "flops": runs[0]["cost"]["flops"],
                "relative_to_kd": runs[0]["cost"]["relative_to_kd"],
            }
            for name, runs in methods.items()
        },
    }
    return finish("demo_digits", figures, target="wall_seconds < 120", passed=seconds < 120, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
