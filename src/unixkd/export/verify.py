"""Whether an exported student answers as the trained one does, and the images on which they are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unixkd.config import DataConfig
from unixkd.data.load import load_data
from unixkd.data.views import to_pixels
from unixkd.errors import UserError
from unixkd.models.card import ModelCard
from unixkd.phases import phase

Classifier = Callable[[Tensor], Tensor]
"""Pixels in [0, 1] `[N, C, H, W]` -> logits `[N, classes]`."""
ATOL = RTOL = 1e-4
"""A logit may differ by 1e-4, and by 1e-4 of the largest of its image: what another order of fp32 sums does."""
IMAGES = 72
"""Compared in batches of 1, 7 and 64."""


@dataclass(frozen=True)
class Sample:
    """Batches of pixels in [0, 1] `[N, C, H, W]`, the first of one image, and in words what they show."""

    batches: tuple[Tensor, ...]
    origin: str


@dataclass(frozen=True)
class Agreement:
    """How far an exported student agrees with the trained one.

    Args:
        images: how many were compared
        same_class: on how many both find the same class most probable
        largest: the largest difference of two logits; nan or inf where one of them is
        within: whether every difference is within the tolerance
    """

    images: int
    same_class: int
    largest: float
    within: bool

    def describe(self, origin: str) -> str:
        """The agreement in words, on images of this origin."""
        return (
            f"largest difference of the logits {self.largest:.2g}, the same class on {self.same_class} of "
            f"{self.images} {origin}"
        )


def compare(trained: Classifier, exported: Classifier, batches: Iterable[Tensor]) -> Agreement:
    """Compare the logits of both on every batch of pixels `[N, C, H, W]`.

    Raises:
        RuntimeError: the exported student gives another shape
    """
    images, same_class, largest, within = 0, 0, 0.0, True
    for pixels in batches:
        with torch.no_grad():
            expected, logits = trained(pixels), exported(pixels)
        if logits.shape != expected.shape:
            raise RuntimeError(f"logits of shape {tuple(logits.shape)} instead of {tuple(expected.shape)}")
        difference = (logits - expected).abs()
        allowed = ATOL + RTOL * expected.abs().amax(1, keepdim=True)
        images += len(pixels)
        same_class += int((logits.argmax(1) == expected.argmax(1)).sum())
        largest = torch.tensor([largest, difference.max()]).max().item()  # max() of Python loses a nan
        within = within and bool((difference <= allowed).all()) and bool(expected.isfinite().all())
    return Agreement(images, same_class, largest, within)


def real_sample(config: DataConfig, card: ModelCard, size: int) -> Sample:
    """Images of a data set, spread evenly over its evaluation images, or over its training images without these.

    They are resized to squares of this side in pixels where the data have another.

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
    with phase(f"decoding {count} images to compare on"):
        images = np.stack([split.image(i * len(split) // count) for i in range(count)])
    pixels = to_pixels(torch.from_numpy(images))
    if pixels.shape[2] != size:
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return Sample(in_batches(pixels), f"{'evaluation' if data.test else 'training'} images of {data.name}")


def random_sample(card: ModelCard, size: int) -> Sample:
    """Random pixels, for want of images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(IMAGES, card.in_channels, size, size, generator=generator)
    return Sample(in_batches(pixels), "random pixels")


def in_batches(pixels: Tensor) -> tuple[Tensor, ...]:
    """One image, an odd number of them, the rest."""
    batches = (pixels[:1], pixels[1:8], pixels[8:])
    return tuple(batch.contiguous() for batch in batches if len(batch))
