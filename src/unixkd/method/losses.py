"""Distillation losses: (student outputs, teacher outputs, mixed batch) -> scalar.

One rule for all of them: with sample weights w, a loss is mean(w) times its value on the batch in
which row i is repeated w_i times. So all weights 1 is the plain loss and a weight of 0 removes a row;
for losses that are means over rows, importance weights scale the gradient. Everything is computed in at
least float32, in log space. A teacher's logit of −inf is a probability of 0, which adds 0. A label of −100
is none: losses that need labels are means over the rows that have one, 0 where none has, as torch has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.batch import MixedBatch, Outputs
from unixkd.method.labels import UNLABELLED, outside
from unixkd.method.scoring import full_precision


@runtime_checkable
class Loss(Protocol):
    """A distillation loss: any callable of this signature with these two attributes."""

    @property
    def needs_labels(self) -> bool: ...

    @property
    def needs_teacher(self) -> bool: ...

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, ""]: ...


def weighted_mean(values: Float[Tensor, " k"], weight: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """mean(w · values).

    >>> weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))
    tensor(3.5000)
    """
    return (weight.to(values.dtype) * values).mean()


@dataclass(frozen=True)
class SoftenedLoss:
    """A loss between both networks' logits softened by a temperature T > 0."""

    temperature: float = 4.0
    needs_labels: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature must be greater than 0, got {self.temperature:g}")


@dataclass(frozen=True)
class KD(SoftenedLoss):
    """T² · KL(softmax(t/T) ‖ softmax(s/T)), mean over rows (Hinton et al., arXiv 1503.02531)."""

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, ""]:
        s, t = logit_pair(student, teacher)
        return weighted_mean(kl_divergence(t, s, self.temperature), mixed.sample_weight)


@dataclass(frozen=True)
class CrossEntropy:
    """(1 − m) · CE(s, y_a) + m · CE(s, y_b), mean over rows (mixup, arXiv 1710.09412)."""

    label_smoothing: float = 0.0
    needs_labels: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, ""]:
        logits = full_precision(student.logits)
        per_row = partial(F.cross_entropy, logits, reduction="none", label_smoothing=self.label_smoothing)
        return labelled_mean(per_row, mixed, logits.shape[1])


@dataclass(frozen=True)
class DKD(SoftenedLoss):
    """Decoupled KD: α · target-class part + β · non-target part (Zhao et al., arXiv 2203.08679).

    Under mixed labels the loss is (1 − m) · DKD(y_a) + m · DKD(y_b), as for cross-entropy.
    """

    alpha: float = 1.0
    beta: float = 8.0
    needs_labels: ClassVar[bool] = True

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, ""]:
        s, t = logit_pair(student, teacher)
        if s.shape[1] == 2 and self.alpha == 0:
            raise UserError("dkd with alpha 0 is 0 for two classes, which have one class beside the target")
        return labelled_mean(partial(self.per_row, s, t), mixed, s.shape[1])

    def per_row(
        self, s: Float[Tensor, "k classes"], t: Float[Tensor, "k classes"], label: Int[Tensor, " k"]
    ) -> Float[Tensor, " k"]:
        """The unmixed loss of each row for one label each."""
        log_s, log_t = (F.log_softmax(x / self.temperature, dim=1) for x in (s, t))
        place = label[:, None]
        target = F.one_hot(label, s.shape[1]).bool()
        # log of (target, everything else): two-class distributions, by log-sum-exp over the rest.
        log_rest_s, log_rest_t = (x.masked_fill(target, -torch.inf) for x in (log_s, log_t))
        absent = log_rest_t == -torch.inf
        # A rest of −inf alone, which is no distribution, would give NaN gradients.
        log_rest_s, log_rest_t = (
            x.masked_fill((x == -torch.inf).all(dim=1, keepdim=True), -1e30) for x in (log_rest_s, log_rest_t)
        )
        two_s, two_t = (
            torch.cat([x.gather(1, place), rest.logsumexp(dim=1, keepdim=True)], dim=1)
            for x, rest in ((log_s, log_rest_s), (log_t, log_rest_t))
        )
        rest_s, rest_t = (F.log_softmax(x, dim=1) for x in (log_rest_s, log_rest_t))
        rest_t = rest_t.masked_fill(absent, -torch.inf)
        target_part, rest_part = divergence(two_t, two_s), divergence(rest_t, rest_s)
        return self.temperature**2 * (self.alpha * target_part + self.beta * rest_part)


@dataclass(frozen=True)
class DIST(SoftenedLoss):
    """1 − Pearson correlation within rows and within classes (Huang et al., arXiv 2205.10536).

    Softened probabilities are correlated across classes for each row (inter) and across rows for each
    class (intra); T² keeps the gradient's size, as in KD.
    """

    inter: float = 1.0
    intra: float = 1.0

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Float[Tensor, ""]:
        s, t = (torch.softmax(x / self.temperature, dim=1) for x in logit_pair(student, teacher))
        if s.shape[1] == 2 and self.intra == 0:
            raise UserError(
                "dist with intra 0 has no gradient for two classes: any two rows of two correlate by ±1"
            )
        w = mixed.sample_weight.to(s.dtype)
        ones = torch.ones_like(s[0])
        inter = weighted_mean(1 - pearson(s, t, ones), w)
        intra = w.mean() * (1 - pearson(s.T, t.T, w)).mean()
        return self.temperature**2 * (self.inter * inter + self.intra * intra)


def kl_divergence(
    target_logits: Float[Tensor, "k classes"], logits: Float[Tensor, "k classes"], temperature: float
) -> Float[Tensor, " k"]:
    """T² · KL(softmax(target/T) ‖ softmax(logits/T)) of each row, ≥ 0.

    >>> kl_divergence(torch.zeros(1, 3), torch.zeros(1, 3), 4.0)
    tensor([0.])
    """
    log_q, log_p = (F.log_softmax(x / temperature, dim=1) for x in (target_logits, logits))
    return temperature**2 * divergence(log_q, log_p)


def divergence(log_q: Float[Tensor, "k classes"], log_p: Float[Tensor, "k classes"]) -> Float[Tensor, " k"]:
    """Σ q (log q − log p) of each row; classes of q = 0 add 0, whatever p is."""
    absent = log_q == -torch.inf  # 0 · −inf would be NaN
    log_q, log_p = (x.masked_fill(absent, 0.0) for x in (log_q, log_p))
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)


def pearson(
    a: Float[Tensor, "rows n"], b: Float[Tensor, "rows n"], weight: Float[Tensor, " n"]
) -> Float[Tensor, " rows"]:
    """Weighted Pearson correlation of each row pair, in [−1, 1]; 0 where a row is constant.

    >>> pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 4.0, 6.0]]), torch.ones(3))
    tensor([1.0000])
    """
    p = weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
    # Each side gets unit size by itself: the product of two small variances would underflow.
    a, b = (F.normalize(p.sqrt() * (x - (p * x).sum(dim=1, keepdim=True)), dim=1, eps=1e-8) for x in (a, b))
    return (a * b).sum(dim=1)


def logit_pair(
    student: Outputs, teacher: Outputs | None
) -> tuple[Float[Tensor, "k classes"], Float[Tensor, "k classes"]]:
    """Both networks' logits in at least float32; an error where they disagree on the classes."""
    if teacher is None:
        raise UserError("this loss needs a teacher")
    s, t = full_precision(student.logits), full_precision(teacher.logits)
    if s.shape[1] != t.shape[1]:
        raise UserError(
            f"the student has {s.shape[1]} classes, the teacher {t.shape[1]}: they must be the same classes"
        )
    return s, t


def labelled_mean(
    per_row: Callable[[Int[Tensor, " k"]], Float[Tensor, " k"]], mixed: MixedBatch, classes: int
) -> Float[Tensor, ""]:
    """(1 − m) · value(y_a) + m · value(y_b), mean over rows in so far as they are labelled.

    Labels of −100 weigh nothing; others that are no class make the loss NaN, which waits for no device.
    """
    if mixed.label_a is None or mixed.label_b is None:
        raise UserError("this loss needs labels, and the images have none: use kd, dist, at or sp")
    m, w = mixed.weight, mixed.sample_weight
    (a, without_a), (b, without_b) = (
        known_value(per_row, y, classes) for y in (mixed.label_a, mixed.label_b)
    )
    labelled = (
        w * (1 - (1 - m) * without_a - m * without_b)
    ).sum()  # w.sum() to the last bit where all rows are
    rescaled = torch.where(labelled > 0, w.sum() / labelled, 0.0)
    return rescaled * weighted_mean((1 - m) * a + m * b, w)


def known_value(
    per_row: Callable[[Int[Tensor, " k"]], Float[Tensor, " k"]], label: Integer[Tensor, " k"], classes: int
) -> tuple[Float[Tensor, " k"], Bool[Tensor, " k"]]:
    """The value of each row, 0 for a label of −100, NaN for one that is no class; and which labels are −100."""
    label = label.long()  # uint8 has no −100
    wrong, unlabelled = outside(label, classes), label == UNLABELLED
    value = per_row(label.masked_fill(wrong | unlabelled, 0))
    return value.masked_fill(unlabelled, 0.0).masked_fill(wrong, torch.nan), unlabelled


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
