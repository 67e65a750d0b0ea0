"""`plan`: a pair that is timed as `distill` would run it, within a time box; standard error tells what is going on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from unixkd.cli.screen import progress
from unixkd.config import TrainConfig
from unixkd.errors import first_line
from unixkd.models.card import PixelModel
from unixkd.names import phase, plural
from unixkd.planning.timing import Pair, timed_rows
from unixkd.training.cuda_graph import Recorder, recorded
from unixkd.training.precision import DTYPES, settle, settle_threads
from unixkd.training.resolved import PROBED

LIMIT = 12.0
"""Seconds within which all rounds but the first are timed."""
LEAST = 8
"""Images at once, so that shares of a batch in eighths are exact."""


@dataclass
class Capture:
    """Captures each step before it is timed, as a run on a GPU does; one that cannot be is timed eagerly, and said.

    Args:
        device: where steps run
        record: how a step is captured (default: in a CUDA graph)
    """

    device: torch.device
    record: Recorder | None = None
    captured: int = field(default=0, init=False)
    eager: int = field(default=0, init=False)

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """What repeats the step, or the step itself."""
        try:
            with phase("capturing a step as a CUDA graph"):
                replay = recorded(step, self.device, self.record)
        except RuntimeError as error:
            progress(f"a step is timed eagerly, not as a CUDA graph: {first_line(error)}")
            self.eager += 1
            return step
        self.captured += 1
        return replay

    def __str__(self) -> str:
        """How the steps were run.

        >>> str(Capture(torch.device("cuda")))
        'no step as a CUDA graph'
        """
        if not self.captured:
            return "no step as a CUDA graph"
        return "as CUDA graphs" + (f" but for {plural(self.eager, 'step')}" if self.eager else "")


def planned_pair(
    teacher: PixelModel,
    student: PixelModel,
    rows: int,
    size: int,
    *,
    timed: bool,
    most: int | None = None,
    record: Recorder | None = None,
) -> Pair:
    """A pair on random pixels, in the precision and with the threads that a probe chooses; untimed, none is probed.

    On a CPU few of a step's `rows` are timed at once, as their size allows, and at `most` so many. On a GPU, or with
    another way to `record` steps, what is timed is the captured step.
    """
    device = next(student.parameters()).device
    on_cpu = device.type == "cpu"
    at_once = min(most or rows, timed_rows(rows, (size, size), LEAST)) if on_cpu else rows
    pair = Pair.on_random_pixels(teacher, student, at_once if timed else 1, size)
    if not timed:
        return pair
    few = timed_rows(at_once, (size, size), PROBED)
    progress("choosing precision and threads, as distill would")
    images = partial(pair.batch.pixels.__getitem__, slice(few))
    train = settle(TrainConfig(batch_size=rows), student, teacher, images, device, progress)
    train = settle_threads(train, student, teacher, images, device, progress)
    if isinstance(train.threads, int):
        torch.set_num_threads(train.threads)
    progress(f"timing steps of {plural(at_once, 'image')}: within {LIMIT:g} s, or a round of them")
    dtypes = DTYPES[train.precision], DTYPES[train.teacher_precision]
    captures = train.graph and (device.type == "cuda" or record is not None)
    capture = Capture(device, record) if captures else None
    return Pair(teacher, student, pair.batch, *dtypes, scale=rows / at_once, limit=LIMIT, record=capture)


def how_timed(pair: Pair) -> str:
    """In which precision, with how many threads and images, and captured or not, the steps were timed."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    student, teacher = names[pair.student_dtype], names[pair.teacher_dtype]
    precision = student if student == teacher else f"{student} (teacher: {teacher})"
    longer = f", {pair.scale:g} × as many taken to take {pair.scale:g} × as long" if pair.scale != 1 else ""
    captured = f", {pair.record}" if isinstance(pair.record, Capture) else ""
    threads = plural(torch.get_num_threads(), "thread")
    return f"{precision}, {threads}, {plural(len(pair.batch), 'image')} at once{longer}{captured}"
