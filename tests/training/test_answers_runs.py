"""Whole runs with stored answers: shared between runs and processes, charged once, never another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from running import (
    DATA,
    IMAGES,
    SMALL,
    alone,
    call,
    distilled,
    make_teacher,
    metrics,
    model_bytes,
    summary,
    weights,
)
from unixkd.config import AnswersConfig, DataConfig, LossConfig, MethodConfig, RunConfig, read_yaml
from unixkd.data import load_data
from unixkd.errors import UserError
from unixkd.method.flops import forward_flops
from unixkd.models import create_model
from unixkd.training.display import Event, Note
from unixkd.training.engine import Engine
from unixkd.training.run import run

EPOCHS, VIEWS = 2, 9
STEP = MethodConfig("unix", curve="step")
MIXED = 3 * 8
"""Batches of 32, 32, 32 and 4 keep 24, 24, 24 and 4 images, of which up to 16 are pure."""
PURE = 3 * 16 + 4
CLOSE = 1e-4
"""Answers rounded to fp16 move weights about 4e-6 in a run this short, a few rounded otherwise less."""
STUDENT, TEACHER = (
    forward_flops(create_model(name, num_classes=10, in_channels=1), (1, 8, 8))
    for name in ("resnet8", "resnet14")
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def storing(
    teacher: Path,
    store: Path | None,
    method: str | MethodConfig = "kd",
    data: DataConfig = DATA,
    **answers: Any,
) -> RunConfig:
    """A run of two epochs in full precision that stores the teacher's answers."""
    path = None if store is None else str(store)
    config = distilled(teacher, method, epochs=EPOCHS, precision="fp32", teacher_precision="fp32")
    return replace(config, data=data, answers=AnswersConfig(path, **answers))


def shown(epochs: int = EPOCHS, data: DataConfig = DATA) -> int:
    """How many different pictures, that is pairs of image and view, so many epochs show."""
    split, index = load_data(data).train, torch.arange(IMAGES)
    pairs = ((epoch, split.epoch_views(epoch, index)) for epoch in range(epochs))
    return len({pair for _, views in pairs for pair in zip(index.tolist(), views.tolist(), strict=True)})


def asked(result: dict[str, Any]) -> tuple[int, int, int]:
    """Images that went through the teacher, that were answered from the store, that were stored."""
    images = result["cost"]["images"]
    return tuple(images[f"teacher_{name}"] for name in ("forwarded", "cached", "filled"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_close(first: Path, second: Path, tolerance: float) -> None:
    """Every number of two models within a tolerance."""
    ours, theirs = weights(first), weights(second)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance)


# One store, several runs


@pytest.fixture(scope="module")
def stored(teacher, tmp_path_factory) -> Path:
    """Plain KD, stored as it went: the run in `run`, the store in `answers`."""
    folder = tmp_path_factory.mktemp("stored")
    run(storing(teacher, folder / "answers"), folder / "run")
    return folder


def test_a_picture_is_asked_about_once(stored):
    pictures = shown()
    assert EPOCHS * IMAGES > pictures > IMAGES  # or else nothing below says anything
    assert asked(summary(stored / "run")) == (pictures, EPOCHS * IMAGES - pictures, pictures)
    result = summary(stored / "run")["cost"]
    for name, passes in (("backward_1x", 2), ("backward_2x", 3)):
        cost = pictures * TEACHER + passes * EPOCHS * IMAGES * STUDENT
        kd = EPOCHS * IMAGES * (TEACHER + passes * STUDENT)
        assert result["relative_to_kd"][name] == pytest.approx(cost / kd)


@pytest.mark.parametrize("fill", ["lazy", "epoch"])
def test_a_second_run_asks_nothing_and_is_the_same_run(fill, stored, teacher, tmp_path):
    """KD with nothing asked costs S / (ρ + S) of KD, with S = 2 or 3."""
    before = content(stored / "answers")
    result = run(storing(teacher, stored / "answers", fill=fill), tmp_path / "run")
    assert asked(result) == (0, EPOCHS * IMAGES, 0)
    assert model_bytes(tmp_path / "run") == model_bytes(stored / "run")
    assert content(stored / "answers") == before
    ratio = TEACHER / STUDENT
    assert result["cost"]["relative_to_kd"] == pytest.approx(
        {"backward_1x": 2 / (ratio + 2), "backward_2x": 3 / (ratio + 3)}
    )
    first, second = (
        [(line["loss"], line["accuracy"]) for line in metrics(folder / "run")]
        for folder in (stored, tmp_path)
    )
    assert first == second


def test_answers_in_full_precision_give_the_run_without_a_store(teacher, tmp_path):
    """To the last digits: a network's own answers vary in those with the images beside them in the batch."""
    run(storing(teacher, None), tmp_path / "without")
    for fill in ("lazy", "epoch"):
        run(storing(teacher, tmp_path / fill, precision="fp32", fill=fill), tmp_path / f"{fill}-run")
        assert_close(tmp_path / f"{fill}-run", tmp_path / "without", 1e-5)


def test_answers_in_half_precision_hardly_change_a_run(stored, teacher, tmp_path):
    run(storing(teacher, None), tmp_path / "without")
    assert_close(stored / "run", tmp_path / "without", CLOSE)
    assert model_bytes(stored / "run") != model_bytes(tmp_path / "without")
    ours, theirs = (metrics(folder)[-1]["loss"] for folder in (stored / "run", tmp_path / "without"))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_filled_ahead_or_as_needed_it_is_the_same_run(stored, teacher, tmp_path):
    result = run(storing(teacher, tmp_path / "answers", fill="epoch"), tmp_path / "run")
    assert asked(result) == (shown(), EPOCHS * IMAGES, shown())
    assert result["cost"]["relative_to_kd"] == summary(stored / "run")["cost"]["relative_to_kd"]
    assert_close(tmp_path / "run", stored / "run", CLOSE)


def test_unix_with_a_step_asks_about_its_mixed_images_only(teacher, tmp_path):
    first = run(storing(teacher, tmp_path / "answers", STEP, fill="lazy"), tmp_path / "first")
    forwarded, cached, filled = asked(first)
    assert forwarded + cached == EPOCHS * (PURE + MIXED)
    assert forwarded == EPOCHS * MIXED + filled
    second = run(storing(teacher, tmp_path / "answers", STEP, fill="lazy"), tmp_path / "second")
    assert asked(second) == (EPOCHS * MIXED, EPOCHS * PURE, 0)
    assert_close(tmp_path / "second", tmp_path / "first", CLOSE)
    for name, passes in (("backward_1x", 2), ("backward_2x", 3)):
        cost = EPOCHS * (IMAGES * STUDENT + MIXED * TEACHER + passes * (PURE + MIXED) * STUDENT)
        kd = EPOCHS * IMAGES * (TEACHER + passes * STUDENT)
        assert second["cost"]["relative_to_kd"][name] == pytest.approx(cost / kd)


@pytest.mark.parametrize(
    ("method", "kept", "mixed"),
    [(MethodConfig("random", keep=0.5), 3 * 16 + 4, 0), (STEP, PURE + MIXED, MIXED)],
)
def test_what_is_filled_ahead_is_charged_whether_it_is_used_or_not(method, kept, mixed, teacher, tmp_path):
    result = run(storing(teacher, tmp_path / "answers", method, fill="epoch"), tmp_path / "run")
    assert asked(result) == (shown() + EPOCHS * mixed, EPOCHS * (kept - mixed), shown())
    assert result["cost"]["flops"]["teacher"] == (shown() + EPOCHS * mixed) * TEACHER


def test_limited_views_are_asked_about_once_each(teacher, tmp_path):
    data = replace(DATA, views=1)
    assert shown(data=data) == IMAGES
    result = run(storing(teacher, tmp_path / "answers", data=data), tmp_path / "run")
    assert asked(result) == (IMAGES, IMAGES, IMAGES)


def test_an_interrupted_run_goes_on_to_the_same_weights(stored, teacher, tmp_path):
    config, original = storing(teacher, tmp_path / "answers", fill="lazy"), Engine.step

    def step(engine: Engine, *rest: Any) -> Any:
        if engine.distiller.steps == 6:
            raise KeyboardInterrupt
        return original(engine, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run", mode="resume")
    assert model_bytes(tmp_path / "run") == model_bytes(stored / "run")


# The command line


def words(teacher: Path, *more: object, method: str = "kd") -> tuple[object, ...]:
    """A run of one epoch."""
    precisions = ("--train.precision", "fp32", "--train.teacher_precision", "fp32")
    return (
        "distill",
        "--teacher",
        teacher,
        "--student",
        "resnet8",
        "--method",
        method,
        *SMALL,
        *precisions,
        *more,
    )


def test_the_size_is_told_before_the_store_is_made(teacher, tmp_path, capsys):
    place = tmp_path / "answers"
    assert call(*words(teacher, "--answers.path", place, "--out", tmp_path / "first")) == 0
    told = f"stored teacher answers: {IMAGES} images × {VIEWS} views × 10 classes as fp16 = 18.00 kB"
    assert told in capsys.readouterr().out
    assert (place / "logits.bin").stat().st_size == IMAGES * VIEWS * 10 * 2
    assert call(*words(teacher, "--answers.path", place, "--out", tmp_path / "second")) == 0
    assert "stored teacher answers" not in capsys.readouterr().out
    assert asked(summary(tmp_path / "second")) == (0, IMAGES, 0)
    assert model_bytes(tmp_path / "second") == model_bytes(tmp_path / "first")


@pytest.mark.slow
def test_two_processes_share_a_store(teacher, tmp_path):
    """Two students in two worker processes fill it together; afterwards nobody asks any more.

    Every run of a comparison is charged as if it were alone; what the store spared it stands beside that.
    """
    pair = ("compare", "--teacher", teacher, "--student", "resnet8", "--methods", "kd", "--seeds", "0,1")
    precisions = ("--train.precision", "fp32", "--train.teacher_precision", "fp32")
    command = (*pair, *SMALL, *precisions, "--epochs", EPOCHS, "--answers.path", tmp_path / "answers")
    for out, jobs in (("first", 2), ("second", 1)):
        assert call(*command, "--jobs", jobs, "--out", tmp_path / out) == 0
    first, second = (
        [summary(tmp_path / out / "runs" / f"kd-seed{seed}") for seed in (0, 1)]
        for out in ("first", "second")
    )
    for result in first:
        forwarded, cached, filled = asked(result)
        assert (forwarded, forwarded + cached) == (filled, EPOCHS * IMAGES)
    assert sum(asked(result)[2] for result in first) >= shown()  # both may ask about the same at once
    assert [asked(result) for result in second] == [(shown(), EPOCHS * IMAGES - shown(), shown())] * 2
    spared = shown() * TEACHER / (EPOCHS * IMAGES * (TEACHER + 3 * STUDENT))
    assert [result["cost"]["shared"]["backward_2x"] for result in second] == [pytest.approx(spared)] * 2
    for name in ("kd-seed0", "kd-seed1"):
        assert_close(tmp_path / "second" / "runs" / name, tmp_path / "first" / "runs" / name, CLOSE)


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "run"
    run(alone("resnet14", epochs=1, seed=1), folder)
    return folder


STALE = {
    "number of images (100 there, 90 here)": ("--data.limit", 90),
    "data": ("--data.split_seed", 1),
    "kind of views": ("--data.crop_padding", 2),
    "number of views (9 there, 4 here)": ("--data.views", 4),
    "stored precision (fp16 there, fp32 here)": ("--answers.precision", "fp32"),
    "teacher precision (fp32 there, bf16 here)": ("--train.teacher_precision", "bf16"),
}


@pytest.mark.parametrize("part", STALE)
def test_other_answers_are_refused_by_name(part, stored, teacher, tmp_path, capsys):
    before = content(stored / "answers")
    assert (
        call(*words(teacher, "--answers.path", stored / "answers", *STALE[part], "--out", tmp_path / "run"))
        == 1
    )
    error = capsys.readouterr().err
    assert error.startswith(f"unixkd: error: {stored / 'answers'} holds other stored answers. What differs: ")
    assert part in error
    assert "teacher weights" not in error
    assert content(stored / "answers") == before
    assert not (tmp_path / "run").exists()


def test_the_precision_that_was_decided_for_the_answers_stays(stored, teacher, tmp_path, monkeypatch):
    """Whatever a probe would say the next time; what is named is taken at its word, and refused."""
    monkeypatch.setattr("unixkd.training.precision.has_native_bf16", lambda device: True)
    monkeypatch.setattr("unixkd.training.precision.probe", lambda *args, **options: 2.0)
    config = storing(teacher, stored / "answers")
    config = replace(config, train=replace(config.train, precision="auto", teacher_precision="auto"))
    run(config, tmp_path / "run")
    assert summary(tmp_path / "run")["environment"]["precision"] == "student bf16, teacher fp32"
    named = replace(config, train=replace(config.train, teacher_precision="bf16"))
    with pytest.raises(UserError, match="teacher precision"):
        run(named, tmp_path / "named")


def test_another_teachers_answers_are_refused(stored, other_teacher, tmp_path, capsys):
    place = stored / "answers"
    assert call(*words(other_teacher, "--answers.path", place, "--out", tmp_path / "run")) == 1
    assert "What differs: teacher weights. Give another folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_seed_of_limited_views_is_refused(teacher, tmp_path, capsys):
    limited = words(teacher, "--answers.path", tmp_path / "answers", "--data.views", 4)
    assert call(*limited, "--out", tmp_path / "first") == 0
    assert call(*limited, "--data.view_seed", 1, "--out", tmp_path / "second") == 1
    assert "kind of views" in capsys.readouterr().err


@pytest.mark.parametrize("fill", ["lazy", "epoch"])
@pytest.mark.parametrize("method", ["unix", "mixup"])
def test_a_method_that_mixes_every_image_keeps_no_answers_and_says_so(method, fill, teacher, tmp_path):
    events: list[Event] = []
    config = storing(teacher, tmp_path / "answers", method, fill=fill)
    result = run(config, tmp_path / "run", display=events.append)
    notes = [event.text for event in events if isinstance(event, Note) and "stored answers" in event.text]
    assert notes == [
        f"{method} mixes every image it keeps, so stored answers would never be read: no store is opened"
    ]
    assert not (tmp_path / "answers").exists()
    kept = EPOCHS * (IMAGES if method == "mixup" else PURE + MIXED)
    assert asked(result) == (kept, 0, 0)
    without = run(replace(config, answers=AnswersConfig()), tmp_path / "without")
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "without")
    assert without["cost"] == result["cost"]


def test_features_are_refused_before_a_store_is_made(teacher, tmp_path, capsys):
    extra = ("--loss.at", 1000, "--answers.path", tmp_path / "answers")
    assert call(*words(teacher, *extra, "--out", tmp_path / "run")) == 1
    assert "at and sp compare features" in capsys.readouterr().err
    assert not (tmp_path / "answers").exists()
    with pytest.raises(UserError, match="at and sp compare features"):
        run(replace(storing(teacher, tmp_path / "answers"), loss=LossConfig(sp=1.0)), tmp_path / "run")


# Views without end


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> tuple[object, ...]:
    """Options that name 24 photographs of 40 × 30 pixels, read from the disk in random resized crops."""
    folder = tmp_path_factory.mktemp("photos")
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for number in range(12):
            pixels = np.random.default_rng(number).integers(256, size=(30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    options = ("--data.size", 16, "--data.in_memory", "false", "--data.workers", 0, "--data.holdout", 0.2)
    return ("--data", f"folder:{folder}", *options, "--train.batch_size", 8)


@pytest.fixture(scope="module")
def photo_teacher(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    assert call("train", "--model", "resnet8", *photos, "--epochs", 1, "--out", folder) == 0
    return folder


def test_so_many_random_crops_of_each_image_can_be_stored(photos, photo_teacher, tmp_path):
    command = ("distill", "--teacher", photo_teacher, "--student", "resnet8", "--method", "kd", *photos)
    command += ("--epochs", 3, "--answers.path", tmp_path / "answers", "--train.teacher_precision", "fp32")
    for fill in ("lazy", "epoch"):
        more = ("--data.views", 2, "--answers.fill", fill, "--out", tmp_path / fill)
        assert call(*command, *more) == 0
    images = 2 * 10  # a fifth of each class is held out
    assert [line["images"]["teacher_filled"] for line in metrics(tmp_path / "lazy")] == [20, 40, 40]
    assert asked(summary(tmp_path / "lazy")) == (2 * images, images, 2 * images)
    assert asked(summary(tmp_path / "epoch")) == (0, 3 * images, 0)
    assert model_bytes(tmp_path / "epoch") == model_bytes(tmp_path / "lazy")


def views_of(folder: Path) -> object:
    return read_yaml(folder / "run.yaml")["data"]["views"]


def test_where_views_have_no_end_a_number_is_chosen_and_kept(photos, photo_teacher, tmp_path, capsys):
    command = ("distill", "--teacher", photo_teacher, "--student", "resnet8", "--method", "kd", *photos)
    command += ("--train.teacher_precision", "fp32", "--answers.path", tmp_path / "answers")
    command += ("--train.batch_size", 20, "--train.micro_batch", 10)
    first = (*command, "--epochs", 1, "--reference_epochs", 14, "--out", tmp_path / "first")
    assert call(*first) == 0
    assert "answers to 2 views of each image are stored, for 14 epochs" in capsys.readouterr().out
    assert views_of(tmp_path / "first") == 2  # 14 % of 14
    assert call(*first, "--resume") == 0
    assert call(*command, "--epochs", 1, "--out", tmp_path / "second") == 0
    assert "answers to 2 views of each image are stored, as in the store" in capsys.readouterr().out
    assert views_of(tmp_path / "second") == 2
    alone = [word for word in command if word not in ("--answers.path", tmp_path / "answers")]
    assert call(*alone, "--epochs", 1, "--out", tmp_path / "third") == 0
    assert views_of(tmp_path / "third") is None


def test_all_runs_of_a_comparison_see_the_same_views(photos, photo_teacher, tmp_path):
    command = (
        "compare",
        "--teacher",
        photo_teacher,
        "--student",
        "resnet8",
        "--methods",
        "remix,unix",
        *photos,
    )
    command += ("--seeds", 0, "--epochs", 2, "--jobs", 1, "--answers.path", tmp_path / "answers")
    assert call(*command, "--out", tmp_path / "runs") == 0
    assert {views_of(path.parent) for path in tmp_path.glob("runs/runs/*/run.yaml")} == {1}
