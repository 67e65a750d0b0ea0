"""What it adds to a training step on a CPU that two processes of one thread take it together.

Steps of the trainer that `unixkd distill` runs, with 64 images for each process: of one process alone; of two that
know nothing of each other, beside each other; of two that train one student (DDP, gloo). All take turns in the same
two processes, and begin together; milliseconds of the first one's clock.

DDP adds what a step of two together takes longer than one of one alone: waiting for the other, exchanging gradients
and buffers, and sharing memory and caches with it, which two beside each other show without the rest.

Target: what DDP adds to a step of `unix` exceeds what it adds to one of `kd` by at most 0.05 of a
step of `kd` alone; medians over the rounds of differences within a round.

    python benchmarks/speed/ddp.py           # 5 to 10 minutes on 2 slow cores, which nothing else should use
    python benchmarks/speed/ddp.py --quick   # resnet20 -> resnet8, a few rounds; the target is not checked
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
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist

from unixkd.config import DataConfig
from unixkd.training.distributed.world import World, together

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from inputs import labelled, make_trainer
from plain_way import our_steps
from scaling import native_precision

TARGET = 0.05
PAIR, QUICK = ("wrn_40_2", "wrn_16_2"), ("resnet20", "resnet8")
ROUNDS, QUICK_ROUNDS, WARM_UP = 40, 3, 2
SIZE, EACH, IMAGES, CLASSES, PIXELS = 2, 64, 1024, 100, 32
CONTENDERS = {
    "kd, alone": ("kd", 1),
    "kd, beside": ("kd", 1),
    "kd, together": ("kd", SIZE),
    "unix, alone": ("unix", 1),
    "unix, beside": ("unix", 1),
    "unix, together": ("unix", SIZE),
}
"""Method, processes that train one student."""


def make_steps(
    data: DataConfig, folder: Path, pair: tuple[str, str], world: World
) -> dict[str, Iterator[None]]:
    """This process's steps of every contender."""
    steps = {}
    for number, (name, (method, size)) in enumerate(CONTENDERS.items()):
        own = folder / f"{number}" if size > 1 else folder / f"{number}-of-{world.rank}"
        own.mkdir(parents=True, exist_ok=True)
        trainer = make_trainer(
            data,
            *pair,
            method,
            own,
            classes=CLASSES,
            batch_size=size * EACH,
            world=world if size > 1 else World(),
            precision=native_precision(),
            teacher_precision=native_precision(),
        )
        steps[name] = our_steps(trainer)
    return steps


def milliseconds(steps: dict[str, Iterator[None]], world: World, rounds: int) -> dict[str, list[float]]:
    """A step of every contender a round, the order reversed in every other one; both processes begin together."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-WARM_UP, rounds):
        names = list(steps)
        for name in names if number % 2 else reversed(names):
            dist.barrier()
            started = time.perf_counter()
            if world.leads or "alone" not in name:
                next(steps[name])
            if number >= 0:
                found[name].append(1e3 * (time.perf_counter() - started))
    return found


def work(
    answers: Any, rank: int, port: int, data: DataConfig, folder: Path, pair: tuple[str, str], rounds: int
) -> None:
    """What each of the processes does; the first one answers."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": SIZE,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    with together() as world:
        found = milliseconds(make_steps(data, folder, pair, world), world, rounds)
        if world.leads:
            answers.put(found)
        dist.barrier()


def measured(data: DataConfig, folder: Path, pair: tuple[str, str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contender's steps, round by round."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.Queue()
    processes = [
        context.Process(target=work, args=(answers, rank, port, data, folder, pair, rounds))
        for rank in range(SIZE)
    ]
    for process in processes:
        process.start()
    try:
        while True:
            try:
                found: dict[str, list[float]] = answers.get(timeout=5)
                return found
            except Empty:
                if any(process.exitcode for process in processes):
                    raise RuntimeError("a process has failed, and says why") from None
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def difference(found: dict[str, list[float]], *terms: tuple[int, str]) -> dict[str, float]:
    """Median and quartiles of a sum of contenders, each with its sign, within each round."""
    rounds = len(next(iter(found.values())))
    values = [sum(sign * found[name][number] for sign, name in terms) for number in range(rounds)]
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def figures_of(found: dict[str, list[float]]) -> dict[str, Any]:
    """What is reported, in milliseconds; `excess` also as a share of a step of `kd` alone."""
    added = {
        f"{method}, {by}": difference(found, (1, f"{method}, {by}"), (-1, f"{method}, alone"))
        for method in ("kd", "unix")
        for by in ("beside", "together")
    }
    excess = difference(
        found, (1, "unix, together"), (-1, "unix, alone"), (-1, "kd, together"), (1, "kd, alone")
    )
    kd = statistics.median(found["kd, alone"])
    return {
        "milliseconds": {name: statistics.median(values) for name, values in found.items()},
        "added": added,
        "excess": excess,
        "excess_share_of_kd": excess["median"] / kd,
        "n": len(found["kd, alone"]),
    }


def main() -> int:
    """Measure, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    pair, rounds = (QUICK, QUICK_ROUNDS) if quick else (PAIR, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="unixkd-ddp-") as name:
        folder = Path(name)
        data = labelled(folder / "images", IMAGES, PIXELS, CLASSES)
        figures = figures_of(measured(data, folder, pair, rounds))
    for contender, value in figures["milliseconds"].items():
        print(f"{contender:<24}{value:>10.1f} ms")
    return finish(
        "ddp",
        {
            "pair": " -> ".join(pair),
            "processes": SIZE,
            "threads": 1,
            "images_per_process": EACH,
            "image_size": PIXELS,
            "precision": native_precision(),
            **figures,
        },
        target=f"excess_share_of_kd <= {TARGET} (not checked with --quick)",
        passed=quick or figures["excess_share_of_kd"] <= TARGET,
        quick=quick,
    )


if __name__ == "__main__":
    sys.exit(main())
