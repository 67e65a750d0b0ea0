"""Thumbnails: tiny images as they are, photographs small."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from unixkd.data.thumbnails import SIDE, TINY, encoded, thumbnail


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 8, TINY])
def test_a_tiny_image_keeps_its_pixels(side, channels):
    image = np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8)
    kind, content = thumbnail(image)
    assert kind == "png"
    assert (np.asarray(Image.open(io.BytesIO(content))).reshape(image.shape) == image).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("shape", "size"), [((33, 33), (33, 33)), ((224, 224), (SIDE, SIDE)), ((100, 400), (SIDE, 20))]
)
def test_a_larger_one_is_a_small_jpeg(shape, size, channels):
    ramp = np.linspace(0, 255, shape[0] * shape[1]).reshape(*shape, 1).astype(np.uint8)
    kind, content = thumbnail(ramp.repeat(channels, 2))
    picture = Image.open(io.BytesIO(content))
    assert (kind, picture.format, picture.size) == ("jpeg", "JPEG", size)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    assert len(content) < 3000
    top, bottom = np.asarray(picture.convert("L"))[[0, -1]].mean(1)
    assert top < 20
    assert bottom > 235


def test_it_is_encoded_under_its_format():
    ((kind, text),) = encoded(np.zeros((64, 64, 3), np.uint8)).items()
    assert kind == "jpeg"
    assert base64.b64decode(text).startswith(b"\xff\xd8\xff")
