"""Which images an epoch trains on, chosen before they are decoded, by each image's latest score.

No forward is spent on a choice: scores are by-products of training, and as old as an image's last visit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unixkd.errors import UserError, check_share
from unixkd.method.batch import MixedBatch, Outputs
from unixkd.method.draws import draw_words
from unixkd.method.losses import kl_divergence
from unixkd.method.scoring import Scorer, entropy, full_precision

_PURPOSE = 8  # 1 to 7 are those of the data and of the steps' draws


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


@dataclass(frozen=True)
class Uncertainty:
    """How uncertain the student is about each row, from the logits it was trained on."""

    scorer: Scorer = entropy

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, " k"]:
        return self.scorer(student.logits)


BY_ENTROPY, BY_LOSS = Uncertainty(), RowLoss()


@dataclass(frozen=True)
class Chosen:
    """An epoch's images.

    Args:
        mask: which images are visited `[n]`
        weight: of each image in every loss `[n]`; None: 1
    """

    mask: Bool[Tensor, " n"]
    weight: Float[Tensor, " n"] | None = None


class EpochChoice(Protocol):
    """Chooses an epoch's images; `row_score` gives the value stored for each visited image, or is None."""

    @property
    def row_score(self) -> RowScore | None: ...

    def expected_fraction(self, progress: float) -> float:
        """Fraction of the images that an epoch at this point of the run, in [0, 1), is expected to visit."""

    def choose(self, history: History, epoch: int, epochs: int, seed: int) -> Chosen:
        """The images of an epoch: a function of the arguments alone."""


@dataclass(frozen=True)
class RandomChoice:
    """A random share of the images, drawn afresh each epoch.

    Args:
        keep: share of the images, in (0, 1]
        full_last: in this last share of the run all are visited, in [0, 1]

    >>> RandomChoice(keep=0.5).choose(History(10), epoch=0, epochs=1, seed=0).mask.sum().item()
    5
    """

    keep: float = 0.75
    full_last: float = 0.0
    row_score: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_share("keep", self.keep, "the images", zero=False)
        check_share("full_last", self.full_last, "the run")

    def expected_fraction(self, progress: float) -> float:
        return 1.0 if is_last(progress, self.full_last) else self.keep

    def choose(self, history: History, epoch: int, epochs: int, seed: int) -> Chosen:
        count = num_chosen(self.expected_fraction(epoch / epochs), len(history))
        return Chosen(first_of(noise(history, epoch, seed), count))


@dataclass(frozen=True)
class StaleChoice:
    """The images of which the student was least certain when it last saw them, and some at random.

    Images that were never seen, or not for `max_age` epochs, come first.

    Args:
        keep: share of the images, in (0, 1]
        random_share: share of the remaining places that is filled at random, in [0, 1]
        max_age: every image is visited at least once in about so many epochs, ≥ 1
        full_last: in this last share of the run all are visited, in [0, 1]
        row_score: the value stored for each visited image

    >>> history = History(4)
    >>> history.record(torch.arange(4), torch.tensor([0.1, 0.9, 0.2, 0.8]))
    >>> history.end_epoch()
    >>> StaleChoice(keep=0.5, random_share=0.0).choose(history, epoch=1, epochs=2, seed=0).mask.tolist()
    [False, True, False, True]
    """

    keep: float = 0.75
    random_share: float = 0.15
    max_age: int = 5
    full_last: float = 0.0
    row_score: RowScore = BY_ENTROPY

    def __post_init__(self) -> None:
        check_share("keep", self.keep, "the images", zero=False)
        check_share("random_share", self.random_share, "the images")
        check_share("full_last", self.full_last, "the run")
        if self.max_age < 1:
            raise UserError(f"max_age must be at least 1 epoch, got {self.max_age}")

    def expected_fraction(self, progress: float) -> float:
        return 1.0 if is_last(progress, self.full_last) else self.keep

    def choose(self, history: History, epoch: int, epochs: int, seed: int) -> Chosen:
        count = num_chosen(self.expected_fraction(epoch / epochs), len(history))
        drawn, unseen = noise(history, epoch, seed), history.score.isinf()
        # Lower keys first: never seen, overdue (the older the sooner), drawn, then by falling score.
        overdue = unseen | (history.age >= self.max_age)
        key = torch.where(unseen, -(2.0**31), -history.age.double()) + drawn
        taken = first_of(torch.where(overdue, key, math.inf), min(count, int(overdue.sum())))
        left = count - int(taken.sum())
        taken |= first_of(drawn.masked_fill(taken, math.inf), round(self.random_share * left))
        rest = torch.where(taken, math.inf, -history.score.double())
        return Chosen(taken | first_of(rest, count - int(taken.sum())))


@dataclass(frozen=True)
class InfoBatch:
    """Drop a random share of the images below the mean loss, and weight up those of them that stay.

    The expected gradient stays that of all images. Source: Qin et al., arXiv 2303.04947.

    Args:
        prune: share r of the images below the mean that is dropped, in [0, 1)
        full_last: in this last share of the run nothing is dropped, in [0, 1] (1 − δ of the paper)
        row_score: the loss that is remembered
    """

    prune: float = 0.5
    full_last: float = 0.125
    row_score: RowScore = BY_LOSS

    def __post_init__(self) -> None:
        check_share("full_last", self.full_last, "the run")
        if not 0 <= self.prune < 1:
            raise UserError(f"prune must lie in [0, 1), got {self.prune:g}")

    def expected_fraction(self, progress: float) -> float:
        """Half of the images are taken to lie below the mean, and all to be visited at first."""
        return 1.0 if is_last(progress, self.full_last) or progress == 0 else 1 - self.prune / 2

    def choose(self, history: History, epoch: int, epochs: int, seed: int) -> Chosen:
        known = history.score.isfinite()
        if is_last(epoch / epochs, self.full_last) or not bool(known.any()):
            return Chosen(torch.ones_like(known), torch.ones_like(history.score))
        below = known & (history.score < history.score[known].mean())
        mask = ~(below & (noise(history, epoch, seed) < self.prune))
        weight = torch.where(below, 1 / (1 - self.prune), 1.0).to(history.score.dtype)
        return Chosen(mask, weight)


def noise(history: History, epoch: int, seed: int) -> Float[Tensor, " n"]:
    """A uniform number in [0, 1) for each image, drawn for this epoch alone, float64."""
    words = draw_words((_PURPOSE, seed, epoch), torch.arange(len(history)))
    return words.double() / (1 << 63)


def first_of(key: Float[Tensor, " n"], count: int) -> Bool[Tensor, " n"]:
    """Which images have the `count` lowest keys; ties go to the lower position."""
    mask = torch.zeros(len(key), dtype=torch.bool, device=key.device)
    mask[key.argsort(stable=True)[:count]] = True
    return mask


def is_last(progress: float, share: float) -> bool:
    """Whether a point of a run, in [0, 1), lies in its last share.

    >>> is_last(3 / 10, share=0.7)  # 1 − 0.7 is a little more than 0.3
    True
    """
    return share > 0 and progress >= 1 - share - 1e-9


def num_chosen(share: float, num_images: int) -> int:
    """How many images a share of them is, at least 1."""
    return max(1, round(share * num_images))


RowScore = Callable[[Outputs, Outputs | None, MixedBatch], Float[Tensor, " k"]]
"""(student, teacher, rows) -> the value stored for each row's image `[k]`, higher = more worth another visit."""


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
