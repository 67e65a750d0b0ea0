"""Networks of timm and torchvision: by name, with random or with the published weights."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from unixkd.errors import UserError, missing_extra, unknown_name

PREFIXES = ("timm:", "torchvision:")
# They return extra heads while training; timm has both without them.
_WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}


@dataclass(frozen=True)
class Expectations:
    """What published weights expect of their images.

    Args:
        num_classes: classes of their classifier
        mean: per-channel mean of the pixels, in [0, 1]
        std: per-channel standard deviation
        size: side of the images in pixels
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int


def check_name(name: str) -> None:
    """Raise where `timm:NAME` or `torchvision:NAME` is no known network.

    Raises:
        UsageError: for an unknown name
        UserError: where timm is not installed
    """
    library, _, architecture = name.partition(":")
    known = _timm_names(architecture) if library == "timm" else _torchvision_names()
    if architecture not in known:
        raise unknown_name("model", name, [f"{library}:{other}" for other in known])


def create(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Build `timm:NAME` or `torchvision:NAME` with random weights.

    Raises:
        UsageError: for an unknown name
        UserError: where timm is not installed, or torchvision is asked for other than 3 channels
    """
    check_name(name)
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
    library, _, architecture = name.partition(":")
    try:
        if library == "timm":
            net = _timm().create_model(architecture, pretrained=True)
            return net, _timm_expectations(net)
        from torchvision import models

        net = models.get_model(architecture, weights=models.get_model_weights(architecture).DEFAULT)
        return net, _torchvision_expectations(architecture)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot get the published weights of '{name}': {reason} "
            "(without a network, give a file of weights instead)"
        ) from error


def expectations(name: str) -> Expectations | None:
    """What the published weights of `timm:NAME` or `torchvision:NAME` expect; None for other networks."""
    library, _, architecture = name.partition(":")
    if library == "torchvision":
        return _torchvision_expectations(architecture)
    if library == "timm":
        return _timm_expectations(_timm().create_model(architecture))
    return None


def fixed_size(net: nn.Module) -> int | None:
    """Side in pixels of the only images the network can take (vision transformers), or None."""
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
    return Expectations(
        net.num_classes, tuple(config["mean"]), tuple(config["std"]), config["input_size"][-1]
    )


def _torchvision_expectations(architecture: str) -> Expectations:
    from torchvision import models

    weights = models.get_model_weights(architecture).DEFAULT
    wanted = weights.transforms()
    classes = len(weights.meta["categories"])
    return Expectations(classes, tuple(wanted.mean), tuple(wanted.std), wanted.crop_size[0])
