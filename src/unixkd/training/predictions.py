"""Predictions of a network on a data split: accuracy, agreement with the teacher, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import NamedTuple

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
        top: the k most probable classes, the first of equals first `[n, k]`, or None where nobody asked for them
    """

    classes: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    labels: Int[Tensor, " n"] | None
    index: Int[Tensor, " n"] | None = None
    top: Int[Tensor, "n k"] | None = None

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
    return predict_each([model], batches, device, dtype)[0]


def predict_each(
    models: Sequence[nn.Module],
    batches: Iterable[Batch],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    top: int = 0,
) -> list[Predictions]:
    """As `predict`, of several models on the same batches, which are read once; top: classes to keep of each image."""
    networks = [Network(model, dtype=dtype) for model in models]
    parts: list[list[Predictions]] = [[] for _ in models]
    with torch.no_grad(), ExitStack() as modes:
        for model in models:
            modes.enter_context(evaluating(model))
        for batch in batches:
            images = batch.images.to(device)
            for network, said in zip(networks, parts, strict=True):
                probabilities = torch.softmax(network(images).logits.float(), dim=1)
                confidence, classes = probabilities.max(dim=1)
                most = min(top, probabilities.shape[1])
                best = probabilities.sort(dim=1, descending=True, stable=True)[1][:, :most] if most else None
                said.append(Predictions(classes, confidence, batch.labels, batch.index, best))
    nothing = Predictions(torch.empty(0, dtype=torch.int64), torch.empty(0), None)
    return [concat(said) if said else nothing for said in parts]


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
    rest = (None if each is None else each[place] for each in (joined.labels, None, joined.top))
    return Predictions(joined.classes[place], joined.confidence[place], *rest)


def expected_calibration_error(
    confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = CALIBRATION_BINS
) -> float:
    """Mean |confidence − accuracy| over equal-width bins, weighted by their size (Guo et al., arXiv 1706.04599).

    >>> expected_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
    0.25
    """
    confidence = confidence.double()
    gap = _sums(confidence - correct.double(), confidence, bins)
    return gap.abs().sum().item() / len(confidence)


class CurvePoint(NamedTuple):
    """The images of one bin of confidence (low, high]: how many, their mean confidence, the share of right answers."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def calibration_curve(
    confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = CALIBRATION_BINS
) -> list[CurvePoint]:
    """The bins that `expected_calibration_error` is the mean over, without the empty ones.

    >>> calibration_curve(torch.tensor([0.75, 0.75]), torch.tensor([True, False]), bins=2)
    [CurvePoint(low=0.5, high=1.0, images=2, confidence=0.75, accuracy=0.5)]
    """
    confidence = confidence.double()
    rows = [
        _sums(each, confidence, bins) for each in (torch.ones_like(confidence), confidence, correct.double())
    ]
    columns = enumerate(zip(*(row.tolist() for row in rows), strict=True))
    return [
        CurvePoint(i / bins, (i + 1) / bins, round(n), sure / n, right / n)
        for i, (n, sure, right) in columns
        if n
    ]


def _sums(values: Float[Tensor, " n"], confidence: Float[Tensor, " n"], bins: int) -> Float[Tensor, " bins"]:
    """The sum of float64 values by bin of confidence: (0, 1/bins], (1/bins, 2/bins], …; 0 is in the first."""
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return torch.zeros(bins, dtype=torch.float64).index_add(0, which, values)
