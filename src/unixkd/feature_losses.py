"""Losses that compare named layers of both networks; they follow the weight rule of `losses`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unixkd.batch import MixedBatch, Outputs
from unixkd.errors import UserError
from unixkd.losses import weighted_mean
from unixkd.scoring import full_precision


@dataclass(frozen=True)
class FeatureLoss:
    """A loss on named layers of both networks, in the same order.

    Args:
        student_layers: names of the student's modules; empty: the model's own stages
        teacher_layers: names of the teacher's modules
    """

    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True

    def pairs(self, student: Outputs, teacher: Outputs | None) -> Sequence[tuple[Tensor, Tensor]]:
        """The feature maps of both networks in at least float32, layer by layer."""
        if teacher is None:
            raise UserError(f"{type(self).__name__} needs a teacher")
        return [
            (full_precision(student.features[s]), full_precision(teacher.features[t]))
            for s, t in zip(self.student_layers, self.teacher_layers, strict=True)
        ]


@dataclass(frozen=True)
class AttentionTransfer(FeatureLoss):
    """Squared distance of attention maps, summed over layers (Zagoruyko & Komodakis, arXiv 1612.03928).

    A map is the channel mean of squared activations, flattened and L2-normalised per row; the larger of
    two features is average-pooled to the smaller first.
    """

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, ""]:
        total = torch.zeros((), device=mixed.weight.device)
        for s, t in self.pairs(student, teacher):
            if s.ndim != 4 or t.ndim != 4:
                raise UserError(f"attention transfer needs feature maps [k, c, h, w], got {list(s.shape)}")
            h, w = min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3])
            distance = (attention_map(s, h, w) - attention_map(t, h, w)).square().mean(dim=1)
            total = total + weighted_mean(distance, mixed.sample_weight)
        return total


@dataclass(frozen=True)
class SimilarityPreserving(FeatureLoss):
    """Squared distance of row-normalised batch × batch Gram matrices / k² (Tung & Mori, arXiv 1907.09682)."""

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, ""]:
        w = mixed.sample_weight.to(torch.float32)
        total = torch.zeros((), device=w.device)
        for s, t in self.pairs(student, teacher):
            difference = similarity(s, w) - similarity(t, w)
            pairs = torch.einsum("i,j,ij->", w.to(s.dtype), w.to(s.dtype), difference.square())
            total = total + pairs / (len(w) * w.sum().clamp_min(torch.finfo(w.dtype).tiny))
        return total


def attention_map(feature: Float[Tensor, "k c h w"], height: int, width: int) -> Float[Tensor, "k hw"]:
    """Average-pooled to (height, width), channel mean of squares, flattened, L2-normalised per row."""
    pooled = F.adaptive_avg_pool2d(full_precision(feature), (height, width))
    return F.normalize(pooled.square().mean(dim=1).flatten(1), dim=1)


def similarity(feature: Float[Tensor, "k ..."], weight: Float[Tensor, " k"]) -> Float[Tensor, "k k"]:
    """Gram matrix of the rows, each row L2-normalised (a row weighs w_j times in the norm)."""
    flat = full_precision(feature).flatten(1)
    gram = flat @ flat.T
    energy = (gram.square() * weight.to(gram.dtype)).sum(dim=1, keepdim=True)
    # Clamped before the root, whose gradient at 0 (a row of dead features) would be NaN.
    return gram / energy.clamp_min(1e-24).sqrt()
