"""What a run leaves for its report: the images on which student and teacher disagree, in numbers and as pictures."""

from __future__ import annotations

import io
import json
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from running import TEST_IMAGES, distilled, everything, make_teacher
from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.data.source import Decoded
from unixkd.errors import is_unchanged
from unixkd.training.pictures import NUM_THUMBNAILS, disagreements, record
from unixkd.training.predictions import Predictions
from unixkd.training.run import run


class Labelled(Decoded):
    """Images of which each is as bright as its number."""

    def image(self, i):
        return np.full((8, 8, 1), i, np.uint8)


def said(classes, confidence, labels=(0, 0, 0, 0, 1, 1)):
    labels = None if labels is None else torch.tensor(labels)
    return Predictions(torch.tensor(classes), torch.tensor(confidence), labels)


def found(student, teacher, labels=(0, 0, 0, 0, 1, 1), names=("<b>ant</b>", "bee", "cat")):
    test = Labelled(np.zeros((6, 8, 8, 1), np.uint8), None if labels is None else np.array(labels))
    data = SimpleNamespace(test=test, class_names=names)
    return disagreements(said(*student, labels), said(*teacher, labels), data)


# Right are 0 0 0 0 1 1: of image 0 both are right, of 1 and 4 the teacher, of 2 the student, of 3 neither; of 5 both
# are wrong alike.
STUDENT = [0, 1, 0, 1, 2, 0], [0.9, 0.6, 0.8, 0.7, 0.9, 0.5]
TEACHER = [0, 0, 1, 2, 1, 0], [0.9, 0.9, 0.8, 0.7, 0.8, 0.5]


def test_disagreements_worked_out_by_hand():
    result = found(STUDENT, TEACHER)
    counts = (result.images, result.differ, result.teacher_right, result.student_right)
    assert counts == (6, 4, 2, 1)
    assert [each.index for each in result.shown] == [4, 1, 2, 3]  # 0.9 · 0.8 before 0.6 · 0.9
    first = result.shown[0]
    assert (first.label, first.student, first.teacher) == ("bee", "cat", "bee")
    assert (first.student_confidence, first.teacher_confidence) == (0.9, 0.8)
    picture = Image.open(io.BytesIO(b64decode(first.png or "")))
    assert np.asarray(picture).tolist() == [[4] * 8] * 8


def test_without_labels_the_most_certain_come_first_and_nobody_is_right():
    result = found(STUDENT, TEACHER, labels=None, names=None)
    assert [each.index for each in result.shown] == [4, 2, 1, 3]
    assert (result.differ, result.teacher_right, result.student_right) == (4, None, None)
    assert [result.shown[0].label, result.shown[0].teacher] == [None, "1"]


def test_a_confidence_that_is_no_number_is_left_open():
    result = found(STUDENT, (TEACHER[0], [float("nan")] * 6))
    assert result.shown[0].teacher_confidence is None
    json.dumps(record(result), allow_nan=False)


def test_pictures_lack_the_fields_that_say_nothing():
    kept = record(found(STUDENT, TEACHER))["shown"][0]
    assert kept.keys() == {
        "index", "label", "student", "student_confidence", "teacher", "teacher_confidence", "png",
    }  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    make_teacher(folder / "teacher")
    run(distilled(folder / "teacher"), folder / "unix")
    return folder


def test_a_run_leaves_them_sealed_and_they_agree_with_its_summary(base):
    path, summary = (
        base / "unix" / "disagreements.json",
        json.loads((base / "unix" / "summary.json").read_text()),
    )
    left = json.loads(path.read_text())
    assert left["images"] == TEST_IMAGES
    assert left["differ"] == round((1 - summary["agreement"]) * TEST_IMAGES)
    gain = left["teacher_right"] - left["student_right"]
    assert gain == round((summary["accuracy"]["teacher"] - summary["accuracy"]["last"]) * TEST_IMAGES)
    assert len(left["shown"]) == min(NUM_THUMBNAILS, left["differ"])
    assert is_unchanged(path)
    assert summary["time"]["teacher_seconds"] > 0
    assert not (base / "teacher" / "disagreements.json").exists()  # no teacher was asked there


@pytest.mark.parametrize(
    "lost", [("summary.json",), ("summary.json", "disagreements.json", "checksums.json")]
)
def test_killed_after_its_last_epoch_a_run_leaves_the_same(lost, base, tmp_path):
    run(distilled(base / "teacher"), tmp_path / "run")
    for name in lost:
        (tmp_path / "run" / name).unlink()
    run(distilled(base / "teacher"), tmp_path / "run", mode="resume")
    assert everything(tmp_path / "run") == everything(base / "unix")


def test_photographs_are_small_and_named_without_their_folders(tmp_path):
    generator, names = np.random.default_rng(0), ("<img src=x>", "bees")
    for split, number in (("train", 24), ("val", 8)):
        for label, name in enumerate(names):
            folder = tmp_path / "secret" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(0, 256, (6, 8, 3), np.uint8) // (1 + label)
                picture = Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)
                picture.save(folder / f"{i}<b>.jpg")
    data = DataConfig(f"folder:{tmp_path / 'secret'}", size=96, in_memory=False)
    train = TrainConfig(epochs=1, batch_size=16)
    model = ModelConfig("resnet8")
    run(RunConfig(model, None, MethodConfig("student-alone"), data=data, train=train), tmp_path / "teacher")
    teacher = ModelConfig(str(tmp_path / "teacher"))
    run(RunConfig(model, teacher, MethodConfig("unix"), data=data, train=train), tmp_path / "run")
    chosen, left = (tmp_path / "run" / name for name in ("selection.json", "disagreements.json"))
    pictures = json.loads(chosen.read_text())["most_kept"]
    assert len(pictures) == NUM_THUMBNAILS
    assert all("png" not in each and "<b>.jpg" in each["file"] for each in pictures)
    assert "secret" not in chosen.read_text() + left.read_text()
    assert chosen.stat().st_size + left.stat().st_size < 300_000
