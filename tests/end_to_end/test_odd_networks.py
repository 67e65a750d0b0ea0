"""Own loop = command: the same odd input gets the same verdict from `Distiller` and from `unixkd distill`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from running import call
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.losses import KD, CrossEntropy
from unixkd.method.objective import Term
from unixkd.method.unix import kd

NETWORKS = """
import math
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.head = nn.Linear(16 * in_channels, num_classes)

    def forward(self, x):
        return self.head((x - 0.5).flatten(1))

class InPlace(Plain):
    def forward(self, x):
        return self.head(x.sub_(0.5).flatten(1))

class OneLogit(Plain):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(1, in_channels)

class Masked(Plain):
    def forward(self, x):
        return super().forward(x).index_fill(1, torch.tensor(2), -math.inf)

class Nothing(Plain):
    def forward(self, x):
        return super().forward(x) * math.nan
"""
STUDENTS = {"Plain": True, "InPlace": True, "OneLogit": False}
TEACHERS = {"Plain": True, "InPlace": True, "Masked": True, "OneLogit": False}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "odd_networks.py"
    file.write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four grey images of each of three classes, 4 × 4 pixels."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "abc":
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = draw.integers(256, size=(4, 4), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / label / f"{i}.png")
    return tmp_path / "photos"


def by_hand(student: str, teacher: str, images: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether a step of the own loop gives a finite loss; False: it refuses."""
    module = sys.modules.pop("odd_networks", None) or __import__("odd_networks")
    objective = [Term("kd", KD()), Term("ce", CrossEntropy())]
    try:
        distiller = Distiller(getattr(module, student)(), getattr(module, teacher)(), kd(), objective)
        return math.isfinite(distiller.step(images, labels).loss.item())
    except UserError:
        return False


def by_command(code: Path, photos: Path, student: str, teacher: str, out: Path) -> bool:
    """Whether the command trains; False: it ends with exit code 1 or 2 and one line."""
    torch.save(torch.nn.Linear(16, 1 if teacher == "OneLogit" else 3).state_dict(), out.parent / "head.pth")
    weights = {
        f"head.{name}": t for name, t in torch.load(out.parent / "head.pth", weights_only=True).items()
    }
    torch.save(weights, out.parent / "weights.pth")
    exit_code = call(
        *("distill", "--teacher", f"{code}:{teacher}", "--teacher.weights", out.parent / "weights.pth"),
        *("--student", f"{code}:{student}", "--method", "kd", "--data", f"folder:{photos}"),
        *("--loss.ce", 1, "--train.batch_size", 4, "--epochs", 1, "--lr", 0.01),
        *("--train.precision", "fp32", "--train.teacher_precision", "fp32", "--out", out),
    )
    return exit_code == 0


@pytest.mark.parametrize(
    ("student", "teacher"), [*((s, "Plain") for s in STUDENTS), *(("Plain", t) for t in list(TEACHERS)[1:])]
)
def test_odd_networks(student, teacher, code, photos, tmp_path, capsys):
    images, labels = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    right = STUDENTS[student] and TEACHERS[teacher]
    assert by_hand(student, teacher, images, labels) == right
    assert by_command(code, photos, student, teacher, tmp_path / "out") == right, capsys.readouterr().err
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err


def test_an_image_that_is_not_finite(code, photos, tmp_path, capsys):
    pixels = np.full((4, 4), 0.5, np.float32)
    pixels[1, 2] = np.nan
    (photos / "train" / "a" / "0.png").unlink()
    Image.fromarray(pixels).save(photos / "train" / "a" / "0.tiff")
    images = torch.from_numpy(pixels).expand(4, 1, 4, 4).clone()
    assert not by_hand("Plain", "Plain", images, torch.tensor([0, 1, 2, 0]))
    assert not by_command(code, photos, "Plain", "Plain", tmp_path / "out")
    assert "0.tiff" in capsys.readouterr().err


@pytest.mark.parametrize("answers", ["Nothing"])
def test_a_teacher_without_an_answer_trains_nobody(answers, code, photos, tmp_path, capsys):
    assert not by_hand("Plain", answers, torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]))
    assert not by_command(code, photos, "Plain", answers, tmp_path / "out")
    assert "Traceback" not in capsys.readouterr().err
