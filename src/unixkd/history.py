"""What training said of each image on the way: the last score, and how old it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.batch import MixedBatch, Outputs
from unixkd.losses import kl_divergence
from unixkd.scoring import Scorer, entropy, full_precision

RowScore = Callable[[Outputs, Outputs | None, MixedBatch], Float[Tensor, " k"]]
"""(student, teacher, rows) -> what is remembered of each row `[k]`, higher = more worth another visit."""


@dataclass(frozen=True)
class Uncertainty:
    """How uncertain the student is about each row, from the logits it was trained on."""

    scorer: Scorer = entropy

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, " k"]:
        return self.scorer(student.logits)


@dataclass(frozen=True)
class RowLoss:
    """KD's loss of each row; without a teacher its cross-entropy."""

    temperature: float = 4.0

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, " k"]:
        logits = full_precision(student.logits)
        if teacher is not None:
            return kl_divergence(full_precision(teacher.logits), logits, self.temperature)
        assert mixed.label_a is not None
        return torch.nn.functional.cross_entropy(logits, mixed.label_a.long(), reduction="none")


class History:
    """The last score of every training image, and how many epochs ago it was given.

    The tensors stay the same, as a CUDA graph wants.

    Args:
        num_images: n
        device: where steps run

    >>> history = History(3)
    >>> history.record(torch.tensor([2]), torch.tensor([0.5]))
    >>> history.end_epoch()
    >>> history.score.tolist(), history.age.tolist()
    ([inf, inf, 0.5], [1, 1, 0])
    """

    def __init__(self, num_images: int, device: torch.device | str = "cpu") -> None:
        self.score = torch.full((num_images,), torch.inf, device=device)
        """inf: never scored `[n]`"""
        self.age = torch.zeros(num_images, dtype=torch.int32, device=device)
        """Epochs since the score was given `[n]`"""
        self.fresh = torch.full((num_images,), torch.inf, device=device)
        """The scores of this epoch, inf where there is none `[n]`"""

    def __len__(self) -> int:
        return len(self.score)

    def record(self, index: Int[Tensor, " k"], score: Float[Tensor, " k"]) -> None:
        """Remember the scores of these images."""
        self.fresh.index_copy_(0, index, score.detach().to(self.fresh.dtype))

    def end_epoch(self) -> None:
        """Take over the epoch's scores; all others are an epoch older."""
        known = self.fresh.isfinite()
        self.score.copy_(torch.where(known, self.fresh, self.score))
        self.age.add_(1).masked_fill_(known, 0)
        self.fresh.fill_(torch.inf)

    def cpu(self) -> History:
        """A copy on the CPU, where choices are made: the same ones whatever the device."""
        if self.score.device.type == "cpu":
            return self
        copy = History(len(self))
        copy.score.copy_(self.score)
        copy.age.copy_(self.age)
        return copy

    def state(self) -> dict[str, Tensor]:
        """What has to be saved, by name."""
        return {"score": self.score, "age": self.age, "fresh": self.fresh}
