"""UNIX in plain PyTorch, as one would write it from the paper (arXiv 2012.09413): what `plain_way.py` measures against.

Nothing of unixkd is used. Eager float32 in torch's default memory format, torchvision transforms in loader
processes, one loss read per step; nothing is slowed down on purpose, nothing is tuned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.5071, 0.4866, 0.4409), (0.2675, 0.2565, 0.2761)


@dataclass(frozen=True)
class Settings:
    """The paper's hyper-parameters: N, k, b, w, T, and those of SGD."""

    batch_size: int = 64
    num_kept: int = 48
    mix_from: int = 32
    steepness: float = 10.0
    temperature: float = 4.0
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4


class Step(NamedTuple):
    """What one step worked out."""

    scores: Tensor
    kept: Tensor
    mixed: Tensor
    teacher_logits: Tensor
    loss: Tensor


class Images(Dataset):
    """Images in memory, augmented one by one.

    Args:
        images: pixels `[N, H, W, 3]`, uint8
        labels: class numbers `[N]`
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def make_loader(images: np.ndarray, labels: np.ndarray, batch_size: int, workers: int) -> DataLoader:
    """Shuffled batches made by worker processes that stay alive between epochs."""
    dataset = Images(images, labels)
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def unix_step(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    permutation: Tensor,
    lam: float,
    settings: Settings,
) -> Step:
    """Score, rank, mix, ask the teacher, compute the loss.

    Args:
        student: in train mode
        teacher: in eval mode
        images: normalised batch `[n, 3, H, W]`
        permutation: partner of each rank `[n]`
        lam: mixing weight λ of the batch
        settings: k, b, w and T
    """
    with torch.no_grad():
        log_p = F.log_softmax(student(images), dim=1)
    scores = -(log_p.exp() * log_p).sum(dim=1)
    n, b = settings.batch_size, settings.mix_from
    kept = scores.argsort(descending=True)[: settings.num_kept]
    rank = torch.arange(len(kept)) / n
    m = lam * torch.sigmoid(settings.steepness * (rank - (2 * b - 1) / (2 * n)))
    m = m.view(-1, 1, 1, 1)
    mixed = (1 - m) * images[kept] + m * images[permutation[: len(kept)]]
    with torch.no_grad():
        teacher_logits = teacher(mixed)
    t = settings.temperature
    log_q = F.log_softmax(student(mixed) / t, dim=1)
    loss = F.kl_div(log_q, F.softmax(teacher_logits / t, dim=1), reduction="batchmean") * t**2
    return Step(scores, kept, mixed, teacher_logits, loss)


def train_steps(
    student: nn.Module, teacher: nn.Module, loader: DataLoader, settings: Settings
) -> Iterator[float]:
    """Train epoch after epoch; the loss of each step, once the step is done."""
    optimizer = torch.optim.SGD(
        student.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    student.train()
    teacher.eval()
    while True:
        for images, _ in loader:
            permutation, lam = torch.randperm(len(images)), np.random.beta(1, 1)
            step = unix_step(student, teacher, images, permutation, lam, settings)
            optimizer.zero_grad()
            step.loss.backward()
            optimizer.step()
            yield step.loss.item()
