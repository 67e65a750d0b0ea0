"""Small pictures of images, to be looked at: PNG of tiny ones as they are, JPEG of others made smaller."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TINY = 32
"""An image of up to so many pixels a side is kept to the last pixel."""
SIDE = 80
"""Pixels of the longer side of a picture of a larger one."""
QUALITY = 75


def thumbnail(image: NDArray[np.uint8]) -> tuple[str, bytes]:
    """The format, `png` or `jpeg`, and the file's bytes of an image `[H, W, C]` of 1 or 3 channels.

    >>> thumbnail(np.zeros((8, 8, 1), np.uint8))[0], thumbnail(np.zeros((96, 120, 3), np.uint8))[0]
    ('png', 'jpeg')
    """
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    if max(picture.size) <= TINY:
        picture.save(buffer, "PNG")
        return "png", buffer.getvalue()
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "jpeg", buffer.getvalue()


def encoded(image: NDArray[np.uint8]) -> dict[str, str]:
    """A thumbnail in base64 under its format, as `run_files.Thumbnail` has it."""
    kind, content = thumbnail(image)
    return {kind: base64.b64encode(content).decode()}
