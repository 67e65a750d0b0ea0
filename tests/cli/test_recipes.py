"""Recipes: names, settings that exist, and the published schedule."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from unixkd.cli.recipes import IMAGENET, NAMES, PAIRS, planned_recipe, recipe, teacher_recipe
from unixkd.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from unixkd.errors import UsageError
from unixkd.models import model_names
from unixkd.models.published import check_name
from unixkd.training.optimizer import learning_rate

SECTIONS = {
    "data": DataConfig,
    "teacher": ModelConfig,
    "student": ModelConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "loss": LossConfig,
}


def train_of(settings: dict[str, Any]) -> TrainConfig:
    """The part of a recipe that says how to train."""
    return TrainConfig(**{k.removeprefix("train."): v for k, v in settings.items() if k.startswith("train.")})


def test_every_pair_is_there_once():
    assert len(PAIRS) == 12
    assert len(set(NAMES)) == len(NAMES) == 13
    assert set(NAMES) == {pair.name for pair in PAIRS} | {IMAGENET}
    for pair in PAIRS:
        assert {pair.teacher, pair.student} <= set(model_names())


@pytest.mark.parametrize("make", [recipe, teacher_recipe])
@pytest.mark.parametrize("name", NAMES)
def test_settings_are_fields_of_the_configuration(make, name):
    for key, value in make(name).items():
        section, field = key.split(".")
        types = {f.name: f.type for f in fields(SECTIONS[section])}
        assert field in types, key
        assert value is not None


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_published_schedule(pair):
    settings = recipe(pair.name)
    assert (settings["teacher.name"], settings["student.name"]) == (pair.teacher, pair.student)
    assert (settings["loss.kd"], settings["loss.ce"], settings["loss.temperature"]) == (1.0, 0.0, 4.0)
    train = train_of(settings)
    assert (train.epochs, train.batch_size, train.momentum, train.weight_decay) == (240, 64, 0.9, 5e-4)
    assert (train.precision, train.teacher_precision) == ("fp32", "fp32")
    small = pair.student in ("MobileNetV2", "ShuffleV1", "ShuffleV2")
    for epoch, factor in ((0, 1), (149, 1), (150, 0.1), (179, 0.1), (180, 0.01), (210, 1e-3), (239, 1e-3)):
        first, last = (learning_rate(train, epoch * 782 + step, 782) for step in (0, 781))
        assert first == last == pytest.approx((0.01 if small else 0.05) * factor)


def test_the_schedule_on_imagenet():
    """The published one: batches of 256, that is 5,005 steps an epoch; lr 0.1, a tenth from epochs 30, 60 and 90 on."""
    settings = recipe(IMAGENET)
    train = train_of(settings)
    assert (train.epochs, train.batch_size, train.momentum, train.weight_decay) == (100, 256, 0.9, 1e-4)
    assert (train.optimizer, train.nesterov, train.warmup_epochs) == ("sgd", False, 0.0)
    for epoch, rate in ((0, 0.1), (29, 0.1), (30, 1e-2), (59, 1e-2), (60, 1e-3), (89, 1e-3), (90, 1e-4)):
        first, last = (learning_rate(train, epoch * 5005 + step, 5005) for step in (0, 5004))
        assert first == last == pytest.approx(rate)
    assert (settings["loss.kd"], settings["loss.ce"], settings["loss.temperature"]) == (0.5, 0.5, 1.0)
    assert settings["data.size"] == 224
    assert "data.name" not in settings  # it is the user's
    for role in ("teacher", "student"):
        check_name(settings[f"{role}.name"])
    assert train_of(teacher_recipe(IMAGENET)) == train  # its teacher is trained the same way
    assert teacher_recipe(IMAGENET)["model.name"] == "torchvision:resnet34"


@pytest.mark.parametrize("name", NAMES)
def test_plan_has_the_recipes_batch(name):
    assert planned_recipe(name) == {**recipe(name), "batch_size": recipe(name)["train.batch_size"]}


def test_a_teacher_is_trained_with_the_large_learning_rate_and_no_loss_of_distillation():
    settings = teacher_recipe("cifar100/vgg13-MobileNetV2")
    assert settings["model.name"] == "vgg13"
    assert settings["train.lr"] == 0.05
    assert not any(key.startswith(("loss.", "student.", "teacher.")) for key in settings)


@pytest.mark.parametrize("make", [recipe, teacher_recipe])
def test_a_misspelt_recipe(make):
    with pytest.raises(UsageError, match=r"unknown recipe .*; did you mean 'cifar100/wrn_40_2-wrn_16_2'"):
        make("cifar100/wrn_40_2-wrn_16")
