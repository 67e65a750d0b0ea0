"""From a `ModelConfig` to a model with its own preprocessing, checked against the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from unixkd.config import ModelConfig
from unixkd.errors import UsageError, UserError
from unixkd.models import published
from unixkd.models.classes import own_num_classes
from unixkd.models.folder import (
    CARD_FILE,
    WEIGHTS_FILE,
    is_run_folder,
    load_model,
    load_student,
    read_card,
    save_model,
)
from unixkd.models.pixels import ModelCard, PixelModel
from unixkd.models.registry import check_name, create_model, model_names
from unixkd.models.weights import copy_weights, load_weights

__all__ = ["build_model", "load_model", "load_student", "load_weights", "save_model"]

Role = Literal["teacher", "student", "model"]


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    in_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
    role: Role = "model",
) -> PixelModel:
    """Build the model of a run.

    Normalisation comes from the configuration, else the run folder or the published weights, else the
    data; a weights file for as many classes as the published weights is taken for these. A student may
    have another class count than its weights: its classifier then starts afresh. A teacher or model may
    not, and a teacher must have weights.

    Args:
        config: which network, and where its weights come from
        num_classes: number of classes of the data
        in_channels: channels of the data's images
        mean: per-channel mean of the data
        std: per-channel standard deviation of the data
        class_names: names of the data's classes, in order, or None
        role: what it is for: teacher, student, or a model by itself

    Raises:
        UsageError: for an unknown name
        UserError: for weights that cannot be had or do not fit the data
    """
    names = None if class_names is None else tuple(class_names)
    data = ModelCard(config.name, num_classes, in_channels, tuple(mean), tuple(std), None, names)
    is_folder = _names_a_folder(config.name, role)
    _check_source(config, role, is_folder)
    if is_folder:
        net, card = _from_folder(Path(config.name), data, role)
    elif config.pretrained:
        net, card = _from_published(config.name, data, role)
    else:
        net = create_model(config.name, num_classes, in_channels)
        card = replace(data, size=published.fixed_size(net))
        if config.weights is not None:
            load_weights(net, config.weights, strict_head=role != "student")
            card = _as_published(card, own_num_classes(config, in_channels))
    card = replace(
        card,
        mean=card.mean if config.mean is None else tuple(config.mean),
        std=card.std if config.std is None else tuple(config.std),
    )
    return PixelModel(net, card)


def _names_a_folder(name: str, role: Role) -> bool:
    if not name:
        raise UsageError(f"name the {role}: --{role}.name")
    if name in model_names() or name.startswith(published.PREFIXES):
        return False
    if is_run_folder(name):
        return True
    if Path(name).is_dir():
        raise UserError(f"'{name}' is no run folder: it does not hold {WEIGHTS_FILE} and {CARD_FILE}")
    if "/" in name or "\\" in name:
        raise UserError(f"there is no run folder '{name}'")
    return False


def _check_source(config: ModelConfig, role: Role, is_folder: bool) -> None:
    """Refuse contradictory sources of weights, and a teacher without any."""
    name = config.name
    if not is_folder:
        check_name(name)
    if config.pretrained and config.weights is not None:
        raise UserError(f"give --{role}.weights or --{role}.pretrained, not both")
    if is_folder and config.weights is not None:
        raise UserError(f"run folder '{name}' has its own weights: drop --{role}.weights")
    is_published = name.startswith(published.PREFIXES)
    if config.pretrained and not is_published:
        raise UserError(f"'{name}' has no published weights to download: drop --{role}.pretrained")
    if role == "teacher" and not (is_folder or config.pretrained or config.weights is not None):
        other = f"--{role}.pretrained true" if is_published else "name a run folder"
        raise UserError(f"teacher '{name}' would have random weights: give --{role}.weights FILE or {other}")


def _from_folder(folder: Path, data: ModelCard, role: Role) -> tuple[nn.Module, ModelCard]:
    card = read_card(folder)
    _check_channels(str(folder), card.in_channels, data.in_channels)
    names = data.class_names
    if role != "student":
        _check_classes(str(folder), card.num_classes, data.num_classes, role)
        _check_class_names(str(folder), card.class_names, data.class_names)
        names = data.class_names or card.class_names
    net = create_model(card.name, data.num_classes, card.in_channels)
    load_weights(net, folder / WEIGHTS_FILE, strict_head=role != "student")
    return net, replace(card, num_classes=data.num_classes, class_names=names)


def _from_published(name: str, data: ModelCard, role: Role) -> tuple[nn.Module, ModelCard]:
    net, source = published.pretrained(name)
    _check_channels(name, len(source.mean), data.in_channels)
    if role != "student":
        _check_classes(name, source.num_classes, data.num_classes, role)
    elif source.num_classes != data.num_classes:
        own, net = net, create_model(name, data.num_classes, data.in_channels)
        copy_weights(own.state_dict(), net, source=name, strict_head=False)
    return net, _as_published(data, source.num_classes)


def _as_published(card: ModelCard, num_classes: int) -> ModelCard:
    """The card with the preprocessing of the published weights, where weights have as many classes as these."""
    source = published.expectations(card.name)
    if source is None or num_classes != source.num_classes or card.in_channels != len(source.mean):
        return card
    return replace(card, mean=source.mean, std=source.std, size=source.size)


def _check_channels(source: str, own: int, data: int) -> None:
    if own != data:
        raise UserError(f"'{source}' was trained on {own}-channel images, the data have {data} channels")


def _check_classes(source: str, own: int, data: int, role: Role) -> None:
    if own != data:
        raise UserError(
            f"{role} '{source}' has {own} classes, the data have {data}: take one trained on these classes"
        )


def _check_class_names(source: str, own: tuple[str, ...] | None, data: tuple[str, ...] | None) -> None:
    if own is None or data is None or own == data:
        return
    pairs = enumerate(zip(own, data, strict=True))
    differences = [f"class {i} is '{a}' there, '{b}' in the data" for i, (a, b) in pairs if a != b]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    order = "in another order" if sorted(own) == sorted(data) else "by other names"
    raise UserError(
        f"'{source}' knows the classes {order}: {'; '.join(differences[:3])}{more}. "
        "Its logits would mean other classes: use the data it was trained on, or rename the classes"
    )
