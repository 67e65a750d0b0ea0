"""How fast a network answers: images per second in batches, and milliseconds of an image by itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from unixkd.method.network import Network, evaluating
from unixkd.method.resizing import Size
from unixkd.planning.timing import interleaved, timed_rows
from unixkd.training.memory import ran_out
from unixkd.training.threads import choose_threads, known_threads

BATCHES = (4, 16, 64, 256)
"""Images at once that are tried, the fewest first, until two sizes in a row gain nothing."""
GAIN = 1.05
"""Times more images per second that make a larger batch the better one."""
LONGEST = 2.0
"""Seconds of all calls of a batch size; a batch whose images would take so long one by one is not tried."""
LEAST = 3
"""Timed calls at least, whatever they take."""
_PROBED = 4


class InferenceSpeed(NamedTuple):
    """What was timed; `threads` is None where no CPU computes."""

    images_per_second: float
    batch_size: int
    milliseconds: float
    calls: int
    threads: int | None


def time_forwards(
    model: nn.Module, channels: int, size: Size, device: torch.device, rounds: int
) -> InferenceSpeed:
    """Time forwards in eval mode and fp32 on random pixels; on a CPU with the better number of threads, which stays.

    Args:
        model: on the device
        channels: of the images
        size: their height and width
        device: where the model is
        rounds: timed forwards of single images at most, at least 1; a tenth of these of each batch
    """
    network = Network(model)

    def call(rows: int) -> Callable[[], object]:
        return partial(network, torch.rand(rows, channels, *size, device=device))

    with torch.no_grad(), evaluating(model):
        threads = None
        if device.type == "cpu":
            probe = call(timed_rows(BATCHES[-1], size, _PROBED))
            wanted = known_threads("auto", device)
            threads = choose_threads(probe) if wanted == "auto" else torch.get_num_threads()
            torch.set_num_threads(threads)
        single = seconds(call(1), rounds, device)
        median = statistics.median(single)
        best, batch_size, in_vain = 1 / median, 1, 0
        for rows in (rows for rows in BATCHES if rows * median < LONGEST):
            try:
                found = rows / statistics.median(seconds(call(rows), max(LEAST, rounds // 10), device))
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                break
            if found > GAIN * best:
                best, batch_size, in_vain = found, rows, 0
            elif (in_vain := in_vain + 1) == 2:
                break
    return InferenceSpeed(best, batch_size, 1000 * median, len(single), threads)


def seconds(call: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
    """Seconds of a call, each time after one that warms up."""
    return interleaved({"": call}, rounds, device, limit=LONGEST, least=LEAST)[""]
