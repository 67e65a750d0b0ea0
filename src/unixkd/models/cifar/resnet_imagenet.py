"""ImageNet's ResNets for small images: 3×3 stem, no max-pool, four stages (arXiv 1512.03385)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unixkd.models.cifar.common import GlobalAvgPool, initialise


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, the first of which carries the stride, and a shortcut.

    `resnet.BasicBlock` is the same under other names: those of the public checkpoints of each family.
    """

    expansion = 1

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_width, width, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 (which carries the stride), 1×1 to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        out_width = self.expansion * width
        self.conv1 = nn.Conv2d(in_width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_width)
        self.shortcut = _shortcut(in_width, out_width, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ImageNetResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels (times the block's expansion), stride 1 in the stem.

    Args:
        num_classes: outputs of the last layer
        in_channels: channels of the images
    """

    stage_layers = ("relu", "layer1", "layer2", "layer3", "layer4")
    pooled_layer = "pool"
    block: ClassVar[type[BasicBlock] | type[Bottleneck]]
    blocks: ClassVar[tuple[int, int, int, int]]

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(64, 64, self.blocks[0], stride=1)
        self.layer2 = self._stage(64 * self.block.expansion, 128, self.blocks[1], stride=2)
        self.layer3 = self._stage(128 * self.block.expansion, 256, self.blocks[2], stride=2)
        self.layer4 = self._stage(256 * self.block.expansion, 512, self.blocks[3], stride=2)
        self.pool = GlobalAvgPool()
        self.linear = nn.Linear(512 * self.block.expansion, num_classes)
        initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.pool(x))

    def _stage(self, in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (self.block(width * self.block.expansion, width, 1) for _ in range(blocks - 1))
        return nn.Sequential(self.block(in_width, width, stride), *rest)


class ResNet18(ImageNetResNet):
    """ResNet-18."""

    block, blocks = BasicBlock, (2, 2, 2, 2)


class ResNet34(ImageNetResNet):
    """ResNet-34."""

    block, blocks = BasicBlock, (3, 4, 6, 3)


class ResNet50(ImageNetResNet):
    """ResNet-50."""

    block, blocks = Bottleneck, (3, 4, 6, 3)


def _shortcut(in_width: int, width: int, stride: int) -> nn.Sequential:
    """Nothing where the shape stays, else a 1×1 convolution."""
    if stride == 1 and in_width == width:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width))
