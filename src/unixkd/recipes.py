"""Named recipes as values, and the published figures they stand beside; imports no torch.

Source of every figure: arXiv 2012.09413, table 2 (top-1 %, mean of 4 runs, best epoch on the test set).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unixkd.errors import unknown_name


@dataclass(frozen=True)
class Pair:
    """A teacher → student pair of the paper.

    Args:
        teacher: name of the teacher
        student: name of the student
        ratio: published F_t/F_s; ours differs for some pairs, see `unixkd plan`
        kd: published accuracy of plain KD in %
        unix: published accuracy of UNIX in %
        computation: published cost of UNIX in % of plain KD's (backward = 1 forward)
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


def recipe_names() -> tuple[str, ...]:
    """Every recipe by name."""
    return tuple(pair.name for pair in PAIRS)


def recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe, by dotted name: the paper's schedule for that pair.

    Raises:
        UsageError: there is no such recipe

    >>> recipe("cifar100/wrn_40_2-wrn_16_2")["train.epochs"]
    240
    """
    pairs = {pair.name: pair for pair in PAIRS}
    if name not in pairs:
        raise unknown_name("recipe", name, pairs)
    pair = pairs[name]
    return {
        "data.name": "cifar100",
        "teacher.name": pair.teacher,
        "student.name": pair.student,
        "train.epochs": 240,
        "train.batch_size": 64,
        "train.optimizer": "sgd",
        "train.lr": 0.01 if pair.student in _SMALL_LR else 0.05,
        "train.momentum": 0.9,
        "train.weight_decay": 5e-4,
        "train.schedule": "multistep",
        "train.milestones": [150 / 240, 180 / 240, 210 / 240],
        "train.gamma": 0.1,
        "loss.kd": 1.0,
        "loss.ce": 0.0,
        "loss.temperature": 4.0,
    }


def teacher_recipe(name: str) -> dict[str, Any]:
    """The same pair's recipe for training its teacher on labels: lr 0.05, model = the pair's teacher."""
    settings = recipe(name)
    kept = {key: value for key, value in settings.items() if key.startswith(("data.", "train."))}
    return {**kept, "model.name": settings["teacher.name"], "train.lr": 0.05}
