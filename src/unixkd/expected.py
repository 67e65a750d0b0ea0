"""What a run is expected to cost before it is run, epoch by epoch as it will be."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unixkd.cost import CONVENTIONS, Ledger
from unixkd.methods import Method, StepCounts, pure_rows


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

    >>> from unixkd.methods import kd, random
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
            one.charge(repeated(counts if phase.scores else replace(counts, scored=0), times))
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

    >>> from unixkd.methods import unix
    >>> expected_images(unix(), [64, 64, 16], epochs=2)
    {'scored': 288.0, 'teacher_forwarded': 224.0, 'trained': 224.0}
    """
    total = dict.fromkeys(("scored", "teacher_forwarded", "trained"), 0.0)
    for phase in phases(method, epochs):
        for size, times in Counter(sizes).items():
            counts = phase.method.counts(size, sizes[0])
            for name in total:
                if phase.scores or name != "scored":
                    total[name] += phase.weight * epochs * times * getattr(counts, name)
    return total


@dataclass(frozen=True)
class Phase:
    """Epochs that are alike.

    Args:
        method: of these epochs
        scores: whether they score
        weight: images visited in them over images times epochs of the run
    """

    method: Method
    scores: bool
    weight: float


def phases(method: Method, epochs: int) -> list[Phase]:
    """What the epochs of a run are, those in a row that are alike as one.

    >>> from unixkd.methods import infobatch
    >>> [phase.weight for phase in phases(infobatch(), epochs=8)]  # the first and the last visit all, others 3/4
    [0.8125]
    """
    each = (
        (method.at(epoch / epochs), method.scoring.now(epoch), visited(method, epoch / epochs))
        for epoch in range(epochs)
    )
    grouped = itertools.groupby(each, key=lambda epoch: epoch[:2])
    return [Phase(now, scores, sum(e[2] for e in same) / epochs) for (now, scores), same in grouped]


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

    >>> from unixkd.methods import random
    >>> answerable(random(), [64, 64, 16]) == (48 + 48 + 16) / 144
    True
    """
    counted = Counter(sizes).items()
    return sum(times * pure_rows(method, sizes[0], size) for size, times in counted) / sum(sizes)
