"""Distil in your own training loop: plain torch models and data, and three lines of unixkd.

Run with `python examples/own_loop.py`; needs scikit-learn for its 1,797 digits and takes a few seconds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import unixkd


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).double().mean().item()


torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels in [0, 1]
labels = torch.tensor(digits.target)
loader = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True)
test = images[1400:], labels[1400:]

teacher = network(width=32)
optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-2)
for _ in range(5):
    for x, y in loader:
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

student = network(width=8)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
distiller = unixkd.Distiller(student, teacher, method=unixkd.unix(), batch_size=64)
for epoch in range(6):
    student.train()
    for x, y in loader:
        result = distiller.step(x, y)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1:>2}: student {accuracy(student, *test):.1%}")

print(f"teacher {accuracy(teacher, *test):.1%}, student {accuracy(student, *test):.1%}")
print(distiller.ledger)
