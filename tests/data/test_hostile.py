"""Hostile images and data sets: bombs, other programs, paths and links out of the data, each refused by name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from test_sources import write_parquet
from test_webdataset import write_tar

from unixkd.config import DataConfig
from unixkd.data import load_data, load_images
from unixkd.data.images import fit, read_image, resize_side
from unixkd.errors import UserError

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("UNIXKD_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def png(width=12, height=12, shade=9):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade,) * 3).save(buffer, "png")
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# bombs


@pytest.fixture
def scaled(monkeypatch):
    """The pixels of each image that is made by scaling."""
    sizes, resize = [], Image.Image.resize

    def noted(image, size, *args, **options):
        sizes.append(size[0] * size[1])
        return resize(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    return sizes


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (2, 30_000), (1, 9)])
@pytest.mark.parametrize("size", [32, 224])
def test_a_long_image_costs_no_more_than_its_crop(shape, size, scaled, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.png").write_bytes(png(*shape))
    assert load_images([tmp_path / "d"], size, 3)[0].shape == (1, 3, size, size)
    for in_memory in (True, False):
        split = load_data(
            DataConfig(f"folder:{tmp_path / 'd'}", size=size, in_memory=in_memory, workers=0)
        ).train
        for batch in (next(split.eval_batches(1)), next(split.train_batches(0, torch.arange(1), 1))):
            assert (batch.images * 255).round().unique().tolist() in ([9.0], [0.0, 9.0])
    assert len(scaled) >= 3
    assert max(scaled) <= size * size


@pytest.mark.parametrize("shape", [(700, 41), (41, 700), (2701, 300), (5, 60), (3, 50)])
@pytest.mark.parametrize("size", [8, 64, 224])
def test_a_long_image_is_what_scaling_all_of_it_would_give(shape, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    scale = resize_side(size) / min(shape)
    width, height = (max(round(side * scale), size) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    whole = image.resize((width, height), Image.Resampling.BILINEAR)
    wanted = np.asarray(whole.crop((left, top, left + size, top + size)), dtype=int)
    assert np.abs(fit(image, size) - wanted).max() <= 1


def test_sizes_that_a_header_claims_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    file = tmp_path / "bomb.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"bomb\.png: more than 89478485 pixels, refused"):
        load_data(DataConfig(f"folder:{tmp_path}", size=8))


def test_text_that_unpacks_to_gigabytes_is_refused(tmp_path):
    whole, bomb = png(), zlib.compress(bytes(1 << 28), 9)
    file = tmp_path / "text.png"
    file.write_bytes(whole[:33] + chunk(b"zTXt", b"a\0\0" + bomb) + whole[33:])
    with pytest.raises(
        UserError, match=r"text\.png: cannot be read as an image \(Decompressed data too large"
    ):
        read_image(file, str(file))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_of_many_frames_the_first_is_read_alone(kind, monkeypatch):
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), i) for i in range(200)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    monkeypatch.setattr(type(opened), "seek", lambda image, frame: pytest.fail("a further frame"))
    assert np.asarray(read_image(buffer.getvalue(), "a").convert("L")).max() == 0


def test_files_of_gigabytes_are_refused_unread(tmp_path):
    with (tmp_path / "0.png").open("wb") as file:
        file.write(png())
        file.truncate(1 << 40)  # sparse: it takes no room
    with pytest.raises(UserError, match=r"0\.png: cannot be read as an image \(1,099,511,627,776 bytes"):
        load_data(DataConfig(f"folder:{tmp_path}", size=8))


@pytest.mark.parametrize(
    "error", [MemoryError(), struct.error("unpack"), KeyError("x"), RecursionError("deep")]
)
def test_whatever_a_decoder_raises_names_the_image(error, tmp_path, monkeypatch):
    (tmp_path / "0.png").write_bytes(png())

    def fail(image):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(UserError, match=r"0\.png: cannot be read as an image"):
        load_data(DataConfig(f"folder:{tmp_path}", size=8))


def test_deep_grey_becomes_8_bits_in_bounded_memory(monkeypatch):
    monkeypatch.setattr("unixkd.data.images._BLOCK", 7)
    values = np.arange(0, 60_000, 1000, dtype=np.uint16).reshape(4, 15)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "png")
    assert np.array_equal(np.asarray(read_image(buffer.getvalue(), "a")), values // 256)


@pytest.mark.parametrize("label", [10**12, (1 << 63) - 1, 10**20])
def test_a_huge_label_in_shards_names_the_sample(label, tmp_path):
    for extension, text in (("cls", f"{label}"), ("json", f'{{"label": {label}}}')):
        members = [("a.png", png()), (f"a.{extension}", text.replace(str(label), "0").encode())]
        file = write_tar(
            tmp_path / f"{extension}.tar", [*members, ("b.png", png()), (f"b.{extension}", text.encode())]
        )
        told = rf"train: sample 1 has label {label} \({file}: b\.png\), but labels must be integers from 0 on"
        with pytest.raises(UserError, match=told):
            load_data(DataConfig(f"wds:{file}", size=8))


@pytest.mark.parametrize("label", [10**12, (1 << 63) - 1])
def test_a_huge_label_in_a_column_names_the_sample_and_the_column(label, tmp_path):
    write_parquet(tmp_path / "train.parquet", [png()] * 3, [0, 1, label])
    with pytest.raises(
        UserError, match=rf"train: sample 2 has label {label} \(column label\), but labels must be"
    ):
        load_data(DataConfig(f"parquet:{tmp_path / 'train.parquet'}", size=8))


def test_a_label_beyond_the_classes_that_images_could_fill_is_still_named_by_its_gap(tmp_path):
    write_parquet(tmp_path / "train.parquet", [png()] * 3, [0, 1, 5])
    with pytest.raises(UserError, match=r"3 of 6 classes have no images \(2, 3, 4\)"):
        load_data(DataConfig(f"parquet:{tmp_path / 'train.parquet'}", size=8))
