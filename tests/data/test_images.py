"""Decoding and evaluation preprocessing of single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unixkd.data import load_images
from unixkd.data.images import box_mean, fit, fit_all, read_image, to_array, to_channels
from unixkd.errors import UserError


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_image(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def test_box_mean_by_hand_rounds_halves_up():
    image = np.array([[0, 1, 10, 20], [0, 1, 30, 41], [255, 255, 7, 7], [255, 254, 7, 8]], dtype=np.uint8)
    # means 0.5, 25.25, 254.75, 7.25
    assert box_mean(image[None, :, :, None], 2)[0, :, :, 0].tolist() == [[1, 25], [255, 7]]


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([1, 3]), st.integers(0, 99))
def test_box_mean_equals_loops(factor, size, channels, seed):
    pixels = noise(size * factor, size * factor, channels, seed)
    got = box_mean(pixels[None], size)[0]
    for row, column, channel in np.ndindex(size, size, channels):
        rows = slice(row * factor, (row + 1) * factor)
        columns = slice(column * factor, (column + 1) * factor)
        assert got[row, column, channel] == np.floor(pixels[rows, columns, channel].mean() + 0.5)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.sampled_from([1, 3]))
def test_fit_gives_the_wanted_shape_and_keeps_constants(height, width, size, channels):
    constant = np.full((height, width, channels), 77, dtype=np.uint8)
    fitted = fit(as_image(constant), size)
    assert fitted.shape == (size, size, channels)
    assert (fitted == 77).all()


def test_fit_crops_the_centre_without_a_margin_when_small_and_with_one_when_large():
    stripes = np.zeros((32, 48, 3), dtype=np.uint8)
    stripes[:, 8:40] = 200
    assert (fit(as_image(stripes), 32) == 200).all()
    wide = noise(256, 300)
    assert np.array_equal(fit(as_image(wide), 224), wide[16:240, 38:262])
    exact = noise(224, 224)
    assert np.array_equal(fit(as_image(exact), 224), exact)


@pytest.mark.parametrize("size", [32, 16, 8, 24, 40])
@pytest.mark.parametrize("channels", [1, 3])
def test_fitting_a_batch_equals_fitting_each_image(size, channels):
    batch = np.stack([noise(32, 32, channels, seed) for seed in range(3)])
    expected = np.stack([fit(as_image(pixels), size) for pixels in batch])
    assert np.array_equal(fit_all(batch, size), expected)


def test_modes_become_grey_or_rgb():
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = b"\x00\x10"
    assert to_array(to_channels(palette, 3)).shape == (2, 2, 3)
    assert to_array(to_channels(Image.new("RGBA", (2, 2), (9, 8, 7, 0)), 3))[0, 0].tolist() == [9, 8, 7]
    assert to_array(to_channels(Image.new("L", (2, 2), 5), 3))[1, 1].tolist() == [5, 5, 5]


def test_orientation_is_applied(tmp_path):
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    as_image(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(to_array(read_image(tmp_path / "a.png", "a")), np.rot90(pixels, -1))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_unreadable_image_is_named(tmp_path, damage):
    file = tmp_path / "broken.png"
    as_image(noise(20, 20)).save(file)
    content = {"truncated": file.read_bytes()[:300], "text": b"hello", "empty": b""}[damage]
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: cannot be read"):
        read_image(file, str(file))


@pytest.mark.parametrize("pixels", [150, 350])  # Pillow only warns up to twice its limit
def test_decompression_bomb_is_refused(tmp_path, monkeypatch, pixels):
    file = tmp_path / "bomb.png"
    Image.new("L", (pixels, 1)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"bomb\.png.*100 pixels, refused"):
        read_image(file, str(file))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_where_warnings_are_off(tmp_path, monkeypatch):
    test_decompression_bomb_is_refused(tmp_path, monkeypatch, 150)


def test_load_images_searches_folders_and_keeps_order(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, value in (("deep/b.png", 51), ("deep/er/c.JPG", 102), ("a.png", 255)):
        Image.new("L", (10, 10), value).save(tmp_path / name)
    (tmp_path / "deep" / "notes.txt").write_text("no image")
    (tmp_path / "deep" / ".hidden.png").write_text("no image")
    pixels, files = load_images([tmp_path / "deep", tmp_path / "a.png"], size=8, channels=1)
    assert [file.name for file in files] == ["b.png", "c.JPG", "a.png"]
    assert pixels.shape == (3, 1, 8, 8)
    torch.testing.assert_close(pixels[:, 0, 0, 0], torch.tensor([0.2, 0.4, 1.0]))


def test_load_images_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png: no such file"):
        load_images([tmp_path / "nowhere.png"], 8, 3)
    with pytest.raises(UserError, match="no images in this folder"):
        load_images([tmp_path], 8, 3)
    with pytest.raises(UserError, match="no images were given"):
        load_images([], 8, 3)
