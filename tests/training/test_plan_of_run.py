"""What a run writes down of its cost before it starts, against what it was charged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from running import IMAGES, alone, distilled, make_teacher, summary
from unixkd.config import AnswersConfig, LossConfig, MethodConfig
from unixkd.training.run import run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def plan(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plan.json").read_text())


STATIC = {
    "kd": MethodConfig("kd"),
    "unix": MethodConfig("unix"),
    "without clean images at the end": MethodConfig("mixup"),
    "scored in eval mode": MethodConfig("hard", scoring_mode="eval"),
    "drawn by loss": MethodConfig("selective-backprop", keep=0.5),
    "keeps and sees more and more": MethodConfig(
        "unix", keep=0.25, keep_end=1.0, size=0.5, size_end=1.0, full_last=0.3, scoring_size=0.5
    ),
}


@pytest.mark.parametrize("name", STATIC)
def test_what_is_planned_for_a_static_method_is_what_it_costs(name, teacher, tmp_path):
    run(distilled(teacher, STATIC[name], epochs=3), tmp_path / "run")
    planned, cost = plan(tmp_path / "run"), summary(tmp_path / "run")["cost"]
    assert planned["exact"] is True
    assert planned["images"] == {key: cost["images"][key] for key in planned["images"]}
    assert planned["relative_to_kd"] == pytest.approx(cost["relative_to_kd"], rel=1e-12)


@pytest.mark.parametrize(
    "method", ["unix", "mixup"]
)  # mixup's statistics of BatchNorm would be estimated anew
def test_a_fitted_classifier_counts_and_frozen_statistics_do_not(method, teacher, tmp_path):
    config = distilled(teacher, method, epochs=2, fit_head=True, freeze_batchnorm=True)
    run(replace(config, reference_epochs=3), tmp_path / "run")
    planned, cost = plan(tmp_path / "run"), summary(tmp_path / "run")["cost"]
    assert planned["images"] == {key: cost["images"][key] for key in planned["images"]}
    assert planned["images"]["scored"] == IMAGES * (3 if method == "unix" else 1)
    assert planned["relative_to_kd"] == pytest.approx(cost["relative_to_kd"], rel=1e-12)


def test_it_is_relative_to_the_reference(teacher, tmp_path):
    """Plain KD for 2 of 5 epochs costs 2/5."""
    run(replace(distilled(teacher, "kd"), reference_epochs=5), tmp_path / "run")
    assert plan(tmp_path / "run")["relative_to_kd"] == pytest.approx({"backward_1x": 0.4, "backward_2x": 0.4})


def test_of_chosen_images_it_says_what_is_expected(teacher, tmp_path):
    """InfoBatch: all of them in the first and in the last of 8 epochs, ¾ in the others, by the arithmetic."""
    run(distilled(teacher, "infobatch", epochs=8), tmp_path / "run")
    planned = plan(tmp_path / "run")
    assert planned["exact"] is False
    assert planned["relative_to_kd"]["backward_1x"] == pytest.approx(0.8125)
    assert planned["images"] == {"scored": 0, "teacher_forwarded": 650, "trained": 650}


def test_stored_answers_are_counted_as_from_an_empty_store(teacher, tmp_path):
    """Two views in turn: the third and the fourth epoch ask nothing; a second run finds all answers there."""
    config = distilled(teacher, "kd", epochs=4)
    config = replace(
        config, data=replace(config.data, views=2), answers=AnswersConfig(str(tmp_path / "answers"))
    )
    for number, asked in ((0, 2 * IMAGES), (1, 0)):
        run(replace(config, train=replace(config.train, seed=number)), tmp_path / str(number))
        planned = plan(tmp_path / str(number))
        assert planned["images"] == {"scored": 0, "teacher_forwarded": 2 * IMAGES, "trained": 4 * IMAGES}
        assert planned["exact"] is False
        assert summary(tmp_path / str(number))["cost"]["images"]["teacher_forwarded"] == asked


def test_where_no_loss_asks_a_teacher_there_is_no_plan(teacher, tmp_path):
    run(alone(epochs=1), tmp_path / "alone")
    run(replace(distilled(teacher, "kd", epochs=1), loss=LossConfig(kd=0.0, ce=1.0)), tmp_path / "labels")
    assert not [*tmp_path.glob("*/plan.json")]


def test_it_is_there_before_the_first_step_and_goes_with_its_run(teacher, tmp_path, monkeypatch):
    def broken(*arguments: Any) -> None:
        raise RuntimeError("the first step")

    with monkeypatch.context() as patch:
        patch.setattr("unixkd.training.engine.Engine.step", broken)
        with pytest.raises(RuntimeError, match="the first step"):
            run(distilled(teacher), tmp_path / "run")
    assert plan(tmp_path / "run")["images"]["scored"] == 2 * IMAGES
    run(alone(epochs=1), tmp_path / "run", mode="overwrite")
    assert not (tmp_path / "run" / "plan.json").exists()
