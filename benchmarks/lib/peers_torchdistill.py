"""torchdistill's KD on CIFAR as its sample configuration and example script set it up; see `peers.py`.

Source: torchdistill 1.1.5, README, `configs/sample/cifar100/kd/` and
`examples/torchvision/image_classification.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchdistill.misc.log import MetricLogger
from torchdistill.models.registry import get_model, register_model
from torchvision import transforms
from torchvision.datasets import ImageFolder

from unixkd.models import create_model

TEMPERATURE = 4.0
WORKERS = 16  # of its sample configurations for CIFAR
SETUP = {
    "workers": WORKERS,
    "layout": "contiguous (it has no option)",
    "precision": "fp32 (mixed precision needs Hugging Face accelerate)",
    "augmentation": "random crop with 4 pixels of padding, flip",
    "loss": "KD alone (alpha 0; 0.9 in its sample configurations, which adds cross-entropy)",
}
MEAN, STD = (0.5070754, 0.48655024, 0.44091907), (0.26733398, 0.25643876, 0.2761503)

register_model(key="unixkd")(create_model)


def dataset(folder: Path) -> ImageFolder:
    """The images, with the transforms of its sample configurations."""
    return ImageFolder(
        str(folder),
        transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(p=0.5),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        ),
    )


def configuration(batch: int, workers: int) -> dict[str, Any]:
    """What the `train` entry of its YAML file says."""
    loss = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": TEMPERATURE,
        "alpha": 0.0,
    }
    # with alpha 0 the loss comes without its factor of the squared temperature
    terms = {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": TEMPERATURE**2}}
    return {
        "log_freq": 100,
        "num_epochs": 200,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": batch, "num_workers": workers},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005}},
        "scheduler": {"key": "MultiStepLR", "kwargs": {"milestones": [60, 120, 160], "gamma": 0.2}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def steps(folder: Path, teacher: str, student: str, *, batch: int, equal: bool) -> Iterator[None]:
    """Train without end; yields after every step."""
    asked, trained = (get_model("unixkd", name=name) for name in (teacher, student))
    asked.eval()  # it would leave the teacher in training mode
    config = configuration(batch, 0 if equal else WORKERS)
    cpu = torch.device("cpu")
    box = get_distillation_box(asked, trained, {"train": dataset(folder)}, config, cpu, None, False, 1)
    for epoch in itertools.count():
        box.pre_epoch_process(epoch=epoch)
        logger = MetricLogger()
        for images, labels, extra in logger.log_every(box.train_data_loader, config["log_freq"]):
            loss = box.forward_process(images, labels, extra)
            box.post_forward_process(loss=loss)
            logger.update(loss=loss.item())
            yield
        box.post_epoch_process()
