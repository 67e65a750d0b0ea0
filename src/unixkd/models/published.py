"""Networks of timm, torchvision and transformers: by name, with random or with the published weights."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn

from unixkd.errors import UserError, first_line, missing_extra, unknown_name
from unixkd.models import huggingface
from unixkd.models.card import Expectations
from unixkd.models.huggingface_config import PREFIX as TRANSFORMERS

PREFIXES = ("timm:", "torchvision:", TRANSFORMERS)
# They return extra heads while training; timm has both without them.
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}


def check_name(name: str) -> None:
    """Raise where `timm:NAME`, `torchvision:NAME` or `transformers:PATH_OR_ID` is no known network.

    Raises:
        UsageError: for an unknown name
        UserError: where the library is not installed
    """
    if name.startswith(TRANSFORMERS):
        return huggingface.check_name(name)
    library, _, architecture = name.partition(":")
    known = _timm_names(architecture) if library == "timm" else _torchvision_names()
    if architecture not in known:
        raise unknown_name("model", name, [f"{library}:{other}" for other in known])
    return None


def create(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Build `timm:NAME`, `torchvision:NAME` or `transformers:PATH_OR_ID` with random weights.

    Raises:
        UsageError: for an unknown name
        UserError: where the library is not installed, or the network takes other channels
    """
    check_name(name)
    if name.startswith(TRANSFORMERS):
        return huggingface.create(name, num_classes, in_channels)
    library, _, architecture = name.partition(":")
    if library == "timm":
        return _timm().create_model(architecture, num_classes=num_classes, in_chans=in_channels)
    if in_channels != 3:
        raise UserError(f"'{name}' takes 3-channel images, not {in_channels}; timm models take any")
    from torchvision import models

    return models.get_model(architecture, weights=None, num_classes=num_classes)


def pretrained(name: str) -> tuple[nn.Module, Expectations]:
    """The network with its published weights, downloaded by its own library, and what they expect.

    Raises:
        UsageError: for an unknown name
        UserError: where the weights cannot be had
    """
    check_name(name)
    if name.startswith(TRANSFORMERS):
        return huggingface.pretrained(name)
    library, _, architecture = name.partition(":")
    try:
        if library == "timm":
            net = _timm().create_model(architecture, pretrained=True)
            return net, _timm_expectations(net)
        from torchvision import models

        net = models.get_model(architecture, weights=models.get_model_weights(architecture).DEFAULT)
        return net, _torchvision_expectations(architecture)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot get the published weights of '{name}': {first_line(error)} "
            "(without a network, give a file of weights instead)"
        ) from error


def expectations(name: str) -> Expectations | None:
    """What the published weights under a name of a library expect; None for other networks."""
    if name.startswith(TRANSFORMERS):
        return huggingface.expectations(name)
    library, _, architecture = name.partition(":")
    if library == "torchvision":
        return _torchvision_expectations(architecture)
    if library == "timm":
        return _timm_expectations(_timm().create_model(architecture))
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


def _timm_names(architecture: str) -> set[str]:
    """Names without the tag of their weights, or with it where one is asked for (`resnet18.a1_in1k`)."""
    return set(_timm().list_models(pretrained="." in architecture))


def _torchvision_names() -> set[str]:
    from torchvision import models

    return set(models.list_models(module=models)) - _WITH_AUXILIARY_HEADS


def _timm_expectations(net: Any) -> Expectations:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(net)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Expectations(net.num_classes, len(mean), mean, std, config["input_size"][-1])


def _torchvision_expectations(architecture: str) -> Expectations:
    from torchvision import models

    weights = models.get_model_weights(architecture).DEFAULT
    wanted = weights.transforms()
    mean, std = tuple(wanted.mean), tuple(wanted.std)
    return Expectations(len(weights.meta["categories"]), len(mean), mean, std, wanted.crop_size[0])
