"""Students, images and names that the tests of exports share."""

from __future__ import annotations

from pathlib import Path

import torch

from unixkd.export.preparation import Preparation, preparation_of
from unixkd.models import ModelCard, PixelModel, create_model

ALL = "safetensors,torch,onnx"
PAIR = {"README.md", "config.json", "model.safetensors", "checksums.json"}
"""What the format `safetensors` leaves."""


def small(size: int | None = 8, names: tuple[str, ...] | None = None, name: str = "resnet8") -> PixelModel:
    """A student with random weights and strong preprocessing."""
    torch.manual_seed(0)
    card = ModelCard(name, 3, 1, (0.3,), (0.2,), size, names)
    return PixelModel(create_model(name, 3, 1), card).eval()


def made_for(student: PixelModel, size: int = 8) -> Preparation:
    return preparation_of(student.card, size)


def pixels(count: int, side: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(count))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
