"""The images on which exported students are compared with the trained one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unixkd.config import DataConfig
from unixkd.data import load_data, to_pixels
from unixkd.errors import UserError
from unixkd.models import ModelCard

IMAGES = 72
"""Compared in batches of 1, 7 and 64."""


@dataclass(frozen=True)
class Sample:
    """Batches of pixels in [0, 1] `[N, C, H, W]`, the first of one image, and in words what they show."""

    batches: tuple[Tensor, ...]
    origin: str


def real_sample(config: DataConfig, card: ModelCard, size: int) -> Sample:
    """Images of a data set, spread evenly over those it is evaluated on, or over its training images without these.

    Args:
        config: the data
        card: of the student
        size: side of the square images in pixels; they are resized where the data have another

    Raises:
        UserError: the data cannot be read, or have another number of channels
    """
    data = load_data(config)
    if data.channels != card.in_channels:
        raise UserError(
            f"{card.name} takes {card.in_channels}-channel images, {data.name} has {data.channels}"
        )
    split = data.test or data.train
    count = min(IMAGES, len(split))
    images = np.stack([split.image(i * len(split) // count) for i in range(count)])
    pixels = to_pixels(torch.from_numpy(images))
    if pixels.shape[2] != size:
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return Sample(in_batches(pixels), f"{'evaluation' if data.test else 'training'} images of {data.name}")


def random_sample(card: ModelCard, size: int) -> Sample:
    """Random pixels, for want of images."""
    generator = torch.Generator().manual_seed(0)
    return Sample(
        in_batches(torch.rand(IMAGES, card.in_channels, size, size, generator=generator)), "random pixels"
    )


def in_batches(pixels: Tensor) -> tuple[Tensor, ...]:
    """One image, an odd number of them, the rest."""
    parts = (pixels[:1], pixels[1:8], pixels[8:])
    return tuple(part.contiguous() for part in parts if len(part))
