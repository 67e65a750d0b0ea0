"""What a run is expected to cost before it is run, epoch by epoch, stored answers included."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unixkd.method.ledger import CONVENTIONS, Ledger
from unixkd.method.method import Method, StepCounts, pure_rows


def expected_cost(
    method: Method,
    ledger: Ledger,
    sizes: Sequence[int],
    epochs: int,
    *,
    answered: float = 0.0,
    refreshed: float = 0.0,
) -> dict[str, float]:
    """What a run is expected to cost, over plain KD's on all images.

    Args:
        method: which may change from epoch to epoch
        ledger: an empty one with both networks' forward FLOPs
        sizes: of an epoch's batches, a short last one included; the first is the configured size
        epochs: of the run
        answered: forwards of the teacher that stored answers save, per training image and epoch
        refreshed: forwards of the student that estimate BatchNorm's statistics anew, per training image and epoch

    >>> from unixkd.method.unix import kd, random
    >>> expected_cost(random(), Ledger(1, 3), [64], epochs=2)
    {'backward_1x': 0.75, 'backward_2x': 0.75}
    >>> expected_cost(kd(), Ledger(1, 3), [64], epochs=2, answered=1.0)
    {'backward_1x': 0.4, 'backward_2x': 0.5}
    """
    total = dict.fromkeys(CONVENTIONS, 0.0)
    for phase in phases(method, epochs):
        one = ledger.emptied()
        for size, times in Counter(sizes).items():
            counts = phase.method.counts(size, sizes[0], ledger.image_size)
            one.charge(repeated(counts, times))
        total = {name: total[name] + phase.weight * cost for name, cost in one.relative_to_kd().items()}
    for name, backward in CONVENTIONS.items():
        extra = refreshed * ledger.student_flops - answered * ledger.teacher_flops
        total[name] += extra / (ledger.teacher_flops + (1 + backward) * ledger.student_flops)
    return total


def expected_images(method: Method, sizes: Sequence[int], epochs: int) -> dict[str, float]:
    """Images that a run is expected to send through each forward without stored answers, by their name in `StepCounts`.

    Args:
        method: which may change from epoch to epoch
        sizes: of an epoch's batches, a short last one included; the first is the configured size
        epochs: of the run

    >>> from unixkd.method.unix import unix
    >>> expected_images(unix(), [64, 64, 16], epochs=2)
    {'scored': 288.0, 'teacher_forwarded': 224.0, 'trained': 224.0}
    """
    total = dict.fromkeys(("scored", "teacher_forwarded", "trained"), 0.0)
    for phase in phases(method, epochs):
        for size, times in Counter(sizes).items():
            counts = phase.method.counts(size, sizes[0])
            for name in total:
                total[name] += phase.weight * epochs * times * getattr(counts, name)
    return total


@dataclass(frozen=True)
class Phase:
    """Epochs that are alike.

    Args:
        method: of these epochs
        weight: images visited in them over images times epochs of the run
    """

    method: Method
    weight: float


def phases(method: Method, epochs: int) -> list[Phase]:
    """What the epochs of a run are, those in a row that are alike as one.

    >>> from unixkd.method.unix import infobatch
    >>> [phase.weight for phase in phases(infobatch(), epochs=8)]  # the first and the last visit all, others 3/4
    [0.8125]
    """
    each = ((method.at(epoch / epochs), visited(method, epoch / epochs)) for epoch in range(epochs))
    grouped = itertools.groupby(each, key=lambda epoch: epoch[0])
    return [Phase(now, sum(share for _, share in same) / epochs) for now, same in grouped]


def visited(method: Method, progress: float) -> float:
    """Share of the images that an epoch at this point of a run, in [0, 1), is expected to visit."""
    return 1.0 if method.choice is None else method.choice.share(progress)


def repeated(counts: StepCounts, times: int) -> StepCounts:
    """What so many of such steps cost without stored answers."""
    names = ("seen", "scored", "teacher_forwarded", "trained")
    return replace(counts, **{name: times * getattr(counts, name) for name in names})


def step_sizes(batch_size: int, epoch_images: int | None) -> list[int]:
    """The batch sizes of an epoch.

    >>> step_sizes(64, 144)
    [64, 64, 16]
    """
    if epoch_images is None:
        return [batch_size]
    full, rest = divmod(epoch_images, batch_size)
    return [batch_size] * full + [rest] * bool(rest)


def answerable(method: Method, sizes: Sequence[int]) -> float:
    """Share of an epoch's visited images whose answers may come from a store, see `pure_rows`.

    Args:
        method: that of the epoch
        sizes: of an epoch's batches; the first is the configured size

    >>> from unixkd.method.unix import random
    >>> answerable(random(), [64, 64, 16]) == (48 + 48 + 16) / 144
    True
    """
    counted = Counter(sizes).items()
    return sum(times * pure_rows(method, sizes[0], size) for size, times in counted) / sum(sizes)


def distinct_answers(asked: Sequence[float], views: int, runs: int, *, in_turn: bool) -> float:
    """Answers per image that a store, empty at first, gets from all runs together.

    Runs that share a store show an image in the same view in the same epoch. Whether one asks about it is taken to be
    independent of other runs and epochs: an upper bound where the same images are asked about again and again.

    Args:
        asked: in each epoch, the chance that a run asks about an image's view, in [0, 1]
        views: V, that an image has
        runs: that share the store
        in_turn: whether views take turns; False: each epoch draws one of them at random

    >>> distinct_answers([1.0] * 6, views=4, runs=3, in_turn=True)
    4.0
    >>> f"{distinct_answers([1.0] * 240, views=162, runs=1, in_turn=False) / 240:.1%}"  # V (1 − (1 − 1/V)ⁿ) / n
    '52.2%'
    """
    unasked = [(1 - share) ** runs for share in asked]
    if in_turn:
        turns = range(min(views, len(unasked)))
        return math.fsum(1 - math.prod(unasked[turn::views]) for turn in turns)
    return views * (1 - math.prod(1 - (1 - chance) / views for chance in unasked))
