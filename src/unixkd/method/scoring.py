"""How uncertain the student is about each sample: logits `[N, C]` to scores `[N]`, higher = less certain.

Source: Xu, Liu, Loy, *Computation-Efficient Knowledge Distillation via Uncertainty-Aware Mixup*,
arXiv 2012.09413, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.labels import UNLABELLED, outside

Scorer = Callable[[Float[Tensor, "n classes"]], Float[Tensor, " n"]]


def entropy(logits: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """Entropy −Σ p log p of the predicted distribution in nats, in [0, log C].

    A probability of 0 contributes 0, also where its logit is −inf.

    >>> entropy(torch.zeros(1, 4))          # log 4
    tensor([1.3863])
    """
    log_p = torch.log_softmax(full_precision(logits), dim=1)
    # Clamped, as 0 · −inf would be NaN.
    return -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(dim=1)


def margin(logits: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """Negative gap −(p₁ − p₂) between the two largest probabilities, in [−1, 0]; needs two classes.

    >>> margin(torch.tensor([[0.0, 0.0], [60.0, 0.0]]))
    tensor([-0., -1.])
    """
    if logits.shape[1] < 2:
        raise UserError(f"margin needs at least 2 classes, the student has {logits.shape[1]}")
    top = torch.softmax(full_precision(logits), dim=1).topk(2, dim=1).values
    return -(top[:, 0] - top[:, 1])


def least_confidence(logits: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """One minus the largest probability, in [0, 1 − 1/C].

    >>> least_confidence(torch.zeros(1, 4))
    tensor([0.7500])
    """
    return 1 - torch.softmax(full_precision(logits), dim=1).amax(dim=1)


@dataclass(frozen=True)
class TrueLoss:
    """Cross-entropy −log p of the true class in nats, ≥ 0: how wrong rather than how uncertain; 0 without a label.

    >>> TrueLoss()(torch.zeros(1, 4), torch.tensor([2]))          # log 4
    tensor([1.3863])
    """

    needs_labels: ClassVar[bool] = True

    def __call__(
        self, logits: Float[Tensor, "n classes"], labels: Integer[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        logits = full_precision(logits)
        # A label that is no class raises where labels are checked, not here.
        labels = labels.long().masked_fill(outside(labels, logits.shape[1]), UNLABELLED)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def score_logits(
    scorer: Scorer | TrueLoss, logits: Float[Tensor, "n classes"], labels: Tensor | None
) -> Float[Tensor, " n"]:
    """A batch's scores, with its labels where the scorer wants them."""
    if not isinstance(scorer, TrueLoss):
        return scorer(logits)
    if labels is None:
        raise UserError("scoring by the true loss needs labels; entropy needs none")
    return scorer(logits, labels)


def sampling_keys(
    scores: Float[Tensor, " n"], noise: Float[Tensor, " n"], beta: float
) -> Float[Tensor, " n"]:
    """Keys whose highest k are a random draw of k without replacement, likelier for higher scores.

    The chance of an image is as its percentile in the batch to the power of β. Sources: Jiang et al.,
    *Accelerating Deep Learning by Focusing on the Biggest Losers*, arXiv 1910.00762; Efraimidis & Spirakis,
    *Weighted random sampling with a reservoir*, 2006.

    Args:
        scores: higher = likelier `[N]`
        noise: uniform on [0, 1) `[N]`
        beta: β ≥ 0; 0: all alike

    >>> rank(sampling_keys(torch.tensor([0.1, 3.0]), torch.tensor([0.5, 0.5]), beta=1.0))
    tensor([1, 0])
    """
    percentile = (scores.argsort(stable=True).argsort(stable=True) + 1) / len(scores)
    return noise.clamp_min(torch.finfo(noise.dtype).tiny).log() / percentile**beta


def rank_by(
    scores: Float[Tensor, " n"] | None, noise: Float[Tensor, " n"], sampling: float | None = None
) -> Int[Tensor, " n"]:
    """Positions in the batch, first the ones to keep: by score, by a draw that scores weigh (β), else by noise.

    >>> rank_by(None, torch.tensor([0.2, 0.6]))
    tensor([1, 0])
    """
    if scores is None:
        return rank(noise)
    return rank(scores if sampling is None else sampling_keys(scores, noise, sampling))


def rank(scores: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Positions in the batch, most uncertain first; ties go to the lower position.

    >>> rank(torch.tensor([0.1, 0.7, 0.7, 0.9]))
    tensor([3, 1, 2, 0])
    """
    return torch.argsort(scores, descending=True, stable=True)


def full_precision(x: Tensor) -> Tensor:
    """At least float32: 16-bit inputs are widened, float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
