"""What `unixkd plan --gpus` predicts of a step against steps of real runs: 1 process, and 2 under gloo, on a CPU.

In each process, one thread each, the parts of a step are timed as `plan` times them, in turns with steps of `kd` and
of `unix` by the trainer that `unixkd distill` runs, in fp32. With two processes all of it is timed in both at once, as
cores of one machine share their memory and their clock, and bandwidth and latency come from all-reduces of the
student's gradients and of one number. Predicted is the step "at most": nothing is sent during the backward, as gloo
has no processor of its own here. All are lower quartiles of seconds on the wall: what other programs take of the cores
lies mostly above, and of two processes each would wait for what the other lost.

Target: predicted over measured within 15 % of 1 for each pair, method and number of processes.

    python benchmarks/speed/plan_check.py           # 3 minutes on two slow cores, which should have nothing else to do
    python benchmarks/speed/plan_check.py --quick   # one small pair, few rounds; the target is not checked
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from unixkd.config import DataConfig
from unixkd.method.ledger import Ledger
from unixkd.method.unix import METHODS
from unixkd.planning.cluster import Paper, needed_parts, predict
from unixkd.planning.links import Cluster, Link, Traffic, buckets
from unixkd.planning.timing import part_calls
from unixkd.training.distributed.launch import end
from unixkd.training.distributed.world import World, together
from unixkd.training.run import Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from inputs import labelled, make_trainer
from plain_way import our_steps

TARGET = 0.15
PAIRS, QUICK_PAIRS = (("resnet56", "resnet20"), ("vgg13", "vgg8")), (("resnet20", "resnet8"),)
"""The second student has many weights for what it computes: its gradients are much of a step."""
COMPARED = ("kd", "unix")
PROCESSES = (1, 2)
BATCH, CLASSES, SIZE, IMAGES = 64, 100, 16, 1024
ROUNDS, QUICK_ROUNDS = 25, 3
REDUCES = 10
"""All-reduces of each size after each round."""


def traffic_of(student: torch.nn.Module) -> Traffic:
    """What a step of this student sends."""
    tensors = [list(student.parameters()), list(student.buffers())]
    gradients, buffers = (sum(t.numel() * t.element_size() for t in each) for each in tensors)
    return Traffic(gradients, buffers, len({b.dtype for b in tensors[1]}))


def reduce_seconds(numbers: int) -> list[float]:
    """Of some all-reduces, each begun by all processes together."""
    tensor, seconds = torch.ones(numbers), []
    for _ in range(REDUCES):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - started)
        tensor.fill_(1.0)
    return seconds


def usual(seconds: list[float]) -> float:
    """The lower quartile."""
    return statistics.quantiles(seconds, n=4, method="inclusive")[0]


def link_of(short: float, long: float, size: int, processes: int) -> Link:
    """Bandwidth and latency from seconds of an all-reduce of one number and of so many bytes."""
    turns = 2 * (processes - 1)
    more = max(long - short, 1e-9)  # of few bytes it may be less than the clock's noise
    return Link(turns / processes * size / more, short / turns)


def measure(
    calls: dict[Any, Callable[[], object]], world: World, gradients: int, rounds: int
) -> tuple[dict[Any, float], Link]:
    """Seconds of every call, begun by all processes together and taken in turns; and the link."""
    seconds: dict[Any, list[float]] = {key: [] for key in calls}
    reduces: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        for key in list(calls) if number % 2 else reversed(list(calls)):
            if world.size > 1:
                dist.barrier()
            started = time.perf_counter()
            calls[key]()
            if number >= 0:
                seconds[key].append(time.perf_counter() - started)
        if world.size > 1:
            for kept, numbers in zip(reduces, (1, gradients // 4), strict=True):
                kept.extend(reduce_seconds(numbers))
    link = Link(float("inf"), 0.0)
    if world.size > 1:
        short, long = (usual(found) for found in reduces)
        link = link_of(short, long, gradients, world.size)
    return {key: usual(found) for key, found in seconds.items()}, link


def check(
    teacher: str, student: str, data: DataConfig, folder: Path, rounds: int, world: World
) -> list[dict[str, Any]]:
    """Predicted and measured seconds of a step of each method, as this process sees them."""

    def trainer(method: str) -> Trainer:
        exact = {"precision": "fp32", "teacher_precision": "fp32"}
        names = (teacher, student, method)
        return make_trainer(data, *names, folder, classes=CLASSES, batch_size=BATCH, world=world, **exact)

    trainers = {name: trainer(name) for name in COMPARED}
    parts = trainers["kd"].parts
    assert parts.teacher is not None
    size, methods = (SIZE, SIZE), [METHODS[name]() for name in COMPARED]
    traffic = traffic_of(parts.student)
    paper = Paper(IMAGES, BATCH, 1, Cluster(world.size), traffic)
    needed = needed_parts(methods, paper, size)
    calls: dict[Any, Callable[[], object]] = dict(
        part_calls(deepcopy(parts.teacher), deepcopy(parts.student).train(), needed, size)
    )
    steps: dict[str, Iterator[None]] = {name: our_steps(each) for name, each in trainers.items()}
    calls |= {name: each.__next__ for name, each in steps.items()}
    seconds, link = measure(calls, world, traffic.gradients, rounds)
    paper = Paper(IMAGES, BATCH, 1, Cluster(world.size, within=link), traffic)
    ledger, rows = Ledger.of(parts.student, parts.teacher, (3, *size)), []
    for method in methods:
        step = predict(method, paper, ledger, {part: seconds[part] for part in needed}).step
        assert step is not None
        rows.append(
            {
                "pair": f"{teacher} -> {student}",
                "method": method.name,
                "processes": world.size,
                "measured": seconds[method.name],
                "predicted": step.slowest,
                "predicted_at_least": step.fastest,
                "sending": step.sending,
                "predicted_over_measured": step.slowest / seconds[method.name],
                "gigabytes_per_second": link.bandwidth / 1e9 if world.size > 1 else None,
                "latency": link.latency if world.size > 1 else None,
                "messages": buckets(traffic.gradients),
            }
        )
    return rows


def work(answers: Any, rank: int, size: int, port: int, arguments: tuple[Any, ...]) -> None:
    """One process of a run, as torchrun would start it; the first tells what it found."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in (told | {"MASTER_PORT": port}).items()})
    torch.set_num_threads(1)
    with together() as world:
        rows = check(*arguments, world)
    if world.leads:
        answers.put(rows)
    end(0)


def in_processes(size: int, *arguments: Any) -> list[dict[str, Any]]:
    """What `check` finds in so many processes.

    Raises:
        RuntimeError: one of them failed, and has said why
    """
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=work, args=(answers, rank, size, port, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a process of {size} failed")
    found: list[dict[str, Any]] = answers.get()
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """A line for every step."""
    print(
        f"{'pair':<22}{'method':<8}{'processes':>9}{'measured ms':>13}{'predicted ms':>14}{'of which sent':>15}"
    )
    for row in rows:
        print(
            f"{row['pair']:<22}{row['method']:<8}{row['processes']:>9}{1e3 * row['measured']:>13.1f}"
            f"{1e3 * row['predicted']:>14.1f}{1e3 * row['sending']:>15.1f}  {row['predicted_over_measured']:.3f}"
        )


def main() -> int:
    """Measure every pair with one process and with two, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="unixkd-plan-check-") as name:
        folder = Path(name)
        data = labelled(folder / "images", IMAGES, SIZE, CLASSES)
        for teacher, student in QUICK_PAIRS if quick else PAIRS:
            for size in PROCESSES:
                rounds = QUICK_ROUNDS if quick else ROUNDS
                rows += in_processes(size, teacher, student, data, folder, rounds)
    print_table(rows)
    off = max(abs(row["predicted_over_measured"] - 1) for row in rows)
    return finish(
        "plan_check",
        {
            "threads_per_process": 1,
            "batch_size": BATCH,
            "image_size": SIZE,
            "rows": rows,
            "furthest_off": off,
        },
        target=f"predicted within {TARGET:.0%} of measured (not checked with --quick)",
        passed=quick or off <= TARGET,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
