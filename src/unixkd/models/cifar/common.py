"""What several architectures of the CIFAR family share: pooling, channel shuffle, initial weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GlobalAvgPool(nn.Module):
    """Mean over all positions; a module, so that a forward hook can catch the pooled feature.

    >>> GlobalAvgPool()(torch.ones(2, 5, 3, 3)).shape
    torch.Size([2, 5])
    """

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
        return x.mean(dim=(2, 3))


class ChannelShuffle(nn.Module):
    """Interleave the channels of `groups` equal groups (ShuffleNet, arXiv 1707.01083).

    Args:
        groups: number of groups; must divide the number of channels

    >>> x = torch.arange(6.0).reshape(1, 6, 1, 1)
    >>> ChannelShuffle(2)(x).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if x.is_contiguous(memory_format=torch.channels_last):
            # Shuffled in its own layout, or every block would pay for two conversions.
            x = x.movedim(1, 3).unflatten(3, (self.groups, -1)).transpose(3, 4).flatten(3)
            return x.movedim(3, 1)
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def initialise(net: nn.Module) -> None:
    """Draw He-normal convolution weights (fan-out, arXiv 1502.01852) and set their biases to zero.

    BatchNorm (weight 1, bias 0) and linear layers keep torch's own initial weights, as in the reference's resnets. Its
    other networks differ in the last layer; its ShuffleNets keep torch's own weights everywhere.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_classifier(layer: nn.Linear) -> None:
    """Draw the last layer of VGG and MobileNetV2 as the reference does: normal of deviation 0.01, no bias."""
    nn.init.normal_(layer.weight, 0, 0.01)
    nn.init.zeros_(layer.bias)
