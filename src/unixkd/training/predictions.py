"""Predictions of a network on a data split: accuracy, agreement with the teacher, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unixkd.method.batch import Batch
from unixkd.method.network import Network, evaluating

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """What a network says about a split.

    Args:
        classes: the most probable one `[n]`
        confidence: its probability in [0, 1] `[n]`
        labels: the right one `[n]`, or None
        index: position of each image in the split `[n]`, or None
    """

    classes: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    labels: Int[Tensor, " n"] | None
    index: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, None without labels."""
        return None if self.labels is None else (self.classes == self.labels).double().mean().item()

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error over 15 bins, None without labels."""
        if self.labels is None:
            return None
        return expected_calibration_error(self.confidence, self.classes == self.labels)

    def agreement(self, other: Predictions) -> float:
        """Share of images on which both say the same class."""
        return (self.classes == other.classes).double().mean().item()


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Predictions:
    """Run a model in eval mode over a split's batches, each image once; dtype: precision by autocast."""
    network = Network(model, dtype=dtype)
    parts = []
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            probabilities = torch.softmax(network(batch.images.to(device)).logits.float(), dim=1)
            confidence, classes = probabilities.max(dim=1)
            parts.append(Predictions(classes, confidence, batch.labels, batch.index))
    if not parts:
        return Predictions(torch.empty(0, dtype=torch.int64), torch.empty(0), None)
    return concat(parts)


def concat(parts: Sequence[Predictions]) -> Predictions:
    """Predictions one after the other, on the CPU; all have the same fields set."""
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Predictions))
    return Predictions(*(None if column[0] is None else torch.cat(column).cpu() for column in columns))  # type: ignore[arg-type]


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Predictions about parts of a split, of which some may be empty, in the split's own order."""
    joined = concat([part for part in parts if len(part)])
    if joined.index is None:
        return joined
    place = joined.index.argsort()
    labels = None if joined.labels is None else joined.labels[place]
    return Predictions(joined.classes[place], joined.confidence[place], labels)


def expected_calibration_error(
    confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = CALIBRATION_BINS
) -> float:
    """Mean |confidence − accuracy| over equal-width bins, weighted by their size (Guo et al., arXiv 1706.04599).

    >>> expected_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
    0.25
    """
    confidence = confidence.double()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64).index_add(0, which, confidence - correct.double())
    return gap.abs().sum().item() / len(confidence)
