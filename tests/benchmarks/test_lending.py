"""Runs that lend each other answers: the same training, charged as if each had asked, with fewer forwards in fact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lending import lending
from running import DATA, IMAGES, distilled, make_teacher, weights
from unixkd.config import AnswersConfig, MethodConfig, RunConfig
from unixkd.teacher.teacher import Teacher
from unixkd.training.run import run

EPOCHS = 2


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def config_of(teacher: Path, method: MethodConfig, store: Path | None = None) -> RunConfig:
    config = distilled(teacher, method, epochs=EPOCHS, precision="fp32", teacher_precision="fp32")
    answers = AnswersConfig(None if store is None else str(store))
    return replace(config, data=replace(DATA, views=2), answers=answers)


@pytest.mark.parametrize("method", ["kd", "random", "unix", "remix"])
def test_the_ledger_is_that_of_a_run_alone(method, teacher, tmp_path):
    """kd and random may be lent every answer, unix none, as it asks about mixes; remix fills a store of its own."""
    stored = method == "remix"
    options = MethodConfig(method)

    def store(name: str) -> Path | None:
        return tmp_path / name if stored else None

    alone = run(config_of(teacher, options, store("a")), tmp_path / "alone")
    with lending(tmp_path / "lent"):
        first = run(config_of(teacher, options, store("b")), tmp_path / "first")
        second = run(config_of(teacher, options, store("c")), tmp_path / "second")
    assert alone["cost"] == first["cost"] == second["cost"]
    for name, tensor in weights(tmp_path / "alone").items():  # answers are rounded to fp16 in the store
        for other in ("first", "second"):
            torch.testing.assert_close(weights(tmp_path / other)[name], tensor, rtol=0, atol=1e-3)
    first_weights, second_weights = (weights(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(tensor, second_weights[name]) for name, tensor in first_weights.items())


def test_what_is_lent_is_not_asked_again(teacher, tmp_path, monkeypatch):
    """Two views of each image: the first run asks about each once, the second about none."""
    asked: list[int] = []
    original = Teacher.ask

    def ask(self: Teacher, images: torch.Tensor, *more: Any) -> torch.Tensor:
        asked.append(len(images))
        return original(self, images, *more)

    monkeypatch.setattr(Teacher, "ask", ask)
    with lending(tmp_path / "lent"):
        for name in ("first", "second"):
            run(config_of(teacher, MethodConfig("kd")), tmp_path / name)
            asked.append(-1)
    cut = asked.index(-1)
    assert sum(asked[:cut]) == 2 * IMAGES
    assert sum(n for n in asked[cut:] if n > 0) == 0


def test_outside_nothing_is_lent(teacher, tmp_path):
    with lending(None):
        run(config_of(teacher, MethodConfig("kd")), tmp_path / "run")
    with lending(tmp_path / "lent"):
        pass
    run(config_of(teacher, MethodConfig("kd")), tmp_path / "again")
    assert not (tmp_path / "lent").exists()
