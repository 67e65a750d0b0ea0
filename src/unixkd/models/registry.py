"""The one visible table of model names, and `create_model`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from unixkd.errors import unknown_name
from unixkd.models import published, user_code
from unixkd.models.cifar.mobilenetv2 import MobileNetV2
from unixkd.models.cifar.resnet import ResNet
from unixkd.models.cifar.resnet_imagenet import ResNet18, ResNet34, ResNet50
from unixkd.models.cifar.shufflenetv1 import ShuffleNetV1
from unixkd.models.cifar.shufflenetv2 import ShuffleNetV2
from unixkd.models.cifar.vgg import VGG
from unixkd.models.cifar.wrn import WideResNet
from unixkd.names import check_code, is_code

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)

FAMILY: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(ResNet, 8, NARROW),
    "resnet14": partial(ResNet, 14, NARROW),
    "resnet20": partial(ResNet, 20, NARROW),
    "resnet32": partial(ResNet, 32, NARROW),
    "resnet44": partial(ResNet, 44, NARROW),
    "resnet56": partial(ResNet, 56, NARROW),
    "resnet110": partial(ResNet, 110, NARROW),
    "resnet8x4": partial(ResNet, 8, WIDE),
    "resnet14x4": partial(ResNet, 14, WIDE),
    "resnet32x4": partial(ResNet, 32, WIDE),
    "wrn_16_1": partial(WideResNet, 16, 1),
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_1": partial(WideResNet, 40, 1),
    "wrn_40_2": partial(WideResNet, 40, 2),
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
    "ResNet18": ResNet18,
    "ResNet34": ResNet34,
    "ResNet50": ResNet50,
}


def model_names() -> tuple[str, ...]:
    """Names of the CIFAR family, in the order of the table.

    >>> model_names()[:3]
    ('resnet8', 'resnet14', 'resnet20')
    """
    return tuple(FAMILY)


def create_model(name: str, num_classes: int = 100, in_channels: int = 3) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: a CIFAR-family name, `timm:NAME`, `torchvision:NAME`, `transformers:PATH_OR_ID`, or `FILE.py:NAME`,
            which runs that file
        num_classes: number of classes, the width of the logits `[N, num_classes]`
        in_channels: channels of the images `[N, in_channels, H, W]`

    Raises:
        UsageError: for an unknown name
        UserError: where the library is not installed, the network takes other channels, or the file fails

    >>> net = create_model("resnet8", num_classes=10, in_channels=1)
    >>> sum(p.numel() for p in net.parameters())
    77754
    """
    check_name(name)
    if name.startswith(published.PREFIXES):
        return published.create(name, num_classes, in_channels)
    if is_code(name):
        return user_code.create(name, num_classes, in_channels)
    return FAMILY[name](num_classes=num_classes, in_channels=in_channels)


def check_name(name: str) -> None:
    """Raise where `create_model` does not know a name.

    Raises:
        UsageError: for an unknown name
        UserError: where the library of a model is not installed
    """
    if name.startswith(published.PREFIXES):
        published.check_name(name)
    elif is_code(name):
        check_code(name)
    elif name not in FAMILY:
        raise unknown_name("model", name, FAMILY)
