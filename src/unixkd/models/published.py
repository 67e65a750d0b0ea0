"""Networks of timm, torchvision and transformers: by name, with random or with the published weights."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from unixkd.errors import UserError, first_line, missing_extra, not_waiting, unknown_name
from unixkd.models import huggingface
from unixkd.models.card import Expectations
from unixkd.models.huggingface_config import PREFIX as TRANSFORMERS
from unixkd.models.huggingface_config import read, transformers
from unixkd.names import check_folder

PREFIXES = ("timm:", "torchvision:", TRANSFORMERS)
# They return extra heads while training; timm has both without them.
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}


def check_name(name: str) -> None:
    """Raise UsageError for an unknown name of a library's network, UserError where the library is not installed."""
    if name.startswith(TRANSFORMERS):
        check_folder(name)
        transformers()
        return
    library, _, architecture = name.partition(":")
    if library == "timm":  # names with the tag of their weights where one is asked for (`resnet18.a1_in1k`)
        known = set(_timm().list_models(pretrained="." in architecture))
    else:
        known = set(_torchvision().list_models(module=_torchvision())) - _WITH_AUXILIARY_HEADS
    if architecture not in known:
        raise unknown_name("model", name, [f"{library}:{other}" for other in known])


def create(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """A network of a known name (`check_name`) with random weights; UserError where it takes other channels."""
    if name.startswith(TRANSFORMERS):
        return huggingface.from_content(read(name).content, num_classes, in_channels, name)
    library, _, architecture = name.partition(":")
    if library == "timm":
        return _timm().create_model(architecture, num_classes=num_classes, in_chans=in_channels)
    if in_channels != 3:
        raise UserError(f"'{name}' takes 3-channel images, not {in_channels}; timm models take any")
    return _torchvision().get_model(architecture, weights=None, num_classes=num_classes)


def pretrained(name: str) -> tuple[nn.Module, Expectations]:
    """The network of a known name with its published weights, downloaded by its own library, and what they expect.

    Raises UserError where the weights cannot be had.
    """
    if name.startswith(TRANSFORMERS):
        return huggingface.pretrained(name)
    library, _, architecture = name.partition(":")
    try:
        if library == "timm":
            with not_waiting():
                net = _timm().create_model(architecture, pretrained=True)
            return net, _timm_expectations(net)
        weights = _torchvision().get_model_weights(architecture).DEFAULT
        return _torchvision().get_model(architecture, weights=weights), _torchvision_expectations(weights)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot get the published weights of '{name}': {first_line(error)} "
            "(without a network give a file: the option weights in place of pretrained, as in --teacher.weights FILE)"
        ) from error


def expectations(name: str) -> Expectations | None:
    """What the published weights under a name of a library expect; None for other networks."""
    library, _, architecture = name.partition(":")
    if name.startswith(TRANSFORMERS):
        return huggingface.expectations(name)
    if library == "timm":
        return _timm_expectations(_timm().create_model(architecture))
    if library == "torchvision":
        return _torchvision_expectations(_torchvision().get_model_weights(architecture).DEFAULT)
    return None


def fixed_size(net: nn.Module) -> int | None:
    """Side in pixels of the only images the network can take (vision transformers), or None."""
    if huggingface.is_of_transformers(net):
        return huggingface.fixed_size(net)
    config = getattr(net, "pretrained_cfg", None)  # timm
    if config and config.get("fixed_input_size"):
        return int(config["input_size"][-1])
    size = getattr(net, "image_size", None)  # torchvision
    return size if isinstance(size, int) else None


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm", "timm", "timm models") from error
    return timm


def _torchvision() -> ModuleType:
    from torchvision import models

    return models


def _timm_expectations(net: Any) -> Expectations:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(net)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Expectations(net.num_classes, len(mean), mean, std, config["input_size"][-1])


def _torchvision_expectations(weights: Any) -> Expectations:
    transforms = weights.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return Expectations(len(weights.meta["categories"]), len(mean), mean, std, transforms.crop_size[0])
