"""How often runs that share a store of answers ask the teacher, in expectation; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


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
