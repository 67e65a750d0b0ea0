"""The mixing curve, and the batch of the k kept rows.

Source: arXiv 2012.09413, section 3: correction factor m_r = λ · s_r, mixed image
(1 − m_r) · x_rank(r) + m_r · x_partner(r).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.errors import UserError, check_share
from unixkd.method.batch import Batch, Draws, MixedBatch
from unixkd.method.named_inputs import blend

Curve = Callable[[Int[Tensor, " k"], int], Float[Tensor, " k"]]
"""(ranks `[k]`, configured batch size N) -> s `[k]` in [0, 1]: how strongly each rank is mixed."""


@dataclass(frozen=True)
class SigmoidCurve:
    """s_r = sigmoid(w · (r/N − (2b − 1)/(2N))): smooth, every rank is mixed a little.

    Args:
        mix_from: b as a share of the batch, in [0, 1]
        steepness: w; 10 in the published runs. How steep it looks depends on N

    >>> SigmoidCurve(mix_from=0.5, steepness=10.0)(torch.arange(6), 8)[3:5]
    tensor([0.3486, 0.6514])
    """

    mix_from: float = 0.5
    steepness: float = 10.0

    def __post_init__(self) -> None:
        check_share("mix_from (b)", self.mix_from, "the batch")

    def __call__(self, ranks: Int[Tensor, " k"], batch_size: int) -> Float[Tensor, " k"]:
        b = round(self.mix_from * batch_size)
        centre = (2 * b - 1) / (2 * batch_size)
        return torch.sigmoid(self.steepness * (ranks / batch_size - centre))


@dataclass(frozen=True)
class StepCurve:
    """Exactly 0 below rank b and 1 from b on: the first b kept rows are pure images.

    >>> StepCurve(mix_from=0.5)(torch.arange(6), 8)
    tensor([0., 0., 0., 0., 1., 1.])
    """

    mix_from: float = 0.5

    def __post_init__(self) -> None:
        check_share("mix_from (b)", self.mix_from, "the batch")

    def __call__(self, ranks: Int[Tensor, " k"], batch_size: int) -> Float[Tensor, " k"]:
        return (ranks >= round(self.mix_from * batch_size)).to(torch.get_default_dtype())


def full_curve(ranks: Int[Tensor, " k"], batch_size: int) -> Float[Tensor, " k"]:
    """s = 1 for every rank: plain mixup, whatever the ranking.

    >>> full_curve(torch.arange(3), 8)
    tensor([1., 1., 1.])
    """
    return torch.ones(len(ranks), device=ranks.device)


def num_kept(keep: float, batch_size: int, available: int) -> int:
    """Number k of kept rows: a share of the *configured* batch, all of a batch shorter than that.

    >>> num_kept(0.75, 64, 64), num_kept(0.75, 64, 16)
    (48, 16)
    """
    check_share("keep (k/N)", keep, "the batch", zero=False)
    k = round(keep * batch_size)
    if k == 0:
        raise UserError(
            f"keep {keep:g} of a batch of {batch_size} keeps no image; raise keep or the batch size"
        )
    return min(k, available)


def pure(batch: Batch, positions: Int[Tensor, " k"] | None) -> MixedBatch:
    """The rows at `positions` as they came, in that order; None keeps the batch as it is.

    Images that the data have mixed (`Batch.mix_weight`) bring both labels and their weight with them.
    """
    images, label, other, weight = batch.images, batch.labels, batch.mixed_labels, batch.mix_weight
    if positions is None:
        positions = torch.arange(len(batch), device=images.device)
    else:
        images = images[positions]
        label, other, weight = (None if t is None else t[positions] for t in (label, other, weight))
    if weight is None:
        weight = torch.zeros(len(positions), device=images.device)
    label_b = label if other is None else other
    return MixedBatch(
        images, label, label_b, weight, row_weights(batch, positions), positions, len(positions)
    )


def row_weights(batch: Batch, positions: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The weight of each row's own image in the losses."""
    if batch.weight is None:
        return torch.ones(len(positions), device=batch.images.device)
    return batch.weight[positions]


def mix(
    batch: Batch, ranking: Int[Tensor, " m"], k: int, curve: Curve, draws: Draws, batch_size: int
) -> MixedBatch:
    """Keep the first k ranks and mix each with its partner from the whole batch.

    Args:
        batch: N images
        ranking: positions, most uncertain first `[m]`, k ≤ m
        k: kept rows; only these are mixed
        curve: how strongly each rank is mixed
        draws: partners and λ
        batch_size: the configured N that the curve is measured in, also in a short last batch
    """
    position, partner = ranking[:k], draws.partner[:k]
    images = batch.images
    s = curve(torch.arange(k, device=images.device), batch_size)
    weight = (draws.lam[:k] * s).to(images.dtype)
    mixed = blend(images[position], images[partner], weight)
    label_a, label_b = (None if batch.labels is None else batch.labels[rows] for rows in (position, partner))
    pure_rows = num_pure(curve, k, batch_size)
    return MixedBatch(
        mixed, label_a, label_b, weight, row_weights(batch, position), position, pure_rows, partner
    )


@lru_cache(maxsize=64)
def num_pure(curve: Curve | None, k: int, batch_size: int) -> int:
    """How many leading ranks a curve leaves unmixed, whatever λ is; known before the step.

    >>> num_pure(StepCurve(0.5), 48, 64), num_pure(SigmoidCurve(), 48, 64), num_pure(None, 48, 64)
    (32, 0, 48)
    """
    if curve is None:
        return k
    mixed = curve(torch.arange(k), batch_size) != 0
    return int(mixed.int().argmax()) if mixed.any() else k
