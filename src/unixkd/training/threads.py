"""How many CPU threads to compute with: all, unless a short probe says that one is faster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from unixkd.names import phase, plural
from unixkd.planning.timing import interleaved

Threads = int | Literal["auto"] | None

SLOWER, ROUNDS, LIMIT = 1.1, 8, 0.5
"""One thread is chosen where all take longer by this factor; rounds, and seconds, of the probe."""
HOPELESS = 3.0
"""Times that the first pass of all threads may take longer, as it has to set them up."""
SMALL = 0.05
"""CPU seconds of a pass below which threads wait for each other longer than they compute: nothing is probed."""


def known_threads(wanted: Threads, device: torch.device, processes: int = 1) -> Threads:
    """The number of threads where nothing has to be probed, else "auto".

    None, as many as torch has, stands where they decide little, on a GPU, and where processes share a machine. The
    user's OMP_NUM_THREADS counts as said.
    """
    if wanted != "auto":
        return wanted
    if device.type != "cpu" or processes > 1:
        return None
    every = torch.get_num_threads()
    return every if every == 1 or "OMP_NUM_THREADS" in os.environ else "auto"


@phase("timing how many threads are fastest")
def choose_threads(
    call: Callable[[], object], note: Callable[[str], None] = lambda _: None, share: float = 1.0
) -> int:
    """The better number of threads for a call, all or one; what was found is noted.

    `share` is that of the images that will be computed on at once.

    All it is where both are equally fast, as beside other processes: these may end. One it is where a pass is short, or
    where all take longer, or as much CPU time as would leave no gain on a free machine; waiting in a spin counts there.
    """
    every = torch.get_num_threads()
    passes: dict[int, list[tuple[float, float]]] = {1: [], every: []}

    def call_with(threads: int) -> tuple[float, float]:
        torch.set_num_threads(threads)
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        passes[threads].append((time.perf_counter() - wall, time.process_time() - cpu))
        return passes[threads][-1]

    try:
        wall, cpu = call_with(1)
        if cpu < SMALL * share:
            return 1
        if call_with(every)[0] < HOPELESS * wall:
            calls = {threads: partial(call_with, threads) for threads in passes}
            interleaved(calls, ROUNDS, torch.device("cpu"), limit=LIMIT)
    finally:
        torch.set_num_threads(every)
    best = {threads: [min(column) for column in zip(*rows, strict=True)] for threads, rows in passes.items()}
    slower, dearer = (ours / one for ours, one in zip(best[every], best[1], strict=True))
    chosen = 1 if slower > SLOWER or dearer / every > 1 / SLOWER else every
    found = f"{every} take {slower:.0%} of the time of one and {dearer:.0%} of its CPU time here"
    note(f"{plural(chosen, 'thread')}: {found}")
    return chosen


def set_threads(call: Callable[[], object], device: torch.device, share: float) -> None:
    """Compute with the better number of threads from here on; see `choose_threads`."""
    if known_threads("auto", device) == "auto":
        torch.set_num_threads(choose_threads(call, share=share))
