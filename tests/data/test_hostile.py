"""Hostile images and data sets: bombs, other programs, paths and links out of the data, each refused by name."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import io
import os
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
from unixkd.models.card import ModelCard, PixelModel
from unixkd.models.folder import read_card, save_model
from unixkd.models.registry import create_model

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


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
        told = rf"train: sample 1 has label {label} \({file}: b\.png\), but labels .* from 0 on, without gaps"
        with pytest.raises(UserError, match=told):
            load_data(DataConfig(f"wds:{file}", size=8))


def test_images_that_do_not_fit_into_memory_are_refused_with_what_they_take(monkeypatch):
    monkeypatch.setattr("unixkd.data.load.available_memory", lambda: 10**6)
    with pytest.raises(
        UserError, match=r"40 images of 2048 × 2048 pixels take .* are available: give a smaller"
    ):
        load_data(DataConfig("digits", limit=40, size=2048))
    with pytest.raises(UserError, match=r"size: Expected `int` <= 4096"):
        load_data(DataConfig("digits", limit=40, size=60_000))


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


# reads stay in the data set's folder


@pytest.fixture
def elsewhere(tmp_path):
    """An image outside of the data."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "0.png").write_bytes(png())
    return tmp_path / "private" / "0.png"


IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def paths_in_parquet(folder, paths, name="train"):
    folder.mkdir(exist_ok=True)
    images = pyarrow.array([{"bytes": None, "path": str(path)} for path in paths], IMAGE)
    parquet.write_table(
        pyarrow.table({"image": images, "label": [0] * len(paths)}), folder / f"{name}.parquet"
    )
    return f"{folder}"


@pytest.mark.parametrize("form", ["absolute", "up", "through a link", "none", "null", "pipe"])
@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_a_path_in_a_column_leads_nowhere_but_into_the_data(kind, form, elsewhere, tmp_path):
    (folder := tmp_path / "d").mkdir()
    os.mkfifo(folder / "pipe")
    if kind == "parquet":
        (folder / "link").symlink_to(elsewhere.parent)
    path = {
        "absolute": elsewhere,
        "up": "../private/0.png",
        "through a link": "link/0.png",
        "none": "nothing.png",
        "null": "a\0b.png",
        "pipe": "pipe",
    }[form]
    place = paths_in_parquet(folder, [path])
    with pytest.raises(UserError, match=r"image 0: the path .* is that of no file in .*/d; no other is read"):
        load_data(DataConfig(f"{kind}:{place}", size=8))


def test_a_path_in_a_column_may_be_that_of_a_file_in_the_data(tmp_path):
    (folder := tmp_path / "d").mkdir()
    (folder / "deep").mkdir()
    (folder / "deep" / "0.png").write_bytes(png())
    place = paths_in_parquet(folder, ["deep/0.png", folder / "deep" / "0.png"])
    assert load_data(DataConfig(f"parquet:{place}", size=8)).train.images.unique().tolist() == [9]


def test_a_stream_follows_no_path_in_either_part(elsewhere, tmp_path):
    place = paths_in_parquet(tmp_path / "d", [elsewhere])
    with pytest.raises(UserError, match="image 0: holds no image bytes"):
        load_data(DataConfig(f"stream:{place}", labels=False))
    paths_in_parquet(tmp_path / "d", [elsewhere], "test")
    images = pyarrow.array([{"bytes": png(), "path": None}], IMAGE)
    parquet.write_table(pyarrow.table({"image": images, "label": [0]}), tmp_path / "d" / "train.parquet")
    with pytest.raises(UserError, match=r"test: image 0: the path .* is that of no file in a stream"):
        load_data(DataConfig(f"stream:{place}"))


def test_links_of_one_s_own_are_followed(tmp_path):
    """Subsets of a large data set are often folders of links to its files or classes."""
    (tmp_path / "all").mkdir()
    for i in range(2):
        (tmp_path / "all" / f"{i}.png").write_bytes(png(shade=i))
    (tmp_path / "d" / "train" / "a").mkdir(parents=True)
    (tmp_path / "d" / "train" / "a" / "0.png").symlink_to("../../../all/0.png")
    (tmp_path / "d" / "train" / "b").symlink_to(tmp_path / "all")
    (tmp_path / "link").symlink_to("d")
    for folder in ("d", "link"):
        data = load_data(DataConfig(f"folder:{tmp_path / folder}", size=8))
        assert data.train.labels.tolist() == [0, 1, 1]
        assert load_images([tmp_path / folder / "train" / "a" / "0.png"], 8, 3)[1]


def test_a_snapshot_in_the_cache_of_the_hub_is_links_and_is_read(tmp_path):
    store = tmp_path / "hub" / "datasets--a--b"
    (store / "blobs").mkdir(parents=True)
    (store / "snapshots" / "1" / "cat").mkdir(parents=True)
    (store / "blobs" / "abc").write_bytes(png())
    (store / "snapshots" / "1" / "cat" / "0.png").symlink_to("../../../blobs/abc")
    data = load_data(DataConfig(f"folder:{store / 'snapshots' / '1'}", size=8))
    assert (len(data.train), data.class_names) == (1, ("cat",))


def test_an_image_of_the_hub_lies_in_its_own_part_of_the_cache(tmp_path, monkeypatch, elsewhere):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    own = tmp_path / "hub" / "datasets--a--b" / "snapshots" / "1" / "0.png"
    other = tmp_path / "hub" / "datasets--a--c" / "0.png"
    for file in (own, other):
        file.parent.mkdir(parents=True)
        file.write_bytes(png())
    for path, fine in ((own, True), (other, False), (elsewhere, False)):
        table = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(path)}], "label": [0]})
        monkeypatch.setattr(datasets, "load_dataset", lambda *names, table=table: {"train": table})
        if fine:
            assert len(load_data(DataConfig("hub:a/b", size=8)).train) == 1
        else:
            with pytest.raises(UserError, match=r"image 0: the path .* is that of no file in"):
                load_data(DataConfig("hub:a/b", size=8))


@pytest.mark.skipif(os.name != "posix", reason="names are bytes")
@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"a\nb.png", b"\x1b[31m.png"])
def test_names_that_are_no_text_are_names(name, tmp_path):
    (tmp_path / "d").mkdir()
    for i, file in enumerate((os.fsdecode(name), "0.png")):
        (tmp_path / "d" / file).write_bytes(png(shade=i))
    data = load_data(DataConfig(f"folder:{tmp_path / 'd'}", size=8, in_memory=False, workers=0))
    assert len(data.train) == 2
    names = ("a", os.fsdecode(name))  # of classes, they lie in a model's card
    card = ModelCard("resnet8", 2, 3, (0.5,) * 3, (0.5,) * 3, class_names=names)
    save_model(PixelModel(create_model("resnet8", 2), card), tmp_path / "model")
    assert read_card(tmp_path / "model").class_names == names
    tar = os.fsdecode(name).replace(".png", ".tar")
    write_tar(tmp_path / tar, [("a.png", png())])
    assert len(load_data(DataConfig(f"wds:{tmp_path / tar}", size=8)).train) == 1


# no other program


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """What a `gs` on the PATH leaves behind when it is called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'called'}\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # where Pillow looked for it before
    return tmp_path / "called"


def test_the_interpreter_would_be_called_by_pillow_itself(interpreter):
    with contextlib.suppress(OSError):  # it makes no image
        Image.open(io.BytesIO(EPS)).load()
    assert interpreter.exists()


@pytest.mark.parametrize(
    "kind", ["folder", "no suffix", "parquet", "hub", "images of hub", "stream", "wds", "predict"]
)
def test_postscript_under_an_image_s_name_calls_no_interpreter(kind, interpreter, tmp_path):
    (folder := tmp_path / "d").mkdir()
    name = "evil" if kind == "no suffix" else "evil.png"
    if kind == "wds":
        write_tar(folder / "0.tar", [("evil.png", EPS), ("evil.cls", b"0")])
    elif kind in ("parquet", "hub", "stream"):
        write_parquet(folder / "train.parquet", [EPS], [0])
    else:
        (folder / "a").mkdir()
        (folder / "a" / name).write_bytes(EPS)
    source = {"no suffix": "folder", "images of hub": "hub"}.get(kind, kind)
    config = DataConfig(f"{source}:{folder}", labels=kind not in ("stream", "images of hub"))
    read = (lambda: load_images([folder], 8, 3)) if kind == "predict" else (lambda: load_data(config))
    with pytest.raises(UserError, match=r"none of the image formats PNG|no images in any"):
        read()
    assert not interpreter.exists()


# columns that are no labels


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([datetime.date(2020, 1, 1)] * 2, r"a value of type date \(2020-01-01\)"),
        ([datetime.datetime(2020, 1, 1)] * 2, r"a value of type datetime"),
        ([0.0, 0.5], r"a fraction \(0\.5\) for sample 1"),
        ([b"a", b"b"], r"a value of type bytes \(b'a'\)"),
        ([{"a": 1}] * 2, r"a value of type dict \(\{'a': 1\}\)"),
        ([[[1]], [[1]]], r"a list of labels \(\[\[1\]\]\)"),
        ([decimal.Decimal(0), decimal.Decimal(1)], r"a value of type Decimal \(0\)"),
        ([datetime.time(1)] * 2, r"a value of type time"),
    ],
)
def test_a_column_that_holds_no_classes_is_named_with_what_it_holds(values, told, tmp_path):
    file = column_of(tmp_path, values)
    with pytest.raises(
        UserError, match=rf"train: {told}.* \(column label\) where one class is wanted: name another"
    ):
        load_data(DataConfig(f"parquet:{file}", size=8))
    data = load_data(DataConfig(f"parquet:{file}", size=8, labels=False))
    if values != [0.0, 0.5]:
        assert data.train.labels is None
        assert "unlabelled (column label)" in data.notes[0]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["x", "y"], [0, 1]),
        ([True, False], [1, 0]),
        ([1.0, 0.0], [1, 0]),
    ],
)
@pytest.mark.parametrize("encoded", [True, False])
def test_columns_that_hold_classes_in_another_way(values, classes, encoded, tmp_path):
    column = pyarrow.array(values)
    file = column_of(tmp_path, column.dictionary_encode() if encoded else column)
    assert load_data(DataConfig(f"parquet:{file}", size=8)).train.labels.tolist() == classes


def test_a_column_of_nothing_but_nulls_is_named(tmp_path):
    data = load_data(DataConfig(f"parquet:{column_of(tmp_path, pyarrow.nulls(2))}", size=8))
    assert data.notes[0].endswith("none of the 2 labels is a class (None): unlabelled (column label)")


@pytest.mark.parametrize("kind", ["parquet", "stream"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1, r"Value\('int64'\)"),
        ([1, 2], r"(List|Sequence)\("),
        ([[1, 2], [3, 4]], r"(List|Sequence)\("),
        ({"a": b"x"}, "{'a': Value"),
    ],
)
def test_a_column_that_holds_no_images_is_named(value, told, kind, tmp_path):
    parquet.write_table(pyarrow.table({"image": [value] * 2, "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"column image holds no images \({told}"):
        load_data(DataConfig(f"{kind}:{tmp_path / 'a.parquet'}", size=8, labels=kind == "parquet"))


@pytest.mark.parametrize("image", [pyarrow.binary(), pyarrow.large_binary()])
def test_a_column_of_bytes_alone_holds_images(image, tmp_path):
    images = pyarrow.array([png()] * 2, image)
    parquet.write_table(pyarrow.table({"image": images, "label": [0, 1]}), tmp_path / "a.parquet")
    assert len(load_data(DataConfig(f"parquet:{tmp_path / 'a.parquet'}", size=8)).train) == 2


@pytest.mark.parametrize("kind", ["parquet", "stream"])
@pytest.mark.parametrize("name", ["train-0", "train-1"])
def test_a_file_without_rows_is_named(name, kind, tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [png()], [0])
    write_parquet(tmp_path / f"{name}.parquet", [])
    with pytest.raises(UserError, match=rf"{name}\.parquet: holds no rows$"):
        load_data(DataConfig(f"{kind}:{tmp_path}", size=8, labels=kind == "parquet"))


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_text_is_no_class(empty, tmp_path):
    file = column_of(tmp_path, ["a", empty])
    with pytest.raises(UserError, match=r"train: an empty text .* for sample 1 \(column label\)"):
        load_data(DataConfig(f"parquet:{file}", size=8))


def column_of(folder, values):
    images = [{"bytes": png(), "path": None}] * 2
    parquet.write_table(pyarrow.table({"image": images, "label": values}), folder / "a.parquet")
    return folder / "a.parquet"
