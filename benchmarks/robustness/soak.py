"""A long run with a checkpoint and an evaluation after every epoch: do memory, open files or threads grow?

UNIX on the digits, 8 steps an epoch, answers stored. After every epoch the resident memory, open files and threads of
the process are read from /proc (Linux only). Memory is compared between the tenth after the warm-up (which is a tenth
of the run) and the last tenth, by medians.

Target: at least 20,000 steps; memory grows by less than 1 %, as many files and threads in the end as after the warm-up.

    python benchmarks/robustness/soak.py            # 20,000 steps, some ten minutes
    python benchmarks/robustness/soak.py --quick    # 160 steps; the target is not checked
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from unixkd.config import AnswersConfig, DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.training.display import EpochDone, Event
from unixkd.training.run import run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish

IMAGES, BATCH, STEPS, QUICK_STEPS = 256, 32, 20_000, 160
GROWTH = 0.01
SELF = Path("/proc/self")


def readings() -> dict[str, int]:
    """Resident memory in KiB, open files and threads of this process."""
    status = dict(line.split(":", 1) for line in (SELF / "status").read_text().splitlines())
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "files": len(list((SELF / "fd").iterdir())),
        "threads": int(status["Threads"]),
    }


def soak(out: Path, epochs: int) -> list[dict[str, int]]:
    """Train; what was read after each epoch."""
    read: list[dict[str, int]] = []
    data = DataConfig("digits", limit=IMAGES)
    train = TrainConfig(epochs=3, batch_size=BATCH, threads=1)
    teacher = RunConfig(ModelConfig("resnet14"), None, MethodConfig("student-alone"), data=data, train=train)
    run(teacher, out / "teacher")

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            read.append(readings())

    config = RunConfig(
        ModelConfig("resnet8"),
        ModelConfig(str(out / "teacher")),
        MethodConfig("unix"),
        data=data,
        answers=AnswersConfig(str(out / "answers")),
        train=TrainConfig(
            epochs=epochs, batch_size=BATCH, ema_decay=0.9, threads=1, eval_every=1, checkpoint_every=1
        ),
    )
    run(config, out / "run", display=watch)
    return read


def compared(read: list[dict[str, int]]) -> dict[str, Any]:
    """Each reading's median in the tenth after the warm-up and in the last tenth."""
    tenth = max(1, len(read) // 10)
    early, late = read[tenth : 2 * tenth], read[-tenth:]
    return {
        name: {
            "after_warm_up": statistics.median(one[name] for one in early),
            "at_the_end": statistics.median(one[name] for one in late),
            "largest": max(one[name] for one in read),
        }
        for name in read[0]
    }


def main() -> int:
    """Soak and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps; no result file")
    quick = parser.parse_args().quick
    steps = QUICK_STEPS if quick else STEPS
    with tempfile.TemporaryDirectory(prefix="unixkd-soak-") as name:
        read = soak(Path(name), steps // (IMAGES // BATCH))
    found = compared(read)
    growth = found["memory"]["at_the_end"] / found["memory"]["after_warm_up"] - 1
    steady = all(found[name]["at_the_end"] == found[name]["after_warm_up"] for name in ("files", "threads"))
    figures = {"steps": len(read) * (IMAGES // BATCH), "epochs": len(read), "memory_growth": growth, **found}
    target = "20,000 steps; memory grows by less than 1 %, files and threads stay"
    return finish("soak", figures, target=target, passed=quick or (growth < GROWTH and steady), quick=quick)


if __name__ == "__main__":
    sys.exit(main())
