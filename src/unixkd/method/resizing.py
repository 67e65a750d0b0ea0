"""Images made smaller for the student alone: early in a run, or for scoring, a coarse look is enough.

A convolution's cost falls with the square of the side. Sources: Touvron et al., *Fixing the train-test
resolution discrepancy*, arXiv 1906.06423; Tan & Le, *EfficientNetV2*, arXiv 2104.00298 (progressive learning).
"""

from __future__ import annotations

from typing import TypeAlias

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.named_inputs import NamedInputs

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

SMALL = 64
"""Sides up to which images are shrunk by box means, without a margin."""
STEPS = 8
"""Sizes between nothing and the whole: few, as a captured step and an algorithm are made for each."""


def shrunk_side(side: int, share: float) -> int:
    """A side's share, rounded to a multiple of an eighth of the side, of 2 pixels at least, or to the whole side.

    >>> [shrunk_side(32, share) for share in (0.5, 0.7, 0.95, 1.0)], shrunk_side(8, 0.5)
    ([16, 24, 32, 32], 4)
    >>> [shrunk_side(100, share) for share in (0.5, 0.95, 1.0)]  # an eighth is 12 pixels, and 100 no multiple
    [48, 96, 100]
    """
    unit, wanted = max(2, side // STEPS), share * side
    near = min(side, max(unit, round(wanted / unit) * unit))
    return side if side - wanted < abs(near - wanted) else near


def shrunk_share(side: int, share: float) -> float:
    """The share that a side really shrinks to; shares that come to the same are alike.

    >>> shrunk_share(16, 0.9), shrunk_share(16, 0.95)
    (0.875, 1.0)
    """
    return shrunk_side(side, share) / side


def shrunk_size(size: Size, share: float) -> Size | None:
    """Height and width for a share of both sides; None where they stay what they are."""
    height, width = (shrunk_side(side, share) for side in size)
    return None if (height, width) == size else (height, width)


def shrink(
    images: Shaped[Tensor, "n ..."] | NamedInputs, share: float
) -> Shaped[Tensor, "n ..."] | NamedInputs:
    """The images smaller by bilinear interpolation with antialiasing; as they are where the share rounds to 1."""
    size = size_at(images, share)
    if size is None or not isinstance(images, Tensor):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def shrinks_by_boxes(side: int, wanted: int) -> bool:
    """Whether square images are shrunk by the means of boxes."""
    return side > wanted and wanted <= SMALL and side % wanted == 0


def resized(images: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c side side"]:
    """Images of side × side pixels, shrunk as `data.images.fit` shrinks the images of a data set.

    Small ones by a whole factor: means of boxes, rounded to 8 bits; all others by antialiased bilinear filtering.
    """
    height, width = image_size(images)
    if height == width and shrinks_by_boxes(height, side):
        means = F.avg_pool2d(images.float() * 255, height // side)
        # 0.501: halves are rounded up, whatever float makes of them.
        return ((means + 0.501).floor() / 255).to(images.dtype)
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def size_at(images: Shaped[Tensor, "n ..."] | NamedInputs, share: float) -> Size | None:
    """Height and width of the images for a share of both sides; None where they stay; only images can shrink."""
    if isinstance(images, Tensor) and images.ndim == 4:
        return shrunk_size(image_size(images), share)
    if share != 1:
        raise UserError(
            f"only images can be made smaller (size {share:g}), these inputs are not [N, C, H, W]"
        )
    return None


def image_size(images: Float[Tensor, "n c h w"]) -> Size:
    """Height and width of a batch's images."""
    return images.shape[2], images.shape[3]
