"""Slow, independent versions of the losses, in plain loops over NumPy numbers, and small networks.

Written from the papers' definitions, row by row, so that they share no code and no trick with `losses.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from unixkd.method.batch import MixedBatch, Outputs

Rows = np.ndarray


def probabilities(row: Sequence[float], temperature: float) -> list[float]:
    top = max(row)
    powers = [math.exp((x - top) / temperature) for x in row]
    return [p / sum(powers) for p in powers]


def kl(target: Sequence[float], guess: Sequence[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(target, guess, strict=True) if p > 0)


def kd(student: Rows, teacher: Rows, temperature: float) -> float:
    rows = [
        kl(probabilities(t, temperature), probabilities(s, temperature))
        for s, t in zip(student, teacher, strict=True)
    ]
    return temperature**2 * float(np.mean(rows))


def cross_entropy(student: Rows, label_a: list[int], label_b: list[int], weight: list[float]) -> float:
    rows = []
    for s, a, b, m in zip(student, label_a, label_b, weight, strict=True):
        p = probabilities(s, 1.0)
        rows.append(-(1 - m) * math.log(p[a]) - m * math.log(p[b]))
    return float(np.mean(rows))


def dkd_row(s: Rows, t: Rows, label: int, temperature: float, alpha: float, beta: float) -> float:
    """α · KL over (target, not target) + β · KL over the other classes, times T²."""
    p_s, p_t = probabilities(s, temperature), probabilities(t, temperature)
    target = kl([p_t[label], 1 - p_t[label]], [p_s[label], 1 - p_s[label]])
    others_s = probabilities([x for c, x in enumerate(s) if c != label], temperature)
    others_t = probabilities([x for c, x in enumerate(t) if c != label], temperature)
    return temperature**2 * (alpha * target + beta * kl(others_t, others_s))


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def dist(student: Rows, teacher: Rows, temperature: float, inter: float, intra: float) -> float:
    p = [probabilities(s, temperature) for s in student]
    q = [probabilities(t, temperature) for t in teacher]
    rows = [1 - correlation(a, b) for a, b in zip(p, q, strict=True)]
    columns = [1 - correlation(a, b) for a, b in zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)]
    return temperature**2 * (inter * sum(rows) / len(rows) + intra * sum(columns) / len(columns))


def unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


def attention(feature: Rows, size: int) -> list[float]:
    """Averaged over cells of a size × size grid, mean of squares over channels, as a unit vector; `[c, h, w]`."""
    channels, height, width = feature.shape
    step_y, step_x = height // size, width // size
    cells = []
    for y in range(size):
        for x in range(size):
            total = 0.0
            for channel in feature:
                cell = channel[y * step_y : (y + 1) * step_y, x * step_x : (x + 1) * step_x]
                total += (float(cell.sum()) / (step_y * step_x)) ** 2
            cells.append(total / channels)
    return unit(cells)


def attention_transfer(student: Rows, teacher: Rows) -> float:
    size = min(student.shape[2], teacher.shape[2])
    squares = [
        (a - b) ** 2
        for s, t in zip(student, teacher, strict=True)
        for a, b in zip(attention(s, size), attention(t, size), strict=True)
    ]
    return sum(squares) / len(squares)


def gram_rows(feature: Rows) -> list[list[float]]:
    flat = [[float(v) for v in row.reshape(-1)] for row in feature]
    return [unit([sum(x * y for x, y in zip(a, b, strict=True)) for b in flat]) for a in flat]


def similarity_preserving(student: Rows, teacher: Rows) -> float:
    a, b = gram_rows(student), gram_rows(teacher)
    k = len(a)
    return sum((a[i][j] - b[i][j]) ** 2 for i in range(k) for j in range(k)) / k**2


# What the tests are run on


class TinyNet(nn.Module):
    """Two convolutions with BatchNorm: every kind of state that a step could disturb."""

    def __init__(self, num_classes: int = 5, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images)).mean(dim=(2, 3)))


class RowCounter:
    """Counts a module's forwards and the rows of each, through a hook."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[int] = []
        module.register_forward_hook(lambda _module, inputs, _output: self.rows.append(len(inputs[0])))


def images_of(n: int, seed: int = 0, size: int = 8) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def labels_of(n: int, num_classes: int = 5, seed: int = 1) -> Tensor:
    return torch.randint(num_classes, (n,), generator=torch.Generator().manual_seed(seed))


def mixed_of(
    k: int,
    *,
    num_classes: int = 5,
    seed: int = 0,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> MixedBatch:
    """k mixed rows with labels; images are of no concern to a loss."""
    return MixedBatch(
        images=torch.zeros(k, 3, 2, 2),
        label_a=labels_of(k, num_classes, seed),
        label_b=labels_of(k, num_classes, seed + 1),
        weight=torch.rand(k, generator=torch.Generator().manual_seed(seed)) if weight is None else weight,
        sample_weight=torch.ones(k) if sample_weight is None else sample_weight,
        position=torch.arange(k),
    )


def outputs_of(k: int, *, num_classes: int = 5, channels: int = 3, size: int = 4, seed: int = 0) -> Outputs:
    """Logits `[k, classes]` and one feature map under the name `map`, in float64, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(k, num_classes, generator=generator, dtype=torch.float64)
    feature = torch.randn(k, channels, size, size, generator=generator, dtype=torch.float64)
    return Outputs(logits.requires_grad_(), {"map": feature.requires_grad_()})
