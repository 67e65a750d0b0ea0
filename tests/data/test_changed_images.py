"""A fingerprint follows what is inside the images: stores and runs of changed images are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from running import call, everything
from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.data import load_data, source
from unixkd.data.source import Encoded
from unixkd.errors import UserError
from unixkd.training.run import run


def write(file, seed):
    """A BMP, whose size does not depend on its pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def pictures(tmp_path):
    for i in range(12):
        write(tmp_path / "data" / "ab"[i % 2] / f"{i}.bmp", seed=i)
    return tmp_path / "data"


def on_disk(folder):
    return DataConfig(f"folder:{folder}", in_memory=False, workers=0, crop_padding=1, views=2)


def test_an_image_replaced_by_one_of_the_same_size_is_noticed(pictures, tmp_path):
    first = load_data(on_disk(pictures))
    shutil.copytree(pictures, tmp_path / "copy", copy_function=shutil.copyfile)  # other times
    assert load_data(on_disk(tmp_path / "copy")).fingerprint == first.fingerprint
    size = (pictures / "b" / "7.bmp").stat().st_size
    write(pictures / "b" / "7.bmp", seed=99)
    assert (pictures / "b" / "7.bmp").stat().st_size == size
    changed = load_data(on_disk(pictures))
    assert changed.fingerprint != first.fingerprint
    assert changed.fingerprint_before == first.fingerprint_before  # which saw names and sizes


def test_the_bytes_of_every_row_count():
    rows = [i.to_bytes(9, "big") for i in range(600)]
    first = Encoded.of(rows, None, "here").content_digest()
    for i in (0, 1, 300, 598, 599):
        changed = [*rows[:i], b"x" * 9, *rows[i + 1 :]]
        assert Encoded.of(changed, None, "here").content_digest() != first


@pytest.mark.parametrize("limits", [{"_HASHED": 5}, {"_HASHED_BYTES": 5 * 9}])
def test_of_many_images_evenly_spread_ones_are_looked_at(limits, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(source, name, value)
    seen = []

    class Items(list):
        def __getitem__(self, position):
            seen.append(position)
            return super().__getitem__(position)

    records = Encoded.of(Items(bytes(9) for _ in range(101)), None, "here")
    assert records.content_digest() == records.content_digest()
    assert len(seen) == 2 * 5
    assert np.diff(sorted(set(seen))).max() <= 50
    assert max(seen) - min(seen) >= 50


def test_a_missing_file_is_named(pictures):
    records = load_data(on_disk(pictures)).train.records
    (pictures / "a" / "0.bmp").unlink()
    with pytest.raises(UserError, match=r"a/0\.bmp: cannot be read"):
        records.content_digest()


def config_of(pictures, **train):
    """A student alone."""
    options = TrainConfig(**{"epochs": 2, "batch_size": 4, **train})
    return RunConfig(
        ModelConfig("resnet8"), None, MethodConfig("student-alone"), data=on_disk(pictures), train=options
    )


def distill(pictures, tmp_path, *more):
    """Plain KD on two views of the pictures, with stored answers."""
    if not (tmp_path / "teacher").exists():
        run(config_of(pictures, epochs=1), tmp_path / "teacher")
    networks = ("--teacher", tmp_path / "teacher", "--student", "resnet8", "--method", "kd")
    data = ("--data", f"folder:{pictures}", "--data.in_memory", "false", "--data.workers", 0)
    train = ("--data.crop_padding", 1, "--train.batch_size", 4, "--epochs", 1)
    return ("distill", *networks, *data, *train, "--answers.path", tmp_path / "answers", *more)


@pytest.mark.parametrize("shown", ["--data.views", "--data.mixes"])
@pytest.mark.parametrize("fill", ["lazy", "epoch"])
def test_an_image_that_the_fingerprint_did_not_look_into_is_known_when_it_is_decoded(
    shown, fill, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(source, "_HASHED", 1)
    words = distill(pictures, tmp_path, shown, 2, "--answers.fill", fill)
    assert call(*words, "--out", tmp_path / "first") == 0
    assert call(*words, "--out", tmp_path / "second") == 0
    before = load_data(on_disk(pictures)).fingerprint
    write(pictures / "b" / "7.bmp", seed=99)
    assert load_data(on_disk(pictures)).fingerprint == before
    capsys.readouterr()
    assert call(*words, "--out", tmp_path / "third") == 1
    told = capsys.readouterr().err
    assert "b/7.bmp" in told
    assert "changed since the teacher's answers to it were stored" in told


def test_stored_answers_are_refused_once_an_image_has_changed(pictures, tmp_path, capsys):
    words = distill(pictures, tmp_path, "--data.views", 2)
    assert call(*words, "--out", tmp_path / "first") == 0
    assert call(*words, "--out", tmp_path / "second") == 0
    write(pictures / "b" / "7.bmp", seed=99)
    capsys.readouterr()
    assert call(*words, "--out", tmp_path / "third") == 1
    assert "holds other stored answers. What differs: data" in capsys.readouterr().err
    index = tmp_path / "answers" / "answers.json"
    saved = json.loads(index.read_text())
    saved["key"]["data"] = load_data(on_disk(pictures)).fingerprint_before  # as the first version wrote it
    index.write_text(json.dumps(saved))
    assert call(*words, "--out", tmp_path / "third") == 1
    assert "version 0.1.0 stored these answers, which did not look into the images" in capsys.readouterr().err


def test_a_run_is_resumed_on_the_same_images_only(pictures, tmp_path, monkeypatch):
    config = config_of(pictures)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as before:
        before.setattr(Encoded, "content_digest", lambda self: b"")  # the first version's fingerprint
        run(config, tmp_path / "old")
    for name in ("whole", "old"):
        (tmp_path / name / "summary.json").unlink()
        run(config, tmp_path / name, mode="resume")
    assert everything(tmp_path / "old") == everything(tmp_path / "whole")
    write(pictures / "b" / "7.bmp", seed=99)
    (tmp_path / "whole" / "summary.json").unlink()
    with pytest.raises(UserError, match="the training data has changed"):
        run(config, tmp_path / "whole", mode="resume")
