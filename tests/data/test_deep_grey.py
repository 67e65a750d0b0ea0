"""Grey of more than 8 bits, LAB and CMYK: what is black and white follows the file, and nothing is clipped."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.data.images import read_image, to_array, to_channels
from unixkd.errors import UserError

SIDE = 64
RAMP = np.linspace(0, 65535, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)


def tiff(pixels, order="<", **tags):
    """A grey TIFF written by hand; `tags` by their numbers."""
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))
    form = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries = {256: SIDE, 257: SIDE, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 277: 1, 278: SIDE, 339: form}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    entries |= {273: 8 + 2 + 12 * (len(entries) + 2) + 4, 279: pixels.nbytes}
    kinds = [(tag, 11 if isinstance(value, float) else 4, value) for tag, value in sorted(entries.items())]
    lines = [
        struct.pack(order + ("HHIf" if kind == 11 else "HHII"), tag, kind, 1, value)
        for tag, kind, value in kinds
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(lines))
    return head + b"".join(lines) + bytes(4) + pixels.tobytes()


def pgm(pixels, white):
    return b"P5 64 64 %d\n" % white + pixels.astype(">u2").tobytes()


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def ramp(white, kind):
    return (RAMP / 65535 * white).astype(kind)


RAMPS = {
    "png of 16 bits": encoded(Image.fromarray(RAMP), "PNG"),
    "jpeg 2000 of 16 bits": encoded(Image.fromarray(RAMP), "JPEG2000"),
    "pgm of 16 bits": pgm(RAMP, 65535),
    "pgm of 12 bits": pgm(RAMP >> 4, 4095),
    "pgm of a white of 300": pgm(ramp(300.5, ">u2"), 300),
    "pfm": b"Pf\n64 64\n-1.0\n" + ramp(1, "<f4")[::-1].tobytes(),
    "tiff of 16 bits": tiff(RAMP),
    "tiff of 16 bits, big-endian": tiff(RAMP, ">"),
    "tiff of 12 in 16 bits": tiff(RAMP >> 4, t281=4095),
    "tiff of 12 in 16 bits, big-endian": tiff(RAMP >> 4, ">", t281=4095),
    "tiff of 15 bits and a sign": tiff((RAMP >> 1).astype(np.int16)),
    "tiff of 32 bits": tiff(ramp(2**32 - 1, np.uint32)),
    "tiff of 31 bits and a sign": tiff(ramp(2**31 - 1, np.int32), ">"),
    "tiff of 16 in 32 bits": encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "tiff of 20 in 32 bits": tiff(ramp(2**20 - 1, np.uint32), t281=2**20 - 1),
    "float tiff": tiff(ramp(1, np.float32)),
    "float tiff, big-endian": tiff(ramp(1, np.float32), ">"),
    "float tiff with its white": tiff(ramp(255, np.float32), t341=255.0),
}


@pytest.mark.parametrize("name", RAMPS)
def test_a_ramp_from_black_to_white_has_its_mean_and_every_shade(name):
    pixels = to_array(to_channels(read_image(RAMPS[name], name), 1))
    assert pixels.mean() / 255 == pytest.approx(0.5, abs=0.002)
    assert np.array_equal(np.unique(pixels), np.arange(256))
    assert (np.diff(pixels.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("name", ["png of 16 bits", "pgm of 16 bits", "tiff of 16 bits, big-endian"])
def test_of_16_bits_the_high_byte_is_kept(name):
    assert np.array_equal(to_array(read_image(RAMPS[name], name))[..., 0], RAMP >> 8)


@pytest.mark.parametrize("content", [tiff(RAMP, t262=0), tiff(ramp(1, np.float32), ">", t262=0)])
def test_white_may_be_zero(content):
    pixels = to_array(read_image(content, "a"))[..., 0]
    assert (pixels[0, 0], pixels[-1, -1]) == (255, 0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tiff(ramp(255, np.float32)), "pixels from 0 to 255, but 0 is black and 1 white"),
        (tiff(ramp(2, np.float32) - 1), "pixels from -1 to 1, but"),
        (tiff(np.full((SIDE, SIDE), np.nan, np.float32)), "pixels from nan to nan"),
        (tiff((RAMP - 32768).view(np.int16)), "pixels from -32768 to 32767"),
        (tiff(RAMP, t281=4095), "pixels from 0 to 65535, but 0 is black and 4095 white"),
        (tiff(ramp(100_000, np.uint32)), "pixels up to 100000, neither 16 nor 32 bits"),
    ],
)
def test_what_is_outside_of_black_and_white_is_refused_by_name(content, told, tmp_path):
    (tmp_path / "0.tif").write_bytes(content)
    with pytest.raises(UserError, match=rf"0\.tif: .*{told}"):
        load_data(DataConfig(f"folder:{tmp_path}"))


def test_the_largest_number_of_an_image_is_not_its_white():
    assert np.array_equal(to_array(read_image(tiff(RAMP >> 1, t281=32700), "a"))[..., 0], RAMP >> 9)


def test_deep_grey_has_one_channel_and_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "0.png", exif=exif)
    (tmp_path / "1.tif").write_bytes(tiff(RAMP, ">"))
    (tmp_path / "2.pgm").write_bytes(pgm(RAMP, 65535))
    data = load_data(DataConfig(f"folder:{tmp_path}"))
    assert data.image_shape == (1, SIDE, SIDE)
    assert data.notes == ()
    grey = RAMP >> 8
    for i, expected in enumerate((np.rot90(grey, -1), grey, grey)):
        assert np.array_equal(data.train.image(i)[..., 0], expected)


def test_dark_images_of_16_bits_are_pointed_out(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.tif").write_bytes(tiff(RAMP >> 4))
    (line,) = load_data(DataConfig(f"folder:{tmp_path}")).notes
    assert "brighter than a quarter of 16 bits" in line


def test_lab_and_cmyk_are_colours(tmp_path):
    colour = (200, 30, 60)
    rgb = Image.new("RGB", (8, 8), colour)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.applyTransform(rgb, ImageCms.buildTransform(srgb, lab, "RGB", "LAB")).save(tmp_path / "0.tif")
    rgb.convert("CMYK").save(tmp_path / "1.tif")
    data = load_data(DataConfig(f"folder:{tmp_path}"))
    assert data.image_shape == (3, 8, 8)
    for i in range(2):
        assert np.abs(data.train.image(i)[0, 0].astype(int) - colour).max() <= 1
    assert to_channels(read_image(tmp_path / "0.tif", "a"), 1).getpixel((0, 0)) == pytest.approx(84, abs=1)
