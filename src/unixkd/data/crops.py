"""Views of one image that is decoded as it is shown: random resized crops from a seed, padded crops from a code."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from unixkd.data.images import Photo, Pixels, to_array

CROP_AREA = 0.08
"""Least share of an image that a random resized crop shows, as published for ImageNet."""
_RATIOS = (3 / 4, 4 / 3)  # of its width to its height
_LOG_RATIOS = torch.log(torch.tensor(_RATIOS)).tolist()
_TRIES = 10

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def random_resized_crop(photo: Photo, size: int, flip: bool, seed: int, area: float = CROP_AREA) -> Pixels:
    """A part of an image, scaled to a square and perhaps mirrored `[size, size, C]`, uint8.

    It is what torchvision's RandomResizedCrop and RandomHorizontalFlip give where this seed is set before. Where the
    image was decoded at a smaller scale it shows the same part of the whole one; `area` is the least share of it that
    is shown. Draws from no global generator.
    """
    generator = torch.Generator().manual_seed(seed)
    left, top, right, bottom = _crop(*photo.whole, area, generator)
    mirrored = flip and torch.rand(1, generator=generator).item() < 0.5
    across, down = (a / b for a, b in zip(photo.image.size, photo.whole, strict=True))
    square = _scaled(photo.image, (left * across, top * down, right * across, bottom * down), size)
    pixels = to_array(square)
    return pixels[:, ::-1] if mirrored else pixels


def _crop(width: int, height: int, least: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """The box of a random resized crop, drawn as torchvision draws it."""
    for _ in range(_TRIES):
        area = width * height * torch.empty(1).uniform_(least, 1.0, generator=generator).item()
        ratio = torch.empty(1).uniform_(*_LOG_RATIOS, generator=generator).exp().item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return left, top, left + w, top + h
    low, high = _RATIOS
    w, h = min(width, round(height * high)), min(height, round(width / low))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _scaled(image: Image.Image, box: Box, size: int) -> Image.Image:
    """A part of an image as a square; pixels outside do not show in it, but at its edge where it cuts through one."""
    left, top = math.floor(box[0]), math.floor(box[1])
    right, bottom = min(math.ceil(box[2]), image.width), min(math.ceil(box[3]), image.height)
    inside = box[0] - left, box[1] - top, min(box[2], right) - left, min(box[3], bottom) - top
    part = image.crop((left, top, right, bottom))
    return part.resize((size, size), Image.Resampling.BILINEAR, box=inside)


def padded_crop(pixels: Pixels, code: int, padding: int) -> Pixels:
    """The view of a code of one image `[H, W, C]`, as `apply_views` gives it."""
    side, (height, width, _) = 2 * padding + 1, pixels.shape
    mirrored, place = divmod(code, side * side)
    top, left = divmod(place, side)
    edges = (padding, padding)
    crop = np.pad(pixels, (edges, edges, (0, 0)))[top : top + height, left : left + width]
    return crop[:, ::-1] if mirrored else crop
