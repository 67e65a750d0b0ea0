"""A teacher whose answers to some images are not finite: named, or left out, counted and capped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from running import distilled, everything, make_teacher, weights
from slow import TinyNet, images_of
from unixkd.config import RunConfig
from unixkd.data import load_data
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.losses import kl_divergence
from unixkd.method.network import Network
from unixkd.method.unix import kd
from unixkd.teacher.teacher import Teacher
from unixkd.training.run import run

FAULTY = (3, 17)


def allowing(config: RunConfig, count: int) -> RunConfig:
    return replace(config, data=replace(config.data, max_faulty=count))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture
def broken(monkeypatch):
    """Answers to two training images are not finite, whoever is asked."""
    original = Teacher.answer

    def answer(teacher, batch, mixed):
        found = original(teacher, batch, mixed)
        logits = found.outputs.logits.clone()
        faulty = torch.isin(batch.index[mixed.position], torch.tensor(FAULTY))
        logits[faulty] = torch.inf
        return replace(found, outputs=replace(found.outputs, logits=logits))

    monkeypatch.setattr(Teacher, "answer", answer)


def test_the_images_are_named_and_nothing_is_saved(broken, teacher, tmp_path):
    with pytest.raises(
        UserError, match=r"epoch 1: the teacher's logits are not finite for 2 images \(3, 17\)"
    ):
        run(distilled(teacher, "kd"), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("method", ["kd", "unix", "random"])
def test_up_to_a_cap_they_are_left_out(method, broken, teacher, tmp_path):
    config = allowing(distilled(teacher, method), 2)
    notes: list[str] = []
    run(config, tmp_path / "run", display=lambda event: notes.append(getattr(event, "text", "")))
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    listed = json.loads((tmp_path / "run" / "left_out.json").read_text())
    assert listed["unreadable"] == []
    assert set(listed["unanswered"]) <= set(FAULTY)
    assert sum(f"not finite for {len(listed['unanswered'])} training images" in note for note in notes) == 1
    with pytest.raises(UserError, match=r"for \d images"):
        run(allowing(config, 0), tmp_path / "capped")


def test_unreadable_images_count_as_well(broken, teacher, tmp_path, monkeypatch):
    config = distilled(teacher, "kd")
    found = replace(load_data(config.data), left_out=("a.png: cannot be read",))
    monkeypatch.setattr("unixkd.training.resolved.load_data", lambda *given: found)
    with pytest.raises(
        UserError, match=r"2 images \(3, 17\).* --data\.max_faulty \(2\) are left out, and 1 cannot be read"
    ):
        run(allowing(config, 2), tmp_path / "two")
    run(allowing(config, 3), tmp_path / "three")
    listed = json.loads((tmp_path / "three" / "left_out.json").read_text())
    assert listed == {"unreadable": ["a.png: cannot be read"], "unanswered": list(FAULTY)}


def test_a_run_without_them_is_the_run_that_does_not_look(teacher, tmp_path, monkeypatch):
    run(distilled(teacher), tmp_path / "looks")
    monkeypatch.setattr(
        "unixkd.distiller.Distiller", lambda *a, **k: Distiller(*a, **{**k, "marks_faulty": False})
    )
    run(distilled(teacher), tmp_path / "blind")
    assert everything(tmp_path / "looks") == everything(tmp_path / "blind")


def test_a_negative_cap_is_refused(teacher, tmp_path):
    with pytest.raises(UserError, match=r"data\.max_faulty: .* >= 0, got -1"):
        run(allowing(distilled(teacher), -1), tmp_path / "run")


class Sometimes(nn.Module):
    """A tiny network that has no answer to an image whose first pixel is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet(seed=3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.net(images)
        return torch.where(images[:, :1, 0, 0] == 0, torch.nan, logits)


def test_the_loss_by_hand():
    """Weights 1, 0, 1, 1: three rows' losses over four rows."""
    images = images_of(4, seed=1)
    images[1, 0, 0, 0] = 0
    student, teacher = TinyNet(seed=1).eval(), Sometimes()
    distiller = Distiller(student, teacher, kd(), batch_size=4, marks_faulty=True)
    draws = make_draws(4, seed=0, step=0)
    result = distiller.run(Batch(images, None, torch.arange(4)), draws)
    assert result.answers.finite.tolist() == [True, False, True, True]
    rows = kl_divergence(teacher.net(images), student(images), 4.0)
    assert result.loss.item() == pytest.approx((rows.sum() - rows[1]).item() / 4, rel=1e-5)
    result.loss.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())


def test_in_an_own_loop_the_loss_shows_it():
    """Nobody would look at `answers.finite` there."""
    images = images_of(4, seed=1)
    images[1, 0, 0, 0] = 0
    result = Distiller(TinyNet(seed=1), Sometimes(), kd()).step(images)
    assert result.answers.finite is None
    assert not result.loss.isfinite()


def test_they_are_not_stored(tmp_path):
    from unixkd.teacher.store import AnswerStore

    images = images_of(4, seed=1)
    images[1, 0, 0, 0] = 0
    classes = TinyNet(seed=3)(images).shape[1]
    store = AnswerStore.open(tmp_path / "answers", {"who": "a"}, images=4, views=1, classes=classes)
    asking = Teacher(Network(Sometimes()), store, marks_faulty=True)
    index, view = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    found = asking.recall(Batch(images, None, index, view), torch.arange(4)).marked()
    assert found.finite.tolist() == store.read(index, view)[1].tolist() == [True, False, True, True]
    assert (found.forwarded, found.filled) == (4, 4)
