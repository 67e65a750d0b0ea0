"""Fair timing on a shared machine: contenders interleaved in one process, medians of per-round ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Samples:
    """Seconds of each round: on the wall, and of CPU in all threads and in processes that have ended."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def figures(self, images: int | None = None) -> dict[str, float]:
        """Medians, and images per second where a round is that many images."""
        found = {"seconds": statistics.median(self.wall), "cpu_seconds": statistics.median(self.cpu)}
        if images is not None:
            found["images_per_second"] = images / found["seconds"]
        return found


def cpu_seconds() -> float:
    """CPU time of this process's threads and of its children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, Samples]:
    """Run every contender once a round, the order reversed in every other round (A B B A)."""
    samples = {name: Samples() for name in contenders}
    for number in range(-warmup, rounds):
        names = list(contenders)
        for name in names if number % 2 else reversed(names):
            wall, cpu = time.perf_counter(), cpu_seconds()
            contenders[name]()
            if number >= 0:
                samples[name].wall.append(time.perf_counter() - wall)
                samples[name].cpu.append(cpu_seconds() - cpu)
    return samples


def ratio(over: Samples, under: Samples) -> dict[str, Any]:
    """How many times longer `over` took than `under`: median and quartiles of the ratio round by round."""
    values = sorted(a / b for a, b in zip(over.wall, under.wall, strict=True))
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    cpu = statistics.median(a / b for a, b in zip(over.cpu, under.cpu, strict=True))
    return {"median": statistics.median(values), "quartiles": [low, high], "cpu": cpu, "n": len(values)}


@contextmanager
def busy_core() -> Iterator[None]:
    """Within, another process keeps the last core that this one may use busy."""
    spin = "import os; os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    try:
        yield
    finally:
        process.kill()
        process.wait()
