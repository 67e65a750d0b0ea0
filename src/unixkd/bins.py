"""Fixed bins for the scores of a method, so that epochs and runs can be laid side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unixkd.history import RowLoss, Uncertainty
from unixkd.methods import Method
from unixkd.scoring import Scorer, TrueLoss, entropy, least_confidence, margin

NUM_BINS = 10


@dataclass(frozen=True)
class ScoreBins:
    """`NUM_BINS` bins of equal width; scores beyond the range are counted in the outermost ones.

    Args:
        name: of the score, shown in reports
        low: where the first bin begins
        high: where the last one ends
        of_mean: scores are divided by their mean over the images first

    >>> ScoreBins("entropy", 0.0, 10.0).edges().tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    """

    name: str
    low: float
    high: float
    of_mean: bool = False

    def edges(self, device: torch.device | str = "cpu") -> Float[Tensor, " edges"]:
        """Where one bin ends and the next begins: with `torch.bucketize` even NaN falls into a bin."""
        edges = torch.linspace(self.low, self.high, NUM_BINS + 1, device=device)
        return edges[1:-1].contiguous()


def score_bins(method: Method, num_classes: int) -> ScoreBins | None:
    """Bins for what the method scores, or else for what its choice of epochs remembers; None: neither is known.

    Entropy lies in [0, log C], margin in [−1, 0], least confidence in [0, 1 − 1/C]. A loss has no upper end:
    the true loss is cut off at 2 · log C, twice that of a guess; a KD loss, whose scale depends on the teacher
    and on T, is divided by its mean and cut off at 2, so that what InfoBatch may drop lies below 1.
    """
    scored: Scorer | TrueLoss | None = method.scorer
    num_classes = max(num_classes, 2)
    remembered = None if method.choice is None else method.choice.row_score
    if isinstance(remembered, RowLoss):
        return ScoreBins("loss / mean loss", 0.0, 2.0, of_mean=True)
    if isinstance(remembered, Uncertainty):
        scored = remembered.scorer
    if isinstance(scored, TrueLoss):
        return ScoreBins("true loss", 0.0, 2 * math.log(num_classes))
    if scored is entropy:
        return ScoreBins("entropy", 0.0, math.log(num_classes))
    if scored is margin:
        return ScoreBins("margin", -1.0, 0.0)
    if scored is least_confidence:
        return ScoreBins("least confidence", 0.0, 1 - 1 / num_classes)
    return None
