"""ShuffleNet (three groups) for small images (arXiv 1707.01083)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unixkd.models.cifar.common import ChannelShuffle, GlobalAvgPool

GROUPS = 3


class ShuffleUnit(nn.Module):
    """Grouped bottleneck; a down block halves the size and concatenates an average-pooled shortcut.

    Args:
        groups: groups of the first 1×1 convolution (1 right after the narrow stem)
        down: halve the size
    """

    def __init__(self, in_width: int, width: int, groups: int, down: bool) -> None:
        super().__init__()
        branch = width - in_width if down else width
        mid = branch // 4
        self.conv1 = nn.Conv2d(in_width, mid, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.shuffle = ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(mid, mid, 3, 2 if down else 1, 1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if down else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        out = self.shuffle(F.relu(self.bn1(self.conv1(x))))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        joined = out + x if self.shortcut is None else torch.cat([out, self.shortcut(x)], dim=1)
        return F.relu(joined)


class ShuffleNetV1(nn.Module):
    """ShuffleV1: 1×1 stem to 24 channels, three stages that each halve the size.

    Args:
        num_classes: outputs of the last layer
        in_channels: channels of the images
    """

    stage_layers = ("relu", "layer1", "layer2", "layer3")
    pooled_layer = "pool"

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = _stage(24, 240, blocks=4, first_groups=1)
        self.layer2 = _stage(240, 480, blocks=8, first_groups=GROUPS)
        self.layer3 = _stage(480, 960, blocks=4, first_groups=GROUPS)
        self.pool = GlobalAvgPool()
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x))


def _stage(in_width: int, width: int, blocks: int, first_groups: int) -> nn.Sequential:
    first = ShuffleUnit(in_width, width, first_groups, down=True)
    return nn.Sequential(first, *(ShuffleUnit(width, width, GROUPS, down=False) for _ in range(blocks - 1)))
