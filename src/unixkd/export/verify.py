"""Whether an exported student answers as the trained one does, and the images on which they are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unixkd.config import DataConfig
from unixkd.data.load import AnySplit, Data, load_data
from unixkd.data.views import to_pixels
from unixkd.errors import UserError
from unixkd.models.card import ModelCard
from unixkd.names import phase

Classifier = Callable[[Tensor], Tensor]
"""Pixels in [0, 1] `[N, C, H, W]` -> logits `[N, classes]`."""
ATOL = RTOL = 1e-4
"""A logit may differ by 1e-4, and by 1e-4 of the largest of its image: what another order of fp32 sums does."""
BATCHES = (1, 7, 64)
"""Images in the batches that are compared."""
IMAGES = sum(BATCHES)
CALIBRATION, EVALUATED, PART = 128, 2000, 32
"""Training images that an int8 model is calibrated by, evaluation images that it is measured on, images at a time."""


@dataclass(frozen=True)
class Sample:
    """Batches of pixels in [0, 1] `[N, C, H, W]`, the first of one image, and in words what they show.

    Pixels have 8 bits, as those of images; `data` are where they are from, None of random pixels.
    """

    batches: tuple[Tensor, ...]
    origin: str
    data: Data | None = None

    def calibration(self, size: int) -> Iterator[Tensor]:
        """Training images in batches `[N, C, size, size]`, evenly spread. Raises UserError where there are none."""
        if self.data is None:
            raise UserError("it is calibrated by training images, and there are none: give --data")
        yield from spread(self.data.train, CALIBRATION, size)

    def labelled(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation images in batches `[N, C, size, size]`, evenly spread, and their labels `[N]`; none without.

        An image without a label (-1) is left out.
        """
        split = None if self.data is None else self.data.test
        if split is None or split.labels is None:
            return
        labels = split.labels[torch.tensor(positions(len(split), EVALUATED))].cpu()
        for pixels, numbers in zip(spread(split, EVALUATED, size), labels.split(PART), strict=True):
            if (known := numbers >= 0).any():
                yield pixels[known], numbers[known]


@dataclass(frozen=True)
class Agreement:
    """How far an exported student agrees with the trained one.

    Args:
        images: how many were compared
        same_class: on how many both find the same class most probable
        largest: the largest difference of two logits; nan or inf where one of them is
        within: whether every difference is within the tolerance
        finite: whether every logit is a finite number
    """

    images: int
    same_class: int
    largest: float
    within: bool
    finite: bool = True

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
    images, same_class, largest, within, finite = 0, 0, 0.0, True, True
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
        finite = finite and bool(logits.isfinite().all())
    return Agreement(images, same_class, largest, within, finite)


def check_batches(exported: Classifier, batches: Sequence[Tensor]) -> None:
    """Raise RuntimeError where a batch of 1, 7 or 64 images does not get as many answers; few images are repeated."""
    pixels = torch.cat(list(batches))
    for count in sorted(set(BATCHES) - {len(batch) for batch in batches}):
        with torch.no_grad():
            answers = exported(pixels[torch.arange(count) % len(pixels)].contiguous())
        if len(answers) != count:
            raise RuntimeError(f"{len(answers)} answers to a batch of {count} images")


def real_sample(config: DataConfig, card: ModelCard, size: int) -> Sample:
    """Images of a data set, spread evenly over its evaluation images, or over its training images without these.

    They are resized to squares of this side in pixels where the data have another.

    Raises:
        UserError: the data cannot be read, or have another number of channels
    """
    if ":" in config.name and config.in_memory is None:
        config = replace(config, in_memory=False)  # their files are wanted too
    data = load_data(config)
    if data.channels != card.in_channels:
        raise UserError(
            f"{card.name} takes {card.in_channels}-channel images, {data.name} has {data.channels}"
        )
    with phase(f"decoding {IMAGES} images to compare on"):
        pixels = torch.cat(list(spread(data.test or data.train, IMAGES, size)))
    origin = f"{'evaluation' if data.test else 'training'} images of {data.name}"
    return Sample(in_batches(pixels), origin, data)


def random_sample(card: ModelCard, size: int) -> Sample:
    """Random pixels, for want of images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, card.in_channels, size, size), generator=generator)
    return Sample(in_batches(pixels / 255), "random pixels")


def positions(images: int, wanted: int) -> list[int]:
    """The positions of evenly spread images, as many as are wanted or there are.

    >>> positions(10, 4), positions(2, 4)
    ([0, 2, 5, 7], [0, 1])
    """
    count = min(wanted, images)
    return [i * images // count for i in range(count)]


def spread(split: AnySplit, wanted: int, size: int) -> Iterator[Tensor]:
    """Evenly spread images of a split, of 8 bits, in batches `[N, C, size, size]`."""
    chosen = positions(len(split), wanted)
    for start in range(0, len(chosen), PART):
        images = np.stack([split.image(i) for i in chosen[start : start + PART]])
        pixels = to_pixels(torch.from_numpy(images))
        if pixels.shape[2] != size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
            pixels = (pixels * 255).round() / 255
        yield pixels.contiguous()


def in_batches(pixels: Tensor) -> tuple[Tensor, ...]:
    """One image, an odd number of them, the rest."""
    batches = (pixels[:1], pixels[1:8], pixels[8:])
    return tuple(batch.contiguous() for batch in batches if len(batch))
