"""What a run is expected to cost before it is run, epoch by epoch, stored answers included."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from unixkd.method.ledger import CONVENTIONS, Ledger
from unixkd.method.method import Method, pure_rows


@dataclass(frozen=True)
class Workload:
    """The training that is planned.

    Args:
        images: of the training set
        batch_size: N, of all processes together
        epochs: of plain KD
        runs: that share one store of answers, empty at first
        views: that an image has; None: without end
        in_turn: whether an image shows its views in a fixed order, one in each epoch; False: a random one
        ahead: whether the store is filled ahead of each epoch, as on a GPU
        bn_images: on which BatchNorm's statistics are estimated anew where training has seen no clean images
    """

    images: int
    batch_size: int = 64
    epochs: int = 240
    runs: int = 1
    views: int | None = None
    in_turn: bool = False
    ahead: bool = False
    bn_images: int = 2048

    @cached_property
    def sizes(self) -> list[int]:
        """The batch sizes of an epoch.

        >>> Workload(images=144).sizes
        [64, 64, 16]
        """
        full, rest = divmod(self.images, self.batch_size)
        return [self.batch_size] * full + [rest] * bool(rest)


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
    student, teacher = ledger.known_flops()
    extra = refreshed * student - answered * teacher
    total = {name: extra / kd_flops(ledger, backward) for name, backward in CONVENTIONS.items()}
    for weight, epoch in charged_epochs(method, ledger, sizes, epochs):
        for name, cost in (epoch.relative_to_kd() or {}).items():
            total[name] += weight * cost
    return total


def kd_flops(ledger: Ledger, backward: int) -> int:
    """FLOPs of plain KD per image, a backward counted as so many forwards."""
    student, teacher = ledger.known_flops()
    return teacher + (1 + backward) * student


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
    for weight, epoch in charged_epochs(method, Ledger(0, 0), sizes, epochs):
        for name in total:
            total[name] += weight * epochs * getattr(epoch.images, name)
    return total


def charged_epochs(
    method: Method, ledger: Ledger, sizes: Sequence[int], epochs: int
) -> Iterator[tuple[float, Ledger]]:
    """The weight of each phase of a run, and a ledger that is charged with all images of one of its epochs."""
    for now, weight in phases(method, epochs):
        epoch = ledger.emptied()
        for size, times in Counter(sizes).items():
            step = now.counts(size, sizes[0], ledger.image_size)
            names = ("seen", "scored", "teacher_forwarded", "trained")
            epoch.charge(replace(step, **{name: times * getattr(step, name) for name in names}))
        yield weight, epoch


def phases(method: Method, epochs: int) -> Iterator[tuple[Method, float]]:
    """The method of epochs in a row that are alike, and images visited in them over images times epochs of the run.

    >>> from unixkd.method.unix import infobatch
    >>> [weight for _, weight in phases(infobatch(), epochs=8)]  # the first and the last visit all, others 3/4
    [0.8125]
    """
    progress = (epoch / epochs for epoch in range(epochs))
    for now, alike in groupby(progress, method.at):
        yield now, sum(visited(method, point) for point in alike) / epochs


def visited(method: Method, progress: float) -> float:
    """Share of the images that an epoch at this point of a run, in [0, 1), is expected to visit."""
    return 1.0 if method.choice is None else method.choice.expected_fraction(progress)


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
        in_turn: whether an image shows its views in a fixed order; False: each epoch draws one of them at random

    >>> distinct_answers([1.0] * 6, views=4, runs=3, in_turn=True)
    4.0
    >>> f"{distinct_answers([1.0] * 240, views=162, runs=1, in_turn=False) / 240:.1%}"  # V (1 − (1 − 1/V)ⁿ) / n
    '52.2%'
    """
    unasked = [(1 - share) ** runs for share in asked]
    if in_turn:
        return math.fsum(1 - math.prod(unasked[view::views]) for view in range(min(views, len(unasked))))
    return views * (1 - math.prod(1 - (1 - chance) / views for chance in unasked))
