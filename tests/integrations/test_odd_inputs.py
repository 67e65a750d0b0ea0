"""Own loop = adapters: the same odd input gets the same verdict, a loss or a refusal, whoever hands it to the step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.integrations.lightning import DistillationModule
from unixkd.integrations.timm import DistillationTask
from unixkd.integrations.transformers import DistillationTrainer
from unixkd.method.losses import KD, CrossEntropy
from unixkd.method.objective import Term

OBJECTIVE = [Term("kd", KD()), Term("ce", CrossEntropy())]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Net(nn.Module):
    """Images [N, 1, 4, 4] to logits, under the name that transformers gives them too."""

    def __init__(
        self, seed: int, classes: int = 3, absent: int | None = None, in_place: bool = False
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head, self.absent, self.in_place = nn.Linear(16, classes), absent, in_place

    def forward(self, pixel_values: Tensor) -> Tensor:
        pixels = pixel_values.sub_(0.5) if self.in_place else pixel_values - 0.5
        logits = self.head(pixels.flatten(1))
        return logits if self.absent is None else logits.index_fill(1, torch.tensor(self.absent), -math.inf)


def own_loop(student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, _folder: str) -> Tensor:
    return Distiller(student, teacher, objective=OBJECTIVE, seed=42).step(images, labels).loss


def timm(student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, _folder: str) -> Tensor:
    task = DistillationTask(student, teacher, objective=OBJECTIVE, seed=42, verbose=False)
    return task(images, labels)["loss"]


def lightning(student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, _folder: str) -> Tensor:
    module = DistillationModule(student, teacher, objective=OBJECTIVE, seed=42)
    module.log_dict = lambda *args, **kwargs: None  # there is no Trainer
    return module.training_step((images, labels), 0)


def transformers(
    student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor, folder: str
) -> Tensor:
    arguments = TrainingArguments(folder, use_cpu=True, report_to="none", seed=42)
    trainer = DistillationTrainer(student, arguments, teacher=teacher, objective=OBJECTIVE)
    return trainer.compute_loss(student.train(), {"pixel_values": images, "labels": labels})


ADAPTERS = [timm, lightning, transformers]
ODD_LABELS = {
    "none odd": LABELS,
    "-100": LABELS.index_fill(0, torch.tensor([1]), -100),
    "all -100": torch.full((6,), -100),
    "-1": LABELS.index_fill(0, torch.tensor([1]), -1),
    "3 of 3": LABELS + 1,
    "float": LABELS.float(),
    "bool": LABELS > 0,
    "one-hot": nn.functional.one_hot(LABELS),
    "short": LABELS[:5],
}
ODD_NETWORKS = {
    "one logit": lambda: (Net(1, 1), Net(2, 1)),
    "teacher rules a class out": lambda: (Net(1), Net(2, absent=2)),
    "both do": lambda: (Net(1, absent=2), Net(2, absent=2)),
    "student in place": lambda: (Net(1, in_place=True), Net(2)),
    "teacher in place": lambda: (Net(1), Net(2, in_place=True)),
}
REFUSED = {"-1", "3 of 3", "float", "bool", "one-hot", "short", "one logit", "nan"}


def verdict(
    run: Callable, networks: tuple[nn.Module, nn.Module], images: Tensor, labels: Tensor, folder: str
):
    try:
        return round(run(*networks, images, labels, folder).item(), 5)
    except UserError:
        return "refused"


@pytest.mark.parametrize("odd", [*ODD_LABELS, *ODD_NETWORKS, "nan"])
def test_the_same_odd_input_gets_the_same_verdict(odd, tmp_path):
    def given() -> tuple:
        networks = ODD_NETWORKS[odd]() if odd in ODD_NETWORKS else (Net(1), Net(2))
        images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3))
        if odd == "nan":
            images[2, 0, 1, 1] = math.nan
        classes = LABELS.clamp(max=1) if odd in ODD_NETWORKS else ODD_LABELS.get(odd, LABELS)
        return networks, images, classes, str(tmp_path)

    expected = verdict(own_loop, *given())
    assert (expected == "refused") == (odd in REFUSED)
    assert expected == "refused" or math.isfinite(expected)
    assert {run.__name__: verdict(run, *given()) for run in ADAPTERS} == dict.fromkeys(
        [run.__name__ for run in ADAPTERS], expected
    )
