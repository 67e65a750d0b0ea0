"""Throughput of a run that chooses its threads by itself, over the better of one and of all threads.

Three runs of `unixkd distill` take their steps in turns, each in a process of its own: with `--train.threads auto`,
with one thread and with one per core; first as the machine is, then with another core kept busy by a process of
ours, each time with runs that were started under it. A third figure is of runs that were started before the load came.
Ratios are of the rounds, medians; the load of the machine stands beside them, as others may use it too.

Target: at least 0.9 in both, where the load stays.

    python benchmarks/speed/busy_core.py           # about 8 minutes on 2 slow cores
    python benchmarks/speed/busy_core.py --quick   # resnet20 -> resnet8, few rounds; the target is not checked
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from timing import busy_core

PAIR, QUICK = ("wrn_40_2", "wrn_16_2"), ("resnet20", "resnet8")
PRECISIONS = ("auto", "fp32")
IMAGES, CLASSES, SIZE = 512, 100, 32
ROUNDS, QUICK_ROUNDS = 5, 2


def child(folder: Path, teacher: str, student: str, threads: str, precision: str) -> None:
    """A run in this process: a step for each line of standard input, and its seconds on the wall and of the CPU."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is loaded
    from unixkd.config import DataConfig, ModelConfig, RunConfig, TrainConfig
    from unixkd.training.display import silent
    from unixkd.training.run import epoch_steps, start
    from unixkd.training.run_folder import RunFolder

    train = TrainConfig(
        threads="auto" if threads == "auto" else int(threads),
        precision=precision,  # type: ignore[arg-type]
        teacher_precision=precision,  # type: ignore[arg-type]
        device="cpu",
    )
    config = RunConfig(
        ModelConfig(student),
        ModelConfig(teacher, weights=str(folder / "teacher.safetensors")),
        data=DataConfig(f"folder:{folder / 'data'}"),
        train=train,
    )
    run = start(config, RunFolder(folder / f"run-{os.getpid()}"), "new", silent)

    def steps() -> Iterator[None]:
        while True:
            yield from epoch_steps(run)
            run.epoch, run.done = run.epoch + 1, 0

    ours = steps()
    next(ours)
    print(json.dumps(run.config.train.threads), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        next(ours)
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


def ask(process: subprocess.Popen[str]) -> list[float]:
    """A step's seconds on the wall and of the CPU."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    seconds: list[float] = json.loads(process.stdout.readline())
    return seconds


@contextlib.contextmanager
def started(folder: Path, pair: tuple[str, str], precision: str) -> Iterator[dict[str, Any]]:
    """A process for each way, and what auto has chosen."""
    command = [sys.executable, __file__, "--child", str(folder), *pair]
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for threads in (
            "auto",
            "1",
            str(os.cpu_count()),
        ):  # one after the other, so that each finds the same load
            process = subprocess.Popen(
                [*command, threads, precision], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            chosen = json.loads(process.stdout.readline())
            found[threads] = process
            found.setdefault("chosen", chosen)
        yield found


def compare(found: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Steps of all in turns; how much of the better one's throughput auto reaches."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in found if name != "chosen"}
    for number in range(rounds + 1):
        for name in seconds if number % 2 else reversed(seconds):
            seconds[name].append(ask(found[name]))
    wall = {name: [each[0] for each in steps[1:]] for name, steps in seconds.items()}
    fixed = {name: statistics.median(each) for name, each in wall.items() if name != "auto"}
    better = min(fixed, key=lambda name: fixed[name])
    ratios = [theirs / ours for ours, theirs in zip(wall["auto"], wall[better], strict=True)]
    return {
        "auto_chose": found["chosen"],
        "better": int(better),
        "auto_over_better": statistics.median(ratios),
        "n": rounds,
        "seconds": {name: statistics.median(each) for name, each in wall.items()},
        "cpu_seconds": {
            name: statistics.median(each[1] for each in steps[1:]) for name, steps in seconds.items()
        },
        "load": os.getloadavg()[0],
    }


def measure(folder: Path, pair: tuple[str, str], precision: str, rounds: int) -> dict[str, Any]:
    """The three situations of a precision."""
    with started(folder, pair, precision) as found:
        as_it_is = compare(found, rounds)
        with busy_core():
            busy_later = compare(found, rounds)
    with busy_core(), started(folder, pair, precision) as found:
        return {"as_it_is": as_it_is, "busy": compare(found, rounds), "busy_later": busy_later}


def main() -> int:
    """Measure each precision, check the target."""
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), *sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    os.environ.pop("OMP_NUM_THREADS", None)  # it would be the user's choice
    from safetensors.torch import save_file

    from common import finish
    from inputs import labelled
    from unixkd.models import create_model

    pair, rounds = (QUICK, QUICK_ROUNDS) if quick else (PAIR, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="unixkd-busy-core-") as name:
        folder = Path(name)
        labelled(folder / "data", IMAGES, SIZE, CLASSES)
        save_file(create_model(pair[0], CLASSES).state_dict(), folder / "teacher.safetensors")
        precisions = PRECISIONS[:1] if quick else PRECISIONS
        found = {precision: measure(folder, pair, precision, rounds) for precision in precisions}
    ratios = [each[kept]["auto_over_better"] for each in found.values() for kept in ("as_it_is", "busy")]
    return finish(
        "busy_core",
        {"pair": " -> ".join(pair), "precisions": found},
        target="auto_over_better >= 0.9 in as_it_is and busy (not checked with --quick)",
        passed=quick or min(ratios) >= 0.9,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
