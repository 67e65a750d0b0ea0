"""A network with its own preprocessing in front, so that every image in the house is plain pixels, and its card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from unixkd.errors import UserError
from unixkd.method.resizing import resized

Finite = Annotated[float, Meta(gt=-1e6, lt=1e6)]


@dataclass(frozen=True)
class ModelCard:
    """What a network is and how it wants its images.

    Args:
        name: the name it was made by
        num_classes: width of the logits
        in_channels: channels of the images
        mean: per-channel mean of the pixels the network was trained on, in [0, 1]
        std: per-channel standard deviation
        size: side in pixels of the images the network wants (None: takes what comes)
        class_names: name of each class, in the order of the logits, or None
        transformers: the configuration of a network of transformers, which its name alone does not tell; else None

    Raises:
        UserError: where the numbers contradict each other

    >>> ModelCard("resnet8", 10, 3, (0.5,), (0.25,))
    Traceback (most recent call last):
    ...
    unixkd.errors.UserError: resnet8 takes 3 channels, but mean has 1 values: (0.5,)
    """

    name: str
    # the limits are of a card that is read: larger numbers are no model but an attack on memory
    num_classes: Annotated[int, Meta(le=100_000)]
    in_channels: Annotated[int, Meta(le=1024)]
    mean: tuple[Finite, ...]
    std: tuple[Finite, ...]
    size: Annotated[int, Meta(le=4096)] | None = None
    class_names: tuple[str, ...] | None = None
    transformers: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if min(self.num_classes, self.in_channels, 1 if self.size is None else self.size) < 1:
            raise UserError(f"{self.name}: class count, channels and size must be at least 1")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_channels:
                raise UserError(
                    f"{self.name} takes {self.in_channels} channels, but {what} has "
                    f"{len(values)} values: {values}"
                )
            if not all(map(math.isfinite, values)) or (what == "std" and min(values) <= 0):
                raise UserError(f"{self.name}: {what} must be finite (and std positive), got {values}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(
                f"{self.name} has {self.num_classes} classes but {len(self.class_names)} class names"
            )


class PixelModel(nn.Module):
    """Resize pixels to the network's size, normalise them, run the network.

    Args:
        net: the network itself; its `state_dict` is what is saved
        card: what it is and how it wants its images
        weights_file: name of the file its weights were read from, where the user has named one

    Raises:
        UserError: in forward, where images have another number of channels than the card says, or the network gives
            something else than real logits `[N, num_classes]` (as they are, or as `.logits` or `["logits"]`)

    >>> from unixkd.models.registry import create_model
    >>> card = ModelCard("resnet8", 10, 1, (0.3,), (0.2,))
    >>> PixelModel(create_model("resnet8", 10, 1), card)(torch.rand(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, card: ModelCard, weights_file: str | None = None) -> None:
        super().__init__()
        self.net = net
        self.card = card
        self.weights_file = weights_file
        # Not persistent: the card is where they are kept.
        self.register_buffer("mean", torch.tensor(card.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        card = self.card
        if images.shape[1] != card.in_channels:
            raise UserError(f"{card.name} takes {card.in_channels}-channel images, got {images.shape[1]}")
        if card.size is not None and images.shape[2:] != (card.size, card.size):
            images = resized(images, card.size)
        output = self.net((images - self.mean) / self.std)
        # networks of transformers wrap them
        logits = (
            output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
        )
        wanted = (images.shape[0], card.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != wanted:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"{card.name} gives {got}, not logits {wanted}")
        if not logits.is_floating_point():
            raise UserError(f"{card.name} gives logits in {logits.dtype}, not in floating point")
        return logits


@dataclass(frozen=True)
class Expectations:
    """What published weights expect of their images, as in a card; None: not known."""

    num_classes: int
    in_channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: int | None
    class_names: tuple[str, ...] | None = None
