"""How many classes weights have, and whose preprocessing they get."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unixkd.config import ModelConfig
from unixkd.errors import UserError
from unixkd.models import ModelCard, PixelModel, build_model, create_model, save_model
from unixkd.models.loading import own_num_classes

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def weights_of(name: str, num_classes: int, folder: Path) -> str:
    torch.save(create_model(name, num_classes).state_dict(), folder / "weights.pth")
    return str(folder / "weights.pth")


def test_classes_of_a_run_folder_and_of_a_weights_file(tmp_path):
    model = PixelModel(create_model("resnet8", 7), ModelCard("resnet8", 7, 3, MEAN, STD))
    save_model(model, tmp_path / "run")
    assert own_num_classes(ModelConfig(str(tmp_path / "run")), 3) == 7
    for name in ("vgg8", "torchvision:squeezenet1_1"):
        assert own_num_classes(ModelConfig(name, weights=weights_of(name, 9, tmp_path)), 3) == 9


def test_no_weights_or_another_architecture_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no weights to tell them by"):
        own_num_classes(ModelConfig("vgg8"), 3)
    with pytest.raises(UserError, match=r"another architecture: it has no 'conv1\.weight'"):
        own_num_classes(ModelConfig("resnet8", weights=weights_of("vgg8", 9, tmp_path)), 3)


@pytest.mark.parametrize(("classes", "published"), [(1000, True), (5, False)])
def test_a_file_with_the_published_class_count_gets_the_published_preprocessing(tmp_path, classes, published):
    name = "torchvision:mobilenet_v3_small"
    config = ModelConfig(name, weights=weights_of(name, classes, tmp_path))
    model = build_model(config, num_classes=classes, in_channels=3, mean=MEAN, std=STD, role="teacher")
    assert model.card.mean == ((0.485, 0.456, 0.406) if published else MEAN)
    assert model.card.std == ((0.229, 0.224, 0.225) if published else STD)
    assert model.card.size == (224 if published else None)


def test_the_configuration_beats_the_published_preprocessing(tmp_path):
    name = "torchvision:mobilenet_v3_small"
    config = ModelConfig(name, weights=weights_of(name, 1000, tmp_path), mean=list(MEAN), std=list(STD))
    model = build_model(config, num_classes=1000, in_channels=3, mean=STD, std=MEAN, role="teacher")
    assert (model.card.mean, model.card.std) == (MEAN, STD)


def test_a_student_started_from_published_weights_keeps_their_preprocessing(tmp_path):
    name = "torchvision:mobilenet_v3_small"
    config = ModelConfig(name, weights=weights_of(name, 1000, tmp_path))
    model = build_model(config, num_classes=4, in_channels=3, mean=MEAN, std=STD, role="student")
    assert model.card.num_classes == 4
    assert model.card.mean == (0.485, 0.456, 0.406)
