"""MobileNetV2 of half width for small images, with ReLU in place of ReLU6 (arXiv 1801.04381)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from unixkd.models.cifar.common import GlobalAvgPool, initialise, initialise_classifier

# expansion, channels at half width, blocks, stride of the first block
STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project; added to the input where the shapes agree."""

    def __init__(self, in_width: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_width * expansion
        self.residual = stride == 1 and in_width == width
        self.conv = nn.Sequential(
            nn.Conv2d(in_width, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 at half width; the stem has stride 2.

    Args:
        num_classes: outputs of the last layer
        in_channels: channels of the images
    """

    stage_layers = ("conv1", "blocks.1", "blocks.2", "blocks.4", "blocks.6")
    pooled_layer = "pool"

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_relu(in_channels, 16, kernel=3, stride=2)
        stages, in_width = [], 16
        for expansion, width, blocks, stride in STAGES:
            first = InvertedResidual(in_width, width, stride, expansion)
            rest = (InvertedResidual(width, width, 1, expansion) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            in_width = width
        self.blocks = nn.Sequential(*stages)
        self.conv2 = _conv_bn_relu(in_width, 1280, kernel=1, stride=1)
        self.pool = GlobalAvgPool()
        self.classifier = nn.Linear(1280, num_classes)
        initialise(self)
        initialise_classifier(self.classifier)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        x = self.conv2(self.blocks(self.conv1(x)))
        return self.classifier(self.pool(x))


def _conv_bn_relu(in_width: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(in_width, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
