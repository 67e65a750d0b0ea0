"""Runs on stored answers of the largest logits: charged as ever, the same when repeated, never another store's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from running import DATA, IMAGES, SMALL, call, distilled, make_teacher, metrics, model_bytes, summary, weights
from unixkd.config import AnswersConfig, LossConfig, RunConfig
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import Batch, MixedBatch
from unixkd.method.losses import KD, CrossEntropy
from unixkd.method.network import Network
from unixkd.method.objective import Term
from unixkd.method.unix import kd
from unixkd.teacher.store import AnswerStore
from unixkd.teacher.teacher import Teacher
from unixkd.training.engine import Engine
from unixkd.training.run import run

EPOCHS, TOP = 2, 3
PRECISIONS = ("--train.precision", "fp32", "--train.teacher_precision", "fp32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def storing(teacher: Path, store: Path, method: str = "kd", **answers: Any) -> RunConfig:
    """A run of two epochs in full precision that stores the largest logits of the teacher's answers."""
    config = distilled(teacher, method, epochs=EPOCHS, precision="fp32", teacher_precision="fp32")
    return replace(config, data=DATA, answers=AnswersConfig(**{"path": str(store), "top_k": TOP, **answers}))


def asked(result: dict[str, Any]) -> tuple[int, int, int]:
    """Images that went through the teacher, that were answered from the store, that were stored."""
    images = result["cost"]["images"]
    return tuple(images[f"teacher_{name}"] for name in ("forwarded", "cached", "filled"))


@pytest.fixture(scope="module")
def stored(teacher, tmp_path_factory) -> Path:
    """Plain KD, stored as it went: the run in `run`, the store in `answers`."""
    folder = tmp_path_factory.mktemp("stored")
    run(storing(teacher, folder / "answers"), folder / "run")
    return folder


# Whole runs


def test_it_is_charged_as_with_all_logits(stored, teacher, tmp_path):
    full = run(storing(teacher, tmp_path / "answers", top_k=None), tmp_path / "run")
    ours = summary(stored / "run")
    assert ours["cost"] == full["cost"]
    assert asked(ours)[2] > IMAGES
    assert model_bytes(stored / "run") != model_bytes(tmp_path / "run")  # or else it kept them all
    losses = [metrics(folder / "run")[-1]["loss"] for folder in (stored, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.parametrize("fill", ["lazy", "epoch"])
def test_a_second_run_asks_nothing_and_is_the_same_run(fill, stored, teacher, tmp_path):
    result = run(storing(teacher, stored / "answers", fill=fill), tmp_path / "run")
    assert asked(result) == (0, EPOCHS * IMAGES, 0)
    assert model_bytes(tmp_path / "run") == model_bytes(stored / "run")


def test_filled_ahead_it_is_the_same_run(stored, teacher, tmp_path):
    """But for the last bits of what the teacher says in another batch."""
    result = run(storing(teacher, tmp_path / "answers", fill="epoch"), tmp_path / "run")
    assert asked(result)[::2] == asked(summary(stored / "run"))[::2]
    ours, theirs = weights(tmp_path / "run"), weights(stored / "run")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-3)


def test_an_interrupted_run_goes_on_to_the_same_weights_and_bill(stored, teacher, tmp_path):
    config, original = storing(teacher, tmp_path / "answers", fill="lazy"), Engine.step

    def step(engine: Engine, *rest: Any) -> Any:
        if engine.distiller.steps == 6:
            raise KeyboardInterrupt
        return original(engine, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    result = run(config, tmp_path / "run", mode="resume")
    assert model_bytes(tmp_path / "run") == model_bytes(stored / "run")
    assert asked(result) == asked(summary(stored / "run"))


def test_mixed_answers_may_be_of_the_largest_logits(teacher, tmp_path):
    first, second = (run(storing(teacher, tmp_path / "answers", "remix"), tmp_path / n) for n in ("a", "b"))
    assert asked(first)[2] > IMAGES
    assert asked(second)[0] == 0
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")


def test_the_temperature_of_the_loss_is_the_stores(stored, teacher, tmp_path):
    """4 by default: where only the largest logits are kept, another one is another store."""
    config = replace(storing(teacher, stored / "answers"), loss=LossConfig(temperature=2.0))
    with pytest.raises(
        UserError, match=r"for temperature 4\.0 there, the largest 3, for temperature 2\.0 here"
    ):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def words(teacher: Path, *more: object) -> tuple[object, ...]:
    """A run of one epoch."""
    pair = ("--teacher", teacher, "--student", "resnet8", "--method", "kd")
    return ("distill", *pair, *SMALL, *PRECISIONS, *more)


def test_on_the_command_line(teacher, stored, tmp_path, capsys):
    place = ("--answers.path", tmp_path / "answers", "--answers.top_k", TOP)
    assert call(*words(teacher, *place, "--out", tmp_path / "first")) == 0
    told = f"stored teacher answers: {IMAGES} images × 9 views × {TOP} of 10 classes as fp16 = 12.60 kB"
    assert told in capsys.readouterr().out
    for other, message in (
        (
            ("--answers.top_k", 2),
            "(the largest 3, for temperature 4.0 there, the largest 2, for temperature 4.0 here)",
        ),
        (("--answers.top_k", 10), "answers.top_k must be from 1 to 9 of 10 classes, got 10"),
        (("--answers.top_k", 0), "answers.top_k must be from 1 to 9 of 10 classes, got 0"),
    ):
        assert call(*words(teacher, *place[:2], *other, "--out", tmp_path / "second")) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "second").exists()


# One answer at a time


class Table(nn.Module):
    """Answers an image of grey value g with row g of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, images: Tensor) -> Tensor:
        return self.table[images[:, 0, 0, 0].long()]


TABLE = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)) * 4
PICTURES = Batch(
    torch.arange(4.0)[:, None, None, None].expand(-1, 1, 2, 2),
    index=torch.arange(4),
    view=torch.zeros(4, dtype=torch.int64),
)


def test_a_distiller_refuses_a_store_for_another_temperature(tmp_path):
    """1 unless said otherwise; where all logits are kept it does not matter."""
    size = {"images": 4, "views": 1, "classes": 10}
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(4, 10)) for _ in range(2))
    cold = AnswerStore.open(tmp_path / "cold", {"a": "b"}, **size, top_k=3)
    with pytest.raises(UserError, match=r"cold holds the largest logits for temperature 1, a loss has 4"):
        Distiller(student, teacher, kd(), store=cold)
    Distiller(student, teacher, kd(), [Term("kd", KD(1.0)), Term("ce", CrossEntropy())], store=cold)
    Distiller(student, teacher, kd(), store=AnswerStore.open(tmp_path / "all", {"a": "b"}, **size))


def teacher_of(folder: Path, table: Tensor = TABLE, **options: Any) -> Teacher:
    """A teacher with a store of its three largest logits."""
    store = AnswerStore.open(folder / "answers", {"a": "b"}, images=4, views=1, classes=10, top_k=3)
    return Teacher(Network(Table(table)), store, **options)


def test_the_mix_is_that_of_what_is_read(tmp_path):
    teacher = teacher_of(tmp_path, mixes_answers=True)
    weight, ones = torch.tensor([0.25, 0.5]), torch.ones(2)
    rows = MixedBatch(
        PICTURES.images[:2], None, None, weight, ones, torch.tensor([2, 0]), 0, torch.tensor([1, 3])
    )
    for _ in range(2):  # asked, then from the store
        found = teacher(PICTURES, rows).outputs.logits
        read = teacher.store.read(PICTURES.index, PICTURES.view)[0].float()
        expected = 0.75 * read[2] + 0.25 * read[1], 0.5 * read[0] + 0.5 * read[3]
        torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_faulty_answer_is_marked_and_not_stored(value, tmp_path):
    table = TABLE.clone()
    table[1, TABLE[1].argmin()] = value
    teacher = teacher_of(tmp_path, table, marks_faulty=True)
    pure = MixedBatch(PICTURES.images, None, None, torch.zeros(4), torch.ones(4), torch.arange(4), 4)
    found = teacher(PICTURES, pure)
    assert found.finite.tolist() == [True, False, True, True]
    assert teacher.store.read(PICTURES.index, PICTURES.view)[1].tolist() == [True, False, True, True]


# Large images


def test_fixed_views_of_large_images_are_asked_about_once(tmp_path, capsys):
    """JPEGs of many sizes, two random resized crops of each to 96 pixels, 2 of 6 logits."""
    generator = np.random.default_rng(0)
    for number in range(30):
        folder = tmp_path / "photos" / f"class{number % 6}"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = generator.integers(90, 200, 2)
        pixels = generator.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    options = ("--data.size", 96, "--data.workers", 0, "--data.holdout", 0.2, "--train.batch_size", 8)
    data = ("--data", f"folder:{tmp_path / 'photos'}", *options, *PRECISIONS)
    assert call("train", "--model", "resnet8", *data, "--epochs", 1, "--out", tmp_path / "teacher") == 0
    pair = ("--teacher", tmp_path / "teacher", "--student", "resnet8", "--method", "kd")
    store = ("--data.views", 2, "--answers.path", tmp_path / "answers", "--answers.top_k", 2)
    command = ("distill", *pair, *data, *store, "--epochs", 3)
    for fill in ("lazy", "epoch"):
        assert call(*command, "--answers.fill", fill, "--out", tmp_path / fill) == 0
    assert "24 images × 2 views × 2 of 6 classes as fp16 = 480 bytes" in capsys.readouterr().out
    assert asked(summary(tmp_path / "lazy")) == (48, 24, 48)
    assert asked(summary(tmp_path / "epoch")) == (0, 72, 0)
    assert model_bytes(tmp_path / "epoch") == model_bytes(tmp_path / "lazy")
