"""Named recipes as values, and the published figures they stand beside; imports no torch.

Source of every figure: arXiv 2012.09413, table 2 (top-1 %, mean of 4 runs, best epoch on the test set).
The recipe on ImageNet is the field's, see `imagenet_recipe`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unixkd.errors import unknown_name


@dataclass(frozen=True)
class Pair:
    """A teacher → student pair of the paper with its published figures.

    Args:
        ratio: F_t/F_s; ours differs for some pairs, see `unixkd plan`
        kd: accuracy of plain KD in %
        unix: accuracy of UNIX in %
        computation: cost of UNIX in % of plain KD's (backward = 1 forward)
    """

    teacher: str
    student: str
    ratio: float
    kd: float
    unix: float
    computation: float

    @property
    def name(self) -> str:
        """The recipe's name."""
        return f"cifar100/{self.teacher}-{self.student}"


PAIRS = (
    Pair("vgg13", "MobileNetV2", 38.17, 67.94, 68.09, 77.49),
    Pair("ResNet50", "MobileNetV2", 174.00, 68.33, 68.76, 75.57),
    Pair("ResNet50", "vgg8", 13.56, 73.43, 74.02, 81.43),
    Pair("resnet32x4", "ShuffleV1", 27.16, 74.52, 76.48, 78.43),
    Pair("resnet32x4", "ShuffleV2", 23.49, 75.07, 76.86, 78.92),
    Pair("wrn_40_2", "ShuffleV1", 8.22, 76.04, 77.06, 84.79),
    Pair("wrn_40_2", "wrn_16_2", 3.25, 75.40, 75.40, 94.06),
    Pair("wrn_40_2", "wrn_40_1", 3.93, 73.77, 74.38, 91.88),
    Pair("resnet56", "resnet20", 3.06, 70.72, 70.41, 94.76),
    Pair("resnet32x4", "resnet8x4", 6.12, 73.34, 74.86, 87.32),
    Pair("vgg13", "vgg8", 2.97, 73.38, 73.55, 95.10),
    Pair("vgg16", "vgg8", 4.14, 72.10, 73.06, 91.29),
)
"""The 12 pairs of the paper's CIFAR-100 table."""

_SMALL_LR = ("MobileNetV2", "ShuffleV1", "ShuffleV2")

IMAGENET = "imagenet/resnet34-resnet18"
"""The recipe whose data have no name: they are where the user keeps them."""


NAMES = (*(pair.name for pair in PAIRS), IMAGENET)
"""Of all recipes."""

_SGD = {"train.optimizer": "sgd", "train.momentum": 0.9, "train.schedule": "multistep", "train.gamma": 0.1}


def recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe, by dotted name: the paper's schedule for its pairs, the field's on ImageNet.

    Raises:
        UsageError: there is no such recipe

    >>> recipe("cifar100/wrn_40_2-wrn_16_2")["train.epochs"]
    240
    """
    if name == IMAGENET:
        return imagenet_recipe()
    pair = next((pair for pair in PAIRS if pair.name == name), None)
    if pair is None:
        raise unknown_name("recipe", name, NAMES)
    return {
        **_SGD,
        "data.name": "cifar100",
        "teacher.name": pair.teacher,
        "student.name": pair.student,
        "train.epochs": 240,
        "train.batch_size": 64,
        "train.lr": 0.01 if pair.student in _SMALL_LR else 0.05,
        "train.weight_decay": 5e-4,
        "train.milestones": [150 / 240, 180 / 240, 210 / 240],
        "train.precision": "fp32",  # as the paper ran: under bf16 a step's gradient has another direction
        "train.teacher_precision": "fp32",
        "loss.kd": 1.0,
        "loss.ce": 0.0,
        "loss.temperature": 4.0,
    }


def imagenet_recipe() -> dict[str, Any]:
    """ResNet-34 into ResNet-18 on ImageNet-1k, as methods of distillation are compared; names no data.

    The teacher has torchvision's published weights. 100 epochs of SGD in batches of 256, lr 0.1, a tenth of it from
    epochs 30, 60 and 90 on (CRD, arXiv 1910.10699: PyTorch's own practice with 10 more epochs); 0.5 · CE + 0.5 · KD at
    T = 1 (mdistiller, `configs/imagenet/r34_r18/kd.yaml`, which takes batches of 512 at lr 0.2; torchdistill has the
    same loss).

    >>> settings = imagenet_recipe()
    >>> [round(settings["train.epochs"] * share) for share in settings["train.milestones"]]
    [30, 60, 90]
    """
    return {
        **_SGD,
        "data.size": 224,
        "teacher.name": "torchvision:resnet34",
        "teacher.pretrained": True,
        "student.name": "torchvision:resnet18",
        "train.epochs": 100,
        "train.batch_size": 256,
        "train.lr": 0.1,
        "train.weight_decay": 1e-4,
        "train.milestones": [0.3, 0.6, 0.9],
        "loss.kd": 0.5,
        "loss.ce": 0.5,
        "loss.temperature": 1.0,
    }


def teacher_recipe(name: str) -> dict[str, Any]:
    """The same pair's recipe for training its teacher on labels: model = the pair's teacher; lr 0.05 on CIFAR-100."""
    settings = recipe(name)
    kept = {key: value for key, value in settings.items() if key.startswith(("data.", "train."))}
    rate = settings["train.lr"] if name == IMAGENET else 0.05
    return {**kept, "model.name": settings["teacher.name"], "train.lr": rate}


def planned_recipe(name: str) -> dict[str, Any]:
    """A recipe for `plan`, which has the size of a batch under another name."""
    settings = recipe(name)
    return settings | {"batch_size": settings["train.batch_size"]}
