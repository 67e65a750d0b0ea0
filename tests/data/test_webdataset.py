"""WebDataset shards: the same training as from a folder, and what faulty or hostile tar files are told."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from imagenet_like import write_shards, write_tree
from running import alone, everything, weights
from unixkd.config import DataConfig
from unixkd.data import epoch_order, load_data
from unixkd.data.cache import cache_dir
from unixkd.data.sources.webdataset import expand
from unixkd.errors import UserError
from unixkd.training.run import run

IMAGES, CLASSES = 240, 6


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIXKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tree of 240 training and 30 validation images of 6 classes, and its shards."""
    folder = tmp_path_factory.mktemp("imagenet-like")
    write_tree(folder / "tree", IMAGES, CLASSES, side=60, val=30)
    write_shards(folder / "tree", folder / "shards", per_shard=50)
    return folder


def png(shade: int = 0, side: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, shade, shade)).save(buffer, "png")
    return buffer.getvalue()


def write_tar(file: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    with tarfile.open(file, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return file


def samples(labels: list[str], extension: str = "cls") -> list[tuple[str, bytes]]:
    return [
        member
        for i, label in enumerate(labels)
        for member in ((f"{i:03d}.png", png(i)), (f"{i:03d}.{extension}", label.encode()))
    ]


def load(pattern: object, **options: object):
    return load_data(DataConfig(f"wds:{pattern}", **{"workers": 0, **options}))  # type: ignore[arg-type]


# the same as a folder


def test_shards_are_the_folder_s_images_in_its_order_with_its_labels_and_views(place):
    tree = load_data(DataConfig(f"folder:{place / 'tree'}", workers=0, size=32, in_memory=False))
    shards = load(place / "shards", size=32, in_memory=False, workers=2)
    assert (len(shards.train), len(shards.test), shards.num_classes) == (IMAGES, 30, CLASSES)
    assert shards.image_shape == tree.image_shape
    for a, b in ((tree.train, shards.train), (tree.test, shards.test)):
        assert torch.equal(a.labels, b.labels)
        for x, y in zip(a.eval_batches(64), b.eval_batches(64), strict=True):
            assert torch.equal(x.images, y.images)
    order = epoch_order(IMAGES, 3, 1)[:100]
    pairs = zip(tree.train.train_batches(1, order, 32), shards.train.train_batches(1, order, 32), strict=True)
    for x, y in pairs:
        assert torch.equal(x.images, y.images)
        assert torch.equal(x.index, y.index)
        assert torch.equal(x.view, y.view)


@pytest.mark.parametrize("on_disk", [True, False])
def test_training_on_shards_is_training_on_the_folder(place, tmp_path, on_disk):
    config = alone(epochs=1, batch_size=48)
    for name in (f"folder:{place / 'tree'}", f"wds:{place / 'shards'}"):
        options = {"size": 24, "in_memory": not on_disk, "workers": 0, "limit": 120, "holdout": 0.1}
        run(replace(config, data=DataConfig(name, **options)), tmp_path / name.split(":")[0])
    one, other = weights(tmp_path / "folder"), weights(tmp_path / "wds")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert everything(tmp_path / "folder")[1] == everything(tmp_path / "wds")[1]  # metrics


@pytest.mark.parametrize("label", ["txt", "json"])
def test_labels_may_be_names_or_lie_in_json(place, tmp_path, label):
    write_shards(place / "tree", tmp_path / "shards", per_shard=100, label=label)
    data = load(tmp_path / "shards" / "*.tar", size=16)
    assert torch.equal(data.train.labels, load(place / "shards", size=16).train.labels)
    names = tuple(f"n{i:08d}" for i in range(CLASSES))
    assert data.class_names == (names if label == "txt" else None)
    assert data.test.labels.tolist() == sorted(list(range(CLASSES)) * 5)


def test_patterns_name_the_same_files(place):
    whole = load(place / "shards", size=16)
    named = load(place / "shards" / "{train-000000,train-00000[1-9],val-*}.tar", size=16)
    assert named.fingerprint == whole.fingerprint
    only = load(place / "shards" / "train-{000000..000004}.tar", size=16, holdout=0.2)
    assert len(only.train) + len(only.test) == IMAGES
    (shards := place / "parts").mkdir()
    for part in ("train", "val"):
        (shards / part).mkdir()
        for file in (place / "shards").glob(f"{part}-*.tar"):
            (shards / part / file.name.removeprefix(f"{part}-")).symlink_to(file)
    assert load(shards, size=16).fingerprint == whole.fingerprint


def test_ranges_and_choices_are_expanded():
    assert expand("a-{08..10}-{x,y}") == [f"a-{n}-{c}" for n in ("08", "09", "10") for c in "xy"]
    assert expand("plain.tar") == ["plain.tar"]
    for pattern in ("{0..99999999}", "{5..1}", "{0..999}{0..999}{0..999}"):
        with pytest.raises(UserError, match="1,000,000 files"):
            expand(pattern)


def test_the_rest_of_the_library_sees_no_difference(tmp_path):
    """Unreadable images are left out, images without labels are images, a fingerprint follows names and sizes."""
    file = write_tar(tmp_path / "a.tar", [("x/0.png", png(3)), ("x/1.png", png(9)[:60]), ("x/2.PNG", png(5))])
    with pytest.raises(UserError, match=r"a\.tar: x/1\.png: cannot be read as an image"):
        load(file, size=20)
    data = load(file, size=20, max_faulty=1)
    assert data.train.labels is None
    assert data.left_out[0].startswith(f"{file}: x/1.png: cannot be read")
    assert data.train.images[:, 0, 0, 0].tolist() == [3, 5]
    before = load(file, max_faulty=1, in_memory=False).fingerprint
    write_tar(file, [("x/0.png", png(3)), ("y/2.PNG", png(5))])
    assert load(file, in_memory=False).fingerprint != before


# the index


def test_the_index_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    file = write_tar(tmp_path / "a.tar", samples(["0", "1"]))
    first = load(file, size=16)
    assert len(list((cache_dir() / "shards").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *args, **options: pytest.fail("read again"))
        assert torch.equal(load(file, size=16).train.images, first.train.images)
    write_tar(file, samples(["1", "0", "1"]))
    assert load(file, size=16).train.labels.tolist() == [1, 0, 1]
    assert len(load(file, size=16, label_column="cls").train) == 3


def test_a_file_that_changes_during_a_run_is_noticed(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples(["0", "1"]))
    split = load(file, in_memory=False, size=16).train
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match=r"a\.tar: has changed since it was indexed"):
        list(split.eval_batches(2))
    file.unlink()
    with pytest.raises(UserError, match=r"a\.tar: cannot be read \(No such file"):
        list(split.eval_batches(2))


# faulty and hostile files


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("0.png", png()), ("0.cls", b"0"), ("1.png", png())], r"a\.tar: 1\.png: has no label, as 1 of 2"),
        ([("0.png", png()), ("0.png", png())], "0.png: the key 0 is there twice"),
        ([("0.png", png()), ("1.png", png()), ("0.cls", b"0")], "0.cls: the key 0 is there twice"),
        ([("0.png", png()), ("0.jpg", png())], r"a\.tar: 0: several images \(png, jpg\)"),
        ([("0.cls", b"0")], r"a\.tar: 0: no image \(cls\)"),
        ([("0.png", png()), ("0.cls", b" \n")], r"0\.cls: an empty label"),
        ([("0.png", png()), ("0.json", b"{")], r"0\.json: cannot be read as JSON"),
        ([("0.png", png()), ("0.json", b"[" * 100_000)], r"0\.json: cannot be read as JSON"),
        ([("0.png", png()), ("0.json", b"[1]")], r"0\.json: holds no fields"),
        ([("0.png", png()), ("0.json", b'{"label": [1]}')], r"0\.json: label is \[1\], no class"),
        ([("0.png", png()), ("0.cls", b"7" * 300)], "more than 256 bytes is no class"),
        ([("0.png", png()), ("0.cls", b" " * (1 << 21))], "2,097,152 bytes for a label, refused"),
        ([("0.png", b""), ("0.cls", b"0")], "an image of 0 bytes, refused"),
        (samples(["0", "-1"]), "train: sample 1 has label '-1', as 1 of 2 images have none"),
        (samples(["0", "2"]), r"1 of 3 classes have no images \(1\)"),
        ([], "no images in"),
    ],
)
def test_faulty_samples_are_named(tmp_path, members, told):
    file = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=told) as caught:
        load(file)
    assert str(caught.value).count("\n") == 0


def test_a_class_that_only_the_test_set_has_is_refused(tmp_path):
    write_tar(tmp_path / "train.tar", samples(["cat", "dog"], "txt"))
    write_tar(tmp_path / "val.tar", samples(["cat", "bird"], "txt"))
    with pytest.raises(UserError, match="val: sample 1 has label 'bird'"):
        load(tmp_path)
    assert load(tmp_path / "train.tar").class_names == ("cat", "dog")


def test_training_images_without_labels_take_the_classes_of_a_labelled_test_set(tmp_path):
    write_tar(tmp_path / "train.tar", [("0.png", png(1)), ("1.png", png(2))])
    write_tar(tmp_path / "val.tar", samples(["dog", "cat"], "txt"))
    write_tar(tmp_path / "test.tar", [("0.png", png(1))])  # unlabelled: the next one is evaluated on
    data = load(tmp_path)
    assert (data.train.labels, data.class_names, data.num_classes) == (None, ("cat", "dog"), 2)
    assert data.test.labels.tolist() == [1, 0]


def test_a_label_column_that_no_sample_has_is_told(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples(['{"kind": "x"}', '{"kind": "y"}'], "json"))
    assert load(file).train.labels is None
    assert load(file, label_column="kind").class_names == ("x", "y")
    with pytest.raises(UserError, match=r"no sample has the label kid: correct data\.label_column"):
        load(file, label_column="kid")


def test_what_is_no_file_is_passed_over_and_no_name_is_a_path(tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(200))
    special = []
    for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, str(outside)
        special.append(info)
    info = tarfile.TarInfo("folder.png")
    info.type = tarfile.DIRTYPE
    names = ("../../escape.png", "/etc/absolute.png", "._0.png", "x" * 300 + ".png")
    (tmp_path / "in").mkdir()
    before = sorted(tmp_path.rglob("*"))
    file = write_tar(tmp_path / "in" / "a.tar", [*special, info, *((name, png(9)) for name in names)])
    data = load(file, size=20)
    assert data.train.images[:, 0, 0, 0].tolist() == [9, 9, 9]  # neither links nor hidden files
    left = [path for path in tmp_path.rglob("*") if "cache" not in path.parts]
    assert sorted(left) == sorted([*before, file])
    assert not Path("/etc/absolute.png").exists()


@pytest.mark.parametrize(
    "what", ["cut", "cut at a member", "damaged header", "zip", "empty", "huge name", "huge pax"]
)
def test_files_that_are_no_whole_tar_files_are_refused(tmp_path, what):
    file = write_tar(tmp_path / "a.tar", samples(["0", "1", "0", "1"]))
    content = file.read_bytes()
    with tarfile.open(file) as tar:
        third, fourth = tar.getmembers()[2:4]
    if what == "cut":
        content = content[: third.offset_data + 20]
    elif what == "cut at a member":
        content = content[: fourth.offset]
    elif what == "damaged header":  # tarfile itself would take this for the end
        content = content[: third.offset] + b"x" * 512 + content[third.offset + 512 :]
    elif what.startswith("huge"):  # tarfile itself would read it into memory
        info = tarfile.TarInfo("././@LongLink")
        info.type = tarfile.GNUTYPE_LONGNAME if what == "huge name" else tarfile.XHDTYPE
        info.size = 1 << 33
        content = info.tobuf(tarfile.GNU_FORMAT) + content
    else:
        content = b"PK\x03\x04" * 400 if what == "zip" else b""
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar: cannot be read as a tar file .*fetch it again"):
        load(file)


def test_places_without_shards_are_told(tmp_path):
    for pattern, told in (
        (tmp_path, r"no \.tar files there"),
        (tmp_path / "a-{0..3}.tar", r"a-0\.tar: no such file \(4 of 4 of .* are missing\)"),
        ("https://example.org/a.tar", "shards are local files"),
        ("pipe:cat a.tar", "shards are local files"),
    ):
        with pytest.raises(UserError, match=told):
            load(pattern)
    write_tar(tmp_path / "val-0.tar", samples(["0"]))
    write_tar(tmp_path / "val-1.tar", samples(["0"]))
    with pytest.raises(UserError, match="no tar files to train on; there are some for val"):
        load(tmp_path)
