"""How uncertain the student is about each sample: logits `[N, C]` to scores `[N]`, higher = less certain.

Source: Xu, Liu, Loy, *Computation-Efficient Knowledge Distillation via Uncertainty-Aware Mixup*,
arXiv 2012.09413, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.errors import UserError

Scorer = Callable[[Float[Tensor, "n classes"]], Float[Tensor, " n"]]


def entropy(logits: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    """Entropy −Σ p log p of the predicted distribution in nats, in [0, log C].

    Computed from log-softmax, so that a probability of 0 contributes 0.

    >>> entropy(torch.zeros(1, 4))          # log 4
    tensor([1.3863])
    """
    log_p = torch.log_softmax(full_precision(logits), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


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


def rank(scores: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Positions in the batch, most uncertain first; ties go to the lower position.

    >>> rank(torch.tensor([0.1, 0.7, 0.7, 0.9]))
    tensor([3, 1, 2, 0])
    """
    return torch.argsort(scores, descending=True, stable=True)


def full_precision(x: Tensor) -> Tensor:
    """At least float32: 16-bit inputs are widened, float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
