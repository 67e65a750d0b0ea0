"""timm's logit distillation as its train script sets it up: the loop of `peers.py` for this peer.

Source: timm 1.0.31, `train.py` and `timm.task.LogitDistillationTask`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from timm.data import create_dataset, create_loader
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.loader import PrefetchLoader
from timm.data.transforms import MaybePILToTensor
from timm.optim import create_optimizer_v2
from timm.task import DistillationTeacher, LogitDistillationTask
from timm.utils import AverageMeter
from torch import nn
from torchvision import transforms

from unixkd.models import create_model

CPU = torch.device("cpu")
WORKERS = 4  # --workers
SETUP = {
    "workers": WORKERS,
    "layout": "contiguous (--channels-last is off)",
    "precision": "fp32 (--amp is off)",
    "augmentation": "random resized crop of 8-100 % with random interpolation, flip, colour jitter 0.4",
    "loss": "KD + 0 x cross-entropy with label smoothing 0.1, which is computed all the same",
}


def network(name: str) -> nn.Module:
    """One of our networks with what timm wants to know of a model."""
    net = create_model(name)
    net.pretrained_cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}  # type: ignore[assignment]
    return net


def loader(folder: Path, batch: int, equal: bool) -> PrefetchLoader:
    """Its loader; on equal terms in this process, with the random crop and flip of CIFAR."""
    found = create_loader(
        create_dataset("", root=str(folder), split="train", is_training=True, batch_size=batch),
        input_size=(3, 32, 32),
        batch_size=batch,
        is_training=True,
        interpolation="random",
        num_workers=0 if equal else WORKERS,
        device=CPU,
    )
    if equal:
        found.dataset.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), MaybePILToTensor()]
        )
    return found


def steps(folder: Path, teacher: str, student: str, *, batch: int, equal: bool) -> Iterator[None]:
    """Train without end; yields after every step."""
    net = network(student)
    task = LogitDistillationTask(
        net,
        DistillationTeacher(network(teacher)),
        criterion_kwargs={"smoothing": 0.1},
        task_loss_weight=0.0,
        temperature=4.0,
        device=CPU,
    )
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.05, weight_decay=2e-5, momentum=0.9)
    batches, losses = loader(folder, batch, equal), AverageMeter()
    while True:
        task.train()
        optimizer.zero_grad()
        for images, labels in batches:
            loss = task(images, labels)["loss"]
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), batch)
            optimizer.zero_grad()
            yield
