"""Distil as a task of timm, in a loop as timm's training script has it: `python examples/timm_task.py`."""

from __future__ import annotations

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, TrainingTask
from timm.utils import AverageMeter, accuracy
from torch.utils.data import DataLoader, TensorDataset

import unixkd
from unixkd.integrations.timm import DistillationTask


def network(width: int) -> torch.nn.Module:
    """A small ResNet of timm, for one channel."""
    channels = (width, width, 2 * width, 2 * width)
    return timm.create_model("test_resnet", num_classes=10, in_chans=1, stem_width=8, channels=channels)


def train(task: TrainingTask, epochs: int) -> None:
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=3e-3)
    for epoch in range(epochs):
        task.train()
        losses = AverageMeter()
        for input, target in loader:
            result = task(input, target)
            result["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(result["loss"].item(), len(input))
        print(f"{type(task).__name__}, epoch {epoch + 1}: loss {losses.avg:.3f}")


torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
images = torch.nn.functional.interpolate(images, scale_factor=4)  # a ResNet halves them four times and more
labels = torch.tensor(digits.target)
loader = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True)

teacher = network(32)
train(ClassificationTask(teacher, verbose=False), epochs=3)

task = DistillationTask(network(16), teacher, unixkd.unix(), batch_size=64, verbose=False)
train(task, epochs=4)

student = task.get_eval_model().eval()
with torch.no_grad():
    (right,) = accuracy(student(images[1400:]), labels[1400:])
print(f"student {right:.1f}%")
print(task.ledger)
