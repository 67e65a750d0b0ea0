"""Wide ResNets for small images: depth 6n+4, pre-activation, no dropout (arXiv 1605.07146)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unixkd.models.cifar.common import GlobalAvgPool, initialise


class WideBlock(nn.Module):
    """BN-ReLU-conv twice; where the width changes, the shortcut convolves the *activated* input."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = in_width == width
        self.convShortcut = None if same else nn.Conv2d(in_width, width, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """The blocks of one stage; the checkpoints name them `layer.{i}`."""

    def __init__(self, in_width: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = (WideBlock(width, width, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(in_width, width, stride), *rest)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return self.layer(x)


class WideResNet(nn.Module):
    """wrn_{depth}_{widen}.

    Args:
        depth: number of layers, 6n+4
        widen: factor on the widths 16, 32, 64 of the three stages (the stem stays at 16)
        num_classes: outputs of the last layer
        in_channels: channels of the images
    """

    stage_layers = ("conv1", "block1", "block2", "block3")
    pooled_layer = "pool"

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = (16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = WideStage(16, widths[0], blocks, stride=1)
        self.block2 = WideStage(widths[0], widths[1], blocks, stride=2)
        self.block3 = WideStage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.pool = GlobalAvgPool()
        self.fc = nn.Linear(widths[2], num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.pool(F.relu(self.bn1(x))))
