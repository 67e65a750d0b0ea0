"""VGG with BatchNorm for small images, one linear layer at the end (arXiv 1409.1556)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unixkd.errors import UserError
from unixkd.models.cifar.common import GlobalAvgPool, initialise, initialise_classifier

WIDTHS = (64, 128, 256, 512, 512)
MIN_SIZE = 8  # three max-pools


class VGG(nn.Module):
    """vgg8 … vgg19.

    Args:
        convs: number of convolutions in each of the five blocks
        num_classes: outputs of the last layer
        in_channels: channels of the images

    Raises:
        UserError: in forward, where the image is smaller than 8×8
    """

    stage_layers = ("block0", "block1", "block2", "block3", "block4")
    pooled_layer = "pool"

    def __init__(self, convs: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        widths = (in_channels, *WIDTHS)
        for i, count in enumerate(convs):
            self.add_module(f"block{i}", _block(widths[i], widths[i + 1], count))
        self.pool = GlobalAvgPool()
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        initialise(self)
        initialise_classifier(self.classifier)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        side = min(x.shape[2:])
        if side < MIN_SIZE:
            raise UserError(f"vgg needs images of at least {MIN_SIZE}×{MIN_SIZE} pixels, got {side}")
        # Larger images (64 px) are pooled once more, so that block 4 sees 4×4 positions as at 32 px.
        pooled_blocks = 4 if side >= 64 else 3
        for i, name in enumerate(self.stage_layers):
            x = self.get_submodule(name)(x)
            if i < pooled_blocks:
                x = F.max_pool2d(x, 2)
        return self.classifier(self.pool(x))


def _block(in_width: int, width: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convs):
        conv = nn.Conv2d(in_width if i == 0 else width, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)
