"""The forward that scores a batch: how the student is run for it, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from unixkd.errors import UserError
from unixkd.resizing import check_share


@dataclass(frozen=True)
class Scoring:
    """How and when the student is asked for the scores of a batch.

    Args:
        mode: "train": BatchNorm normalises the scoring forward by the batch and updates its running statistics, as
            in the reference; "eval": it uses the running statistics and leaves them alone
        size: share of the image's side that is looked at, in (0, 1]
        dtype: precision of the forward by autocast; None: as in training
        every: epochs from one that scores to the next; between them the last score of each image ranks it
        batches: so many batches are scored at once, before the first of them; in eval mode only

    >>> Scoring("eval", size=0.5, every=4)
    Scoring(mode='eval', size=0.5, dtype=None, every=4, batches=1)
    """

    mode: Literal["train", "eval"] = "train"
    size: float = 1.0
    dtype: torch.dtype | None = None
    every: int = 1
    batches: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("train", "eval"):
            raise UserError(f"scoring_mode is train or eval, not '{self.mode}'")
        check_share("scoring_size", self.size)
        if self.every < 1 or self.batches < 1:
            raise UserError(
                f"scoring_every and scoring_batches must be at least 1, got {self.every}, {self.batches}"
            )
        if self.batches > 1 and self.mode == "train":
            raise UserError(
                "scoring_batches: several batches at once would share BatchNorm's statistics; give scoring_mode eval"
            )

    @property
    def ahead(self) -> bool:
        """Whether some scores come with the batch, not from a forward within its step."""
        return self.every > 1 or self.batches > 1

    def within_step(self, epoch: int) -> bool:
        """Whether an epoch's steps score their own batches."""
        return self.batches == 1 and self.now(epoch)

    def now(self, epoch: int) -> bool:
        """Whether an epoch scores.

        >>> [Scoring(every=3).now(epoch) for epoch in range(5)]
        [True, False, False, True, False]
        """
        return epoch % self.every == 0


AS_PUBLISHED = Scoring()
"""Every batch in its own step, in train mode, whole images, in training's precision."""
