"""How much CPU time `unixkd distill` on digits takes until its first step.

Target: at most 5 s of CPU time, user and system, of a fresh process with all its threads; n = 5.

    python benchmarks/startup.py           # a minute
    python benchmarks/startup.py --quick   # twice; the target is not checked
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import finish, mean_sd

TARGET = 5.0
"""Seconds."""
TORCH = "import time, torch, torch._dynamo; print(time.process_time())"
"""The floor: torch's own imports, of which any optimiser's first call needs the second."""
FIRST_STEP = """
import os, sys, time
from unixkd.cli import main
from unixkd import engine  # where the step is; imported by the command in any case

def step(*anything):
    sys.stdout.write(f"\\n{time.process_time()}\\n")
    sys.stdout.flush()
    os._exit(0)

engine.Engine.step = step
main(sys.argv[1:])
"""


def cpu_seconds(program: str, *arguments: str) -> float:
    """What a fresh Python process says it has used."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> int:
    """Train a teacher, then start distilling it again and again, in turns with the floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="unixkd-startup-") as name:
        out = Path(name)
        teacher = f"unixkd train --model wrn_16_2 --data digits --epochs 1 --out {out}/teacher"
        subprocess.run(teacher.split(), check=True)
        command = (
            f"distill --teacher {out}/teacher --student resnet8 --data digits --out {out}/run --overwrite"
        )
        steps, floor = [], []
        for _ in range(2 if quick else 5):
            steps.append(cpu_seconds(FIRST_STEP, *command.split()))
            floor.append(cpu_seconds(TORCH))
    return finish(
        "startup",
        {
            "command": f"unixkd {command.replace(str(out), 'OUT')}",
            "cpu_seconds_to_first_step": mean_sd(steps),
            "largest": max(steps),
            "cpu_seconds_of_importing_torch": mean_sd(floor),
        },
        target=f"mean <= {TARGET} s (not checked with --quick)",
        passed=quick or sum(steps) / len(steps) <= TARGET,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
