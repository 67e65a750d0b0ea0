"""Training images that cannot be read: an error, or left out and listed; in an evaluation always an error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from running import alone, call, summary
from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.errors import UserError
from unixkd.training.run import run

CLASSES = ("cat", "dog")
IMAGES = 8


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Eight training and two validation images of each class, the first training image of `dog` cut short."""
    for label, name in enumerate(CLASSES):
        for part, count in (("train", IMAGES), ("val", 2)):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (12, 12), (100 * label, 9 * i, 7)).save(
                    tmp_path / "data" / part / name / f"{i}.png"
                )
    cut(tmp_path / "data" / "train" / "dog" / "0.png")
    return tmp_path / "data"


def cut(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-40])


def config_of(pictures: Path, **options: object) -> DataConfig:
    return DataConfig(f"folder:{pictures}", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_memory", [True, False])
def test_by_default_it_is_an_error_that_names_the_file(in_memory, pictures, tmp_path, capsys):
    words = ("--data", f"folder:{pictures}", "--data.in_memory", str(in_memory).lower(), "--data.size", 12)
    code = call("train", "--model", "resnet8", *words, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 1
    assert "train/dog/0.png: cannot be read as an image" in capsys.readouterr().err


@pytest.mark.parametrize("in_memory", [True, False])
def test_up_to_the_cap_they_are_left_out(in_memory, pictures):
    data = load_data(config_of(pictures, max_faulty=1, in_memory=in_memory, size=12, workers=0))
    assert data.train.labels.tolist() == [0] * IMAGES + [1] * (IMAGES - 1)
    assert [data.train.image(IMAGES)[0, 0].tolist()] == [[100, 9, 7]]  # the second dog
    assert len(data.left_out) == 1
    assert "train/dog/0.png" in data.left_out[0]
    (pictures / "train" / "dog" / "0.png").unlink()
    whole = load_data(config_of(pictures, in_memory=in_memory, size=12, workers=0))
    assert whole.fingerprint == data.fingerprint  # an image that is not used is none


def test_a_file_that_is_no_image_at_all_counts_as_well(pictures):
    (pictures / "train" / "cat" / "3.png").write_text("not an image")
    data = load_data(config_of(pictures, max_faulty=2, workers=0))
    assert len(data.train) == 2 * IMAGES - 2
    assert data.size == 12
    with pytest.raises(
        UserError, match=r"2 of 16 training images cannot be read, --data\.max_faulty allows 1"
    ):
        load_data(config_of(pictures, max_faulty=1, workers=0))


def test_never_in_an_evaluation(pictures):
    cut(pictures / "val" / "cat" / "1.png")
    with pytest.raises(UserError, match=r"val/cat/1\.png: cannot be read"):
        load_data(config_of(pictures, max_faulty=9, workers=0))


def test_nor_in_a_held_out_part(pictures):
    for image in (pictures / "train" / "dog").iterdir():
        if image.name not in ("0.png", "1.png"):
            image.unlink()  # one of the two is held out: of some seed the one that is cut short
    found = []
    for seed in range(9):
        try:
            found.append(
                len(load_data(config_of(pictures, max_faulty=9, holdout=0.5, split_seed=seed)).left_out)
            )
        except UserError as error:
            found.append(str(error))
    told = {entry for entry in found if isinstance(entry, str)}
    assert any("dog/0.png: cannot be read" in entry for entry in told)
    assert any(
        "no image of 1 classes can be read" in entry for entry in told
    )  # the only one left to train on


def test_a_class_that_is_lost_is_an_error(pictures):
    for image in (pictures / "train" / "dog").iterdir():
        if image.name != "0.png":
            image.unlink()
    with pytest.raises(UserError, match=r"no image of 1 classes can be read \(class 1\)"):
        load_data(config_of(pictures, max_faulty=9, workers=0))


def test_a_run_lists_them_and_goes_on(pictures, tmp_path):
    config = replace(alone(epochs=2, batch_size=5), data=config_of(pictures, max_faulty=1))
    notes: list[str] = []
    run(config, tmp_path / "run", display=lambda event: notes.append(getattr(event, "text", "")))
    listed = json.loads((tmp_path / "run" / "left_out.json").read_text())["unreadable"]
    assert len(listed) == 1
    assert "train/dog/0.png" in listed[0]
    assert any("1 training images cannot be read and are left out" in note for note in notes)
    assert summary(tmp_path / "run")["cost"]["images"]["trained"] == 2 * (2 * IMAGES - 1)
    run(config, tmp_path / "run", mode="resume")
    with pytest.raises(UserError, match=r"max_faulty: .* >= 0"):
        load_data(DataConfig(max_faulty=-1))
