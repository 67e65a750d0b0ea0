"""How a photograph becomes what an exported student takes: one record, written into every file that is exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unixkd.data.images import FILTER, detail, resize_side
from unixkd.method.resizing import SMALL
from unixkd.models.card import ModelCard

PIXEL_STEPS = ("normalise",)
"""What a model does itself that takes pixels in [0, 1]."""
PHOTO_STEPS = ("resize", "crop", "scale", *PIXEL_STEPS)
"""What a model does itself that takes decoded photographs."""


@dataclass(frozen=True)
class Preparation:
    """The preparation of an image, from its file to the network; the steps are in their order.

    Args:
        exif_orientation: what is done with it
        mode: what the image is converted to as Pillow does it: L (grey) or RGB, from CMYK, palettes and grey
        transparency: what is done with it
        grey_16_bit: how it becomes 8 bits
        least_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size that leaves its shorter side so many pixels
            (`draft` of Pillow), and every image is then shrunk by the means of boxes by the largest whole factor that
            does so (`reduce`); None: it stays whole
        box_means: square images whose side is a multiple of `size` are shrunk by the means of boxes, and not cropped
        filter: of the resizing, by its name in Pillow
        antialias: whether the filter widens where the image shrinks
        shorter_side: what the shorter side is resized to, but for images of exactly `size` × `size` pixels
        crop: which part stays
        size: its side
        scale: what the 8 bits are divided by
        mean: what is subtracted from each channel then
        std: what it is divided by
        inside: the steps that the file does itself, of resize, crop, scale and normalise
        resized_inside: the side to which the network itself resizes squares of `size`, before it normalises; None where
            it takes them as they are
    """

    exif_orientation: str
    mode: str
    transparency: str
    grey_16_bit: str
    least_side: int | None
    box_means: bool
    filter: str
    antialias: bool
    shorter_side: int
    crop: str
    size: int
    scale: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    inside: tuple[str, ...] = PIXEL_STEPS
    resized_inside: int | None = None

    @property
    def channels(self) -> int:
        """1 or 3 of an image."""
        return len(self.mean)

    @property
    def takes_photos(self) -> bool:
        """Whether the file takes decoded photographs of any height and width."""
        return "resize" in self.inside

    @property
    def whose(self) -> str:
        """Who prepares an image so: `unixkd predict` does, but for a size that is not the network's own."""
        if self.resized_inside is None:
            return "unixkd predict"
        return f"unixkd on images of {self.size} × {self.size} pixels"

    def values(self) -> dict[str, Any]:
        """The record for JSON."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """The steps that are left to whoever loads the file, and those that it does itself, in words."""
        side, size = self.shorter_side, f"{self.size} × {self.size}"
        boxes = f"; a square image whose side is a multiple of {self.size} is shrunk by the means of boxes instead"
        exact = f"; an image of exactly {size} pixels stays as it is"
        own = self.resized_inside
        again = [] if own is None else [f"resize to {own} × {own} pixels, which the network takes"]
        steps = [
            f"turn it as its EXIF orientation says, then convert it to {self.mode}; transparency is "
            f"{self.transparency}, grey of 16 bits is {self.grey_16_bit}",
            *self._scaled(),
            f"resize its shorter side to {side} pixels, {self.filter} with antialiasing (Pillow's "
            f"`Image.resize`){boxes if self.box_means else exact}",
            f"crop the {size} pixels in its {self.crop}",
            f"divide by {self.scale}: pixels in [0, 1]",
            *again,
            f"subtract the mean ({_listed(self.mean)}), divide by the standard deviation ({_listed(self.std)})",
        ]
        outside = len(steps) - len(self.inside) - len(again)
        return [step if i < outside else f"{step}: done inside" for i, step in enumerate(steps)]

    def _scaled(self) -> list[str]:
        if self.least_side is None:
            return []
        return [
            f"shrink a large one by the largest whole factor that leaves its shorter side {self.least_side} pixels: a "
            "JPEG is decoded at 1/2, 1/4 or 1/8 (Pillow's `draft`), the rest is means of boxes (`reduce`)"
        ]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def preparation_of(card: ModelCard, size: int, scaled: bool = True) -> Preparation:
    """What `unixkd predict` does with an image for a network of this card, which it gives images of the card's size.

    Args:
        card: of the network
        size: side of the square images that it is given, in pixels
        scaled: large images are decoded at a smaller scale, as they were in training: `data.decoding`

    >>> card = ModelCard("resnet8", 10, 1, (0.3,), (0.2,))
    >>> made = preparation_of(card, 224)
    >>> made.mode, made.least_side, made.shorter_side, made.size, made.filter
    ('L', 336, 256, 224, 'bilinear')
    """
    return Preparation(
        exif_orientation="applied",
        mode="L" if card.in_channels == 1 else "RGB",
        transparency="dropped",
        grey_16_bit="divided by 256",
        least_side=detail(size) if scaled else None,
        box_means=size <= SMALL,
        filter=FILTER.name.lower(),
        antialias=True,  # Pillow's resizing always does
        shorter_side=resize_side(size),
        crop="centre",
        size=size,
        scale=255,
        mean=card.mean,
        std=card.std,
        resized_inside=card.size if card.size != size else None,
    )
