"""Nothing is passed over silently: which files count as images, hidden labels, lists of labels, unused splits."""

from __future__ import annotations

import io
import os
import subprocess

import numpy as np
import pytest
from PIL import Image, features

from running import call
from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.data.files import find_images, list_images
from unixkd.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def picture(i=0):
    return Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8))


def encoded(i=0, kind="PNG"):
    buffer = io.BytesIO()
    picture(i).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def mixed(tmp_path):
    """Two classes of eight images by many suffixes, four of them without one; beside them what is none."""
    kinds = {
        "0.JPG": "JPEG",
        "1.jfif": "JPEG",
        "2.jp2": "JPEG2000",
        "3": "PNG",
        "4": "JPEG",
        "5.avif": "AVIF",
    }
    if not features.check("avif"):
        kinds["5.avif"] = "PNG"  # what is inside counts
    for name in "ab":
        folder = tmp_path / "data" / name
        (folder / "deep").mkdir(parents=True)
        for file, kind in kinds.items():
            (folder / file).write_bytes(encoded(kind=kind))
        (folder / "deep" / "6.pnm").write_bytes(encoded(kind="PPM"))
        (folder / "README").write_text("no image")
        (folder / "7.heic").write_bytes(b"no image of a known format")
        (folder / ".8.png").write_bytes(b"hidden")
        (folder / "Thumbs.db").write_bytes(b"hidden")
    (tmp_path / "data" / "classes.txt").write_text("a\nb\n")
    return tmp_path / "data"


def test_what_the_decoder_reads_is_read_and_the_rest_is_counted(mixed):
    data = load_data(DataConfig(f"folder:{mixed}"))
    assert len(data.train) == 14
    (line,) = data.notes
    assert line.startswith(f"{mixed}: 5 of 19 files are no images: ")
    assert all(kind in line for kind in (".heic 2", "no suffix 2", ".txt 1"))


def test_images_for_predict_are_listed_by_the_same_rule(mixed, caplog):
    files = list_images([mixed / "a"])
    assert [file.name for file in files] == ["0.JPG", "1.jfif", "2.jp2", "3", "4", "5.avif", "6.pnm"]
    assert "2 of 9 files are no images" in caplog.text
    for file in files:
        file.unlink()
    with pytest.raises(UserError, match=r"no images in this folder .*2 of 2 files are no images"):
        list_images([mixed / "a"])


def test_a_run_says_what_it_passes_over(mixed, tmp_path, capsys):
    words = ("--model", "resnet8", "--data", f"folder:{mixed}", "--train.batch_size", 7, "--epochs", 1)
    assert call("train", *words, "--out", tmp_path / "run") == 0
    assert "5 of 19 files are no images" in capsys.readouterr().out


def test_a_class_without_images_says_which_files_it_has(mixed):
    (mixed / "c").mkdir()
    (mixed / "c" / "0.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"\.heic 3.*1 of 3 classes have no images \('c'\)"):
        load_data(DataConfig(f"folder:{mixed}"))


def test_links_pipes_and_folders_that_cannot_be_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").write_bytes(encoded())
    os.mkfifo(tmp_path / "data" / "pipe.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    images, others = find_images(tmp_path / "data")
    assert [file.name for file in images] == ["lost.png"]  # which is an error when it is read
    assert others == {"links to folders": 1, ".png": 1}
    with pytest.raises(UserError, match=r"lost\.png: cannot be read as an image"):
        load_data(DataConfig(f"folder:{tmp_path}"))
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        find_images(tmp_path / "nowhere")


def test_parts_that_are_not_used_are_named(tmp_path):
    for place in ("train/a", "train/b", "val/a", "test", "extra/a"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.png").write_bytes(encoded())
    data = load_data(DataConfig(f"folder:{tmp_path}"))
    assert data.notes == (
        f"{tmp_path}: not used: extra, test",
        f"{tmp_path}: no images to evaluate on of 1 of 2 classes: b",
    )


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"%PDF-1.4\n"]
)
def test_another_format_under_an_image_s_name_starts_no_program(content, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(
        UserError, match=r"0\.png: cannot be read as an image \(none of the image formats PNG"
    ):
        load_data(DataConfig(f"folder:{tmp_path}", size=8))


def shards(folder, **labels):
    folder.mkdir()
    for name, values in labels.items():
        images = [{"bytes": encoded(i), "path": None} for i in range(len(values))]
        parquet.write_table(pyarrow.table({"image": images, "label": values}), folder / f"{name}-0.parquet")
    return f"parquet:{folder}"


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def test_hidden_labels_of_a_test_set_say_so(tmp_path):
    place = shards(tmp_path / "d", train=[0, 1, 0], test=[-1, -1])
    for labels in (True, False):
        data = load_data(DataConfig(place, labels=labels))
        assert data.test is None
        assert data.train.labelled == labels
        assert data.notes == (f"{tmp_path}/d: test: none of the 2 labels is a class (-1): unlabelled",)


@pytest.mark.parametrize("lacking", [-1, None])
def test_images_without_labels_can_be_trained_on_without_labels(lacking, tmp_path):
    place = shards(tmp_path / "d", train=[0, 1, 0, lacking, 2, lacking, 1], test=[1, 2])
    told = rf"train: sample 3 has label {lacking}, as 2 of 7 images have none.*--data\.labels false"
    with pytest.raises(UserError, match=told):
        load_data(DataConfig(place))
    data = load_data(DataConfig(place, labels=False))
    assert (len(data.train), data.num_classes, data.train.labels) == (7, 3, None)
    assert data.test.labels.tolist() == [1, 2]
    held = load_data(DataConfig(place, labels=False, holdout=0.4))  # an evaluation needs labels
    assert sorted(held.test.labels.tolist()) == [0, 1]
    assert len(held.train) == 5


def test_some_hidden_labels_of_a_test_set_are_refused(tmp_path):
    place = shards(tmp_path / "d", train=[0, 1, 0], test=[-1, 1])
    with pytest.raises(UserError, match="test: sample 0 has label -1, as 1 of 2 images have none"):
        load_data(DataConfig(place, labels=False))


@pytest.mark.parametrize("values", [[[1, 0], [0, 1]], [[0.7, 0.3], [0.2, 0.8]], [[0], [0, 1]]])
def test_several_labels_of_an_image_get_one_line(values, tmp_path):
    place = shards(tmp_path / "d", train=values, test=values)
    with pytest.raises(UserError, match=r"train: a list of labels .*--data\.labels false") as caught:
        load_data(DataConfig(place))
    assert "\n" not in str(caught.value)
    data = load_data(DataConfig(place, labels=False))
    assert (len(data.train), data.test, data.num_classes) == (2, None, None)
    assert ["labels is a class" in line for line in data.notes] == [True, True]


def test_splits_that_are_not_used_are_named(tmp_path):
    place = shards(tmp_path / "d", train=[0, 1], test=[0, 1], val=[0, 1])
    assert load_data(DataConfig(place)).notes == (f"{tmp_path}/d: not used: val",)


def test_the_only_split_is_not_evaluated_on_too(tmp_path):
    for name in ("parquet", "stream"):
        place = shards(tmp_path / name, test=[0, 1, 0]).replace("parquet", name, 1)
        assert load_data(DataConfig(place, labels=name == "parquet")).test is None
