"""Scores that come with the batch: those of an earlier epoch, or of several batches at once before their steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.batch import Batch, join
from unixkd.capture import CapturedStep
from unixkd.data import MemorySplit, Split
from unixkd.engine import Engine
from unixkd.methods import Method


def known_scores(engine: Engine, number: int, order: Int[Tensor, " m"]) -> Float[Tensor, " m"] | None:
    """The scores that an epoch's steps do not make themselves: each image's last, or room for those to come.

    Args:
        engine: with the method of the epoch
        number: of the epoch
        order: images to visit, on the device `[m]`

    Returns:
        None where steps score for themselves, or nothing is scored.
    """
    method = engine.distiller.method
    if method.scorer is None or method.scoring.within_step(number):
        return None
    if method.scoring.now(number):
        return torch.zeros(len(order), device=order.device)
    assert engine.history is not None
    return engine.history.score[order]


def batches_at_once(method: Method, number: int) -> int:
    """How many batches of an epoch are scored at once, ahead of their steps; 0: none are."""
    ahead = method.scorer is not None and method.scoring.batches > 1 and method.scoring.now(number)
    return method.scoring.batches if ahead else 0


def scored_in_groups(engine: Engine, number: int, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, where the method wants it with their scores: a group is scored when its first one is taken.

    Args:
        engine: scores, and charges for it
        number: of the epoch
        batches: of the epoch, on the device
    """
    size = batches_at_once(engine.distiller.method, number)
    if not size:
        yield from batches
        return
    for _, alike in itertools.groupby(
        batches, key=len
    ):  # a short last batch alone, as behind a captured step
        while group := list(itertools.islice(alike, size)):
            scores = engine.score_ahead(join(group)).split([len(batch) for batch in group])
            yield from (replace(batch, scores=own) for batch, own in zip(group, scores, strict=True))


def fill_scores(
    engine: Engine, split: Split, captured: CapturedStep, number: int, step: int, full_steps: int
) -> None:
    """Before the first of some captured steps that are scored at once: write their scores into the table.

    Args:
        engine: scores, and charges for it
        split: the training images
        captured: the step, loaded with the epoch
        number: of the epoch
        step: that comes next
        full_steps: of the epoch
    """
    size = batches_at_once(engine.distiller.method, number)
    if not size or step % size:
        return
    tables = captured.tables
    assert isinstance(split, MemorySplit)
    assert tables.scores is not None
    rows = slice(step, min(step + size, full_steps))
    index, view = tables.index[rows].flatten(), tables.view[rows].flatten()
    tables.scores[rows] = engine.score_ahead(split.batch(index, view)).view_as(tables.scores[rows])
