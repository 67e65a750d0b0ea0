"""Sources: what each layout becomes, and how faults in it are reported."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.data.sampling import hold_out
from unixkd.data.source import check_labels, class_numbers
from unixkd.data.sources.digits import load_digits
from unixkd.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIXKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own_datasets_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()


def png(value, side=32, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (side, side), value if mode == "L" else (value, value, value)).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(file, images, labels=None, names=None, image="img", label="label"):
    """Images given as bytes, the way the Hub stores them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {image: [{"bytes": data, "path": None} for data in images]}
    features = {image: {"_type": "Image"}}
    if labels is not None:
        columns[label] = labels
        if names is not None:
            features[label] = {"_type": "ClassLabel", "names": names}
        else:
            features[label] = {
                "_type": "Value",
                "dtype": "string" if isinstance(labels[0], str) else "int64",
            }
    table = pyarrow.table(columns)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), file)


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(root, names=CIFAR10):
    for shard in range(2):
        labels = list(range(10)) if shard == 0 else list(range(9, -1, -1))
        images = [png(10 * y + shard) for y in labels]
        write_parquet(root / f"train-{shard:05d}-of-00002.parquet", images, labels, names)
    write_parquet(root / "test-00000-of-00001.parquet", [png(200)], [3], names)


def write_folder(root, layout, side=32, mode="RGB"):
    """layout: {"cat": 2} makes cat/0.png and cat/1.png, each of another grey."""
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(png(20 * i + 7, side, mode))


def test_digits_are_split_by_class_and_scaled():
    data = load_data(DataConfig("digits"))
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.class_names == tuple("0123456789")
    assert data.image_shape == (1, 8, 8)
    assert data.train.num_views == 9
    pixels = data.train.images.double() / 255
    assert pixels.max() == 1
    assert len(data.train.images.unique()) == 17
    assert pixels.mean() == pytest.approx(data.mean[0], abs=5e-5)
    assert pixels.std(correction=0) == pytest.approx(data.std[0], abs=5e-5)
    share = torch.bincount(data.test.labels) / torch.bincount(data.train.labels)
    torch.testing.assert_close(share, torch.full((10,), 0.25), atol=0.01, rtol=0)


@pytest.mark.parametrize("file_is_known", [True, False])
def test_digits_are_those_of_scikit_learn(tmp_path, monkeypatch, file_is_known):
    datasets = pytest.importorskip("sklearn.datasets")
    if not file_is_known:
        elsewhere = ModuleSpec("sklearn", None, is_package=True)
        elsewhere.submodule_search_locations = [str(tmp_path)]
        monkeypatch.setattr("unixkd.data.sources.digits.find_spec", lambda name: elsewhere)
    source, expected = load_digits(), datasets.load_digits()
    train, test = hold_out(expected.target, 1797, 0.2, seed=0)
    for part, positions in ((source.train, train), (source.test, test)):
        assert np.array_equal(part.labels, expected.target[positions])
        assert np.array_equal(part.pixels[..., 0], np.rint(expected.images[positions] * 255 / 16))


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        load_digits()


def test_digits_import_nothing_that_takes_long():
    code = """
import sys
from unixkd.config import DataConfig
from unixkd.data import load_data
load_data(DataConfig("digits"))
heavy = ("sklearn", "scipy", "pandas", "torchvision", "datasets", "pyarrow", "matplotlib", "timm")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("place", ["", "data"])
def test_cifar_shards_are_read_in_order_with_their_class_names(tmp_path, place):
    write_cifar10(tmp_path / "cifar" / place)
    data = load_data(DataConfig("cifar10", root=str(tmp_path / "cifar")))
    assert data.class_names is not None
    assert data.class_names[3] == "cat"
    assert data.train.labels.tolist() == [*range(10), *range(9, -1, -1)]
    assert data.train.images[:, 5, 5, 1].tolist() == [*range(0, 100, 10), *range(91, 0, -10)]
    assert data.test.labels.tolist() == [3]
    assert data.image_shape == (3, 32, 32)
    assert data.train.num_views == 162
    again = load_data(DataConfig("cifar10", root=str(tmp_path / "cifar")))
    assert again.fingerprint == data.fingerprint


def test_decoded_cache_is_used_and_follows_the_files(tmp_path):
    write_cifar10(tmp_path / "cifar")
    config = DataConfig("cifar10", root=str(tmp_path / "cifar"))
    first = load_data(config)
    kept = sorted((tmp_path / "cache" / "decoded").glob("*.npy"))
    assert len(kept) == 2
    train = next(file for file in kept if "train" in file.name)
    np.save(train, np.full((20, 32, 32, 3), 99, dtype=np.uint8))
    assert (load_data(config).train.images == 99).all()
    train.write_bytes(b"cut off")
    assert torch.equal(load_data(config).train.images, first.train.images)
    np.save(train, np.full((20, 32, 32, 3), 99, dtype=np.uint8))
    os.utime(tmp_path / "cifar" / "train-00000-of-00002.parquet", ns=(1, 1))
    assert torch.equal(load_data(config).train.images, first.train.images)


def test_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNIXKD_CACHE", str(tmp_path / "file"))
    write_cifar10(tmp_path / "cifar")
    assert len(load_data(DataConfig("cifar10", root=str(tmp_path / "cifar"))).train) == 20


def test_faulty_cifar_folders_are_refused(tmp_path):
    def refuse(match):
        with pytest.raises(UserError, match=match):
            load_data(DataConfig("cifar10", root=str(tmp_path / "cifar")))

    refuse("is no folder")
    root = tmp_path / "cifar"
    root.mkdir()
    (root / "other.txt").write_text("")
    refuse(r"holds neither train-\*\.parquet nor cifar-10-batches-py")
    write_cifar10(root)
    shard = root / "train-00000-of-00002.parquet"
    images, names = [png(1)] * 10, [str(i) for i in range(10)]
    write_parquet(shard, images, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10], names)
    refuse(r"train: sample 9 has label 10, but labels must be integers in 0\.\.9")
    write_parquet(shard, [*images[:4], png(1)[:60], *images[5:]], list(range(10)), names)
    refuse("train-00000-of-00002.parquet: row 4: cannot be read as an image")
    write_parquet(shard, [png(1, side=16)] * 10, list(range(10)), names)
    refuse("row 0: 16 x 16 pixels instead of 32 x 32")
    write_parquet(shard, images, list(range(10)), names, label="other")
    refuse("no column label or fine_label; it has img, other")
    shard.write_bytes(shard.read_bytes()[:100])
    refuse("train-00000-of-00002.parquet: cannot be read as Parquet")
    (root / "test-00000-of-00001.parquet").unlink()
    write_cifar10(root)
    (root / "test-00000-of-00001.parquet").unlink()
    refuse(r"no test-\*\.parquet")


def test_torchvision_layout_is_read_without_a_download(tmp_path, monkeypatch):
    calls = []

    class Fake:
        classes = tuple(f"class {i}" for i in range(100))

        def __init__(self, root, train, download):
            calls.append((root, train, download))
            self.data = np.zeros((100, 32, 32, 3), dtype=np.uint8)
            self.targets = list(range(100))

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Fake)
    (tmp_path / "cifar-100-python").mkdir()
    data = load_data(DataConfig("cifar100", root=str(tmp_path)))
    assert calls == [(str(tmp_path), True, False), (str(tmp_path), False, False)]
    assert data.class_names == Fake.classes
    assert data.mean == (0.5071, 0.4866, 0.4409)


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def fail(root, train, download):
        assert download
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fail)
    for root in (None, str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"cannot download into .*no route to host.*data\.root"):
            load_data(DataConfig("cifar100", root=root))


def test_folder_with_class_folders(tmp_path):
    write_folder(tmp_path, {"dog": 3, "cat": 2, ".git": 1})
    data = load_data(DataConfig(f"folder:{tmp_path}"))
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.train.images[:, 0, 0, 0].tolist() == [7, 27, 7, 27, 47]
    assert data.test is None
    assert data.image_shape == (3, 32, 32)
    assert data.train.num_views == 162


def test_folder_with_splits_takes_the_labelled_test_set(tmp_path):
    write_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    write_folder(tmp_path / "val", {"dog": 3})
    write_folder(tmp_path, {"test": 2})
    data = load_data(DataConfig(f"folder:{tmp_path}"))
    assert data.test.labels.tolist() == [1, 1, 1]
    write_folder(tmp_path / "val", {"bird": 1})
    with pytest.raises(UserError, match="class 'bird' has no folder in the training set"):
        load_data(DataConfig(f"folder:{tmp_path}"))


def test_unlabelled_grey_folder(tmp_path):
    write_folder(tmp_path, {"photos": 3}, side=20, mode="L")
    data = load_data(DataConfig(f"folder:{tmp_path / 'photos'}"))
    assert data.train.labels is None
    assert not data.train.labelled
    assert data.num_classes is None
    assert data.image_shape == (1, 20, 20)
    (batch,) = data.train.eval_batches(8)
    assert batch.labels is None
    assert batch.images[2].unique().tolist() == pytest.approx([47 / 255])


def test_folder_of_mixed_sizes_becomes_224_on_disk_with_3_channels(tmp_path):
    write_folder(tmp_path, {"a": 2}, side=20, mode="L")
    write_folder(tmp_path, {"b": 1}, side=30)
    data = load_data(DataConfig(f"folder:{tmp_path}", workers=0))
    assert data.image_shape == (3, 224, 224)
    assert data.train.num_views is None


def test_faulty_folders_are_refused(tmp_path):
    def refuse(match, path=tmp_path):
        with pytest.raises(UserError, match=match):
            load_data(DataConfig(f"folder:{path}"))

    refuse("no such folder", tmp_path / "nowhere")
    root = tmp_path / "photos"
    root.mkdir()
    refuse("no images and no class folders", root)
    (root / "bird").mkdir()
    refuse("no images in any of its 1 class folders", root)
    write_folder(root, {"cat": 2, "dog": 3})
    refuse(r"1 of 3 classes have no images \('bird'\); the others have 2 to 3 \(5 images in all\)", root)
    write_folder(root, {"bird": 1})
    (root / "bird" / "0.png").write_bytes(png(0)[:50])
    refuse("bird/0.png: cannot be read as an image", root)
    write_folder(root, {"bird": 1, ".": 1})
    refuse(r"holds images \(0\.png, \.\.\.\) beside folders", root)


@pytest.mark.usefixtures("own_datasets_cache")
def test_parquet_columns_are_found_and_class_names_travel(tmp_path):
    root = tmp_path / "set"
    write_parquet(root / "train-0.parquet", [png(9), png(8), png(7)], [1, 0, 1], ["no", "yes"], image="shot")
    write_parquet(root / "test-0.parquet", [png(6)], [0], ["no", "yes"], image="shot")
    data = load_data(DataConfig(f"parquet:{root}"))
    assert data.class_names == ("no", "yes")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.train.images[:, 0, 0, 0].tolist() == [9, 8, 7]
    assert data.test.labels.tolist() == [0]
    with pytest.raises(UserError, match="unknown image column 'sot'; did you mean 'shot'"):
        load_data(DataConfig(f"parquet:{root}", image_column="sot"))


@pytest.mark.usefixtures("own_datasets_cache")
def test_parquet_labels_may_be_numbers_words_or_absent(tmp_path):
    images = [png(value) for value in (1, 2, 3)]
    write_parquet(tmp_path / "a.parquet", images, ["b", "a", "b"], label="kind")
    unlabelled = load_data(DataConfig(f"parquet:{tmp_path / 'a.parquet'}"))
    assert unlabelled.train.labels is None
    named = load_data(DataConfig(f"parquet:{tmp_path / 'a.parquet'}", label_column="kind"))
    assert named.class_names == ("a", "b")
    assert named.train.labels.tolist() == [1, 0, 1]
    write_parquet(tmp_path / "b.parquet", images, [1, 0, 2])
    numbered = load_data(DataConfig(f"parquet:{tmp_path / 'b.parquet'}"))
    assert (numbered.num_classes, numbered.class_names) == (3, None)
    write_parquet(tmp_path / "c.parquet", images, [-1, -1, -1])
    assert load_data(DataConfig(f"parquet:{tmp_path / 'c.parquet'}")).train.labels is None


@pytest.mark.usefixtures("own_datasets_cache")
def test_faulty_parquet_is_refused(tmp_path):
    def refuse(match, name="a.parquet"):
        with pytest.raises(UserError, match=match):
            load_data(DataConfig(f"parquet:{tmp_path / name}"))

    refuse("no such file or folder")
    images = [png(value) for value in (1, 2, 3)]
    write_parquet(tmp_path / "neg.parquet", images, [0, -2, 1])
    refuse(r"sample 1 has label -2 \(column label\), but labels must be integers from 0 on", "neg.parquet")
    write_parquet(tmp_path / "gap.parquet", images, [0, 0, 2])
    refuse(r"1 of 3 classes have no images \(1\)", "gap.parquet")
    write_parquet(tmp_path / "image.parquet", [png(1), b"junk", png(3)])
    refuse(r"image\.parquet: image 1: cannot be read as an image", "image.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "gap.parquet").read_bytes()[:150])
    refuse(r"cut\.parquet: cannot be loaded as a data set", "cut.parquet")


@pytest.mark.parametrize(
    ("labels", "sample"),
    [
        ([0, 1, -1], 2),
        ([0, 3, 9], 1),
        ([0.0, 0.5], 1),
        ([0, None], 1),
        ([0, "b"], 1),
        ([0.0, float("nan")], 1),
    ],
)
def test_faulty_labels_are_named(labels, sample):
    with pytest.raises(UserError, match=rf"here: sample {sample} has label .*integers in 0\.\.2"):
        check_labels(labels, 3, "here")


def test_words_are_classes_of_their_own_only_where_no_classes_are_known():
    assert class_numbers(["b", "a", "b"], None, None, "train")[2].tolist() == [1, 0, 1]
    assert class_numbers(["b", "a"], ("a", "b", "c"), None, "val")[:2] == (("a", "b", "c"), 3)
    assert class_numbers(["1", "x"], None, None, "train", numerals=True)[0] == ("1", "x")
    for values, names, count in ((["cat"], None, 2), (["cat"], ("a", "b"), 2), (["1"], None, 2)):
        with pytest.raises(UserError, match="val: sample 0 has label"):
            class_numbers(values, names, count, "val")


real_cifar100 = pytest.mark.skipif(
    "UNIXKD_CIFAR100" not in os.environ, reason="UNIXKD_CIFAR100 names no CIFAR-100 folder"
)


@real_cifar100
def test_real_images_have_their_names_and_two_by_two_means(tmp_path):
    source = Path(os.environ["UNIXKD_CIFAR100"])
    shard = sorted([*source.glob("test-*.parquet"), *source.glob("data/test-*.parquet")])[0]
    # one test shard stands in for both parts, so that little needs decoding
    for part in ("train", "test"):
        (tmp_path / f"{part}-00000.parquet").symlink_to(shard)
    full = load_data(DataConfig("cifar100", root=str(tmp_path)))
    assert len(full.class_names) == 100
    assert list(full.class_names) == sorted(full.class_names)
    assert torch.bincount(full.train.labels, minlength=100).min() > 0
    half = load_data(DataConfig("cifar100", root=str(tmp_path), size=16))
    assert half.image_shape == (3, 16, 16)
    assert half.train.num_views == 50
    corners = [full.train.images[:, y::2, x::2].int() for y in (0, 1) for x in (0, 1)]
    assert torch.equal(half.train.images.int(), (sum(corners) + 2) // 4)


@pytest.mark.slow
@real_cifar100
def test_real_training_images_have_the_known_pixel_means():
    data = load_data(DataConfig("cifar100", root=os.environ["UNIXKD_CIFAR100"]))
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    assert torch.bincount(data.train.labels).tolist() == [500] * 100
    means = [data.train.images[..., channel].double().mean() / 255 for channel in range(3)]
    assert [round(float(mean), 4) for mean in means] == [0.5071, 0.4865, 0.4409]
