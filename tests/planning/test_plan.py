"""What methods will cost: figures by hand, warnings, the table of `unixkd plan`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from running import call, make_teacher
from unixkd.cli import plan as cli_plan
from unixkd.config import DataConfig, ModelConfig
from unixkd.data import load_data
from unixkd.method.batch import Batch
from unixkd.method.flops import forward_flops
from unixkd.method.unix import (
    hard,
    kd,
    mixup,
    random,
    random_epoch,
    selective_backprop,
    stale,
    student_alone,
    unix,
    unix_random,
)
from unixkd.models import ModelCard, PixelModel, create_model
from unixkd.planning import methods as planning_methods
from unixkd.planning.expected import Workload
from unixkd.planning.methods import Plan, make_plan
from unixkd.planning.timing import Pair, interleaved, step_of

ALL = [kd(), unix(), unix_random(), random(), hard(), mixup(), student_alone()]


def model(name: str) -> PixelModel:
    return PixelModel(create_model(name, 10, 3), ModelCard(name, 10, 3, (0.5,) * 3, (0.5,) * 3))


def batch(images: int = 16, size: int = 8) -> Batch:
    return Batch(torch.rand(images, 3, size, size), torch.arange(images) % 10)


def plan_of(teacher: str, student: str, methods, images: int = 16, rounds: int = 0):
    return make_plan(Pair(model(teacher), model(student), batch()), methods, Workload(images, 16), rounds)


def ratio(plan: Plan) -> float:
    """F_t/F_s."""
    return plan.teacher_flops / plan.student_flops


def test_the_published_pair_by_hand():
    """wrn_40_2 → wrn_16_2 at 32 pixels: F_t/F_s = 327.61 / 101.12 (fewer for 10 classes: 11,520 MACs less)."""
    pair = Pair(model("wrn_40_2"), model("wrn_16_2"), batch(64, 32))
    plan = make_plan(pair, [kd(), unix()], Workload(64), rounds=0)
    assert plan.teacher_flops == pytest.approx(2 * (327.61e6 - 11520), rel=1e-4)
    assert plan.student_flops == pytest.approx(2 * (101.12e6 - 11520), rel=1e-4)
    assert plan.methods[0].relative == {"backward_1x": 1.0, "backward_2x": 1.0}
    # k/N + F_s / (F_t + 2 F_s) = 0.75 + 1 / (3.24 + 2) and 0.75 + 1 / (3.24 + 3)
    assert plan.methods[1].relative == pytest.approx({"backward_1x": 0.9408, "backward_2x": 0.9103}, abs=1e-3)
    assert plan.methods[1].break_even == {"backward_1x": 2.0, "backward_2x": 1.0}
    assert plan.warnings() == []


def test_every_method_by_hand():
    plan = plan_of("resnet14", "resnet8", [*ALL, selective_backprop(), stale(), random_epoch(0.5)])
    r = ratio(plan)
    expected = {
        "kd": 1.0,
        "unix": 0.75 + 1 / (r + 3),
        "unix-random": 0.75 + 1 / (r + 3),
        "random": 0.75,
        "hard": 0.75 + 1 / (r + 3),
        "mixup": 1.0,
        "student-alone": 3 / (r + 3),
        "selective-backprop": 0.75 + 1 / (r + 3),
        "stale": 0.75,
        "random-epoch": 0.5,
    }
    assert {p.method.name: p.relative["backward_2x"] for p in plan.methods} == pytest.approx(expected)
    assert all(p.seconds is None and p.relative_seconds is None for p in plan.methods)


def test_a_short_last_batch_is_kept_whole():
    """40 images in batches of 16, 16, 8: random keeps 12 + 12 + 8."""
    plan = plan_of("resnet14", "resnet8", [random(), unix()], images=40)
    assert plan.methods[0].relative["backward_1x"] == pytest.approx(32 / 40)
    assert plan.methods[1].relative["backward_1x"] == pytest.approx(32 / 40 + 1 / (ratio(plan) + 2))


def test_step_sizes():
    assert Workload(128, 64).sizes == [64, 64]
    assert Workload(130, 64).sizes == [64, 64, 2]
    assert Workload(10, 64).sizes == [10]


def test_a_method_dearer_than_plain_kd_is_warned_of():
    """A teacher smaller than the student, F_t/F_s < 1: scoring costs more than a quarter less of the rest saves."""
    plan = plan_of("resnet8", "resnet14", ALL)
    assert ratio(plan) < 1
    assert plan.warnings() == [
        "unix would cost more than plain KD in FLOPs (backward_1x, backward_2x)",
        "unix-random would cost more than plain KD in FLOPs (backward_1x, backward_2x)",
        "hard would cost more than plain KD in FLOPs (backward_1x, backward_2x)",
    ]
    assert all(value > 1 for value in plan.methods[1].relative.values())


def test_between_the_two_break_even_points_one_convention_warns():
    """F_t/F_s between 1 and 2: resnet20 → resnet14 at 1.53."""
    plan = plan_of("resnet20", "resnet14", [unix()])
    assert 1 < ratio(plan) < 2
    assert plan.warnings() == ["unix would cost more than plain KD in FLOPs (backward_1x)"]


def test_steps_are_timed_against_plain_kd_even_where_it_is_not_asked_for():
    teacher, student = model("resnet14"), model("resnet8").train()
    before = [p.clone() for p in student.parameters()]
    plan = make_plan(Pair(teacher, student, batch()), [unix(), student_alone()], Workload(16, 16), rounds=2)
    assert [p.method.name for p in plan.methods] == ["unix", "student-alone"]
    assert all(p.seconds > 0 and p.relative_seconds > 0 for p in plan.methods)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert all(p.grad is None for p in student.parameters())


def test_plain_kd_takes_its_own_time():
    plan = plan_of("resnet14", "resnet8", [kd()], rounds=3)
    assert plan.methods[0].relative_seconds == 1.0


def test_slow_methods_are_warned_of(monkeypatch):
    seconds = {kd(): [1.0, 2.0], random(): [1.2, 2.4], unix(): [1.0, 2.0]}
    monkeypatch.setattr(
        planning_methods,
        "time_steps",
        lambda *_: {step_of(method, (8, 8)): taken for method, taken in seconds.items()},
    )
    plan = plan_of("resnet44", "resnet8", [random(), unix()], rounds=2)
    assert plan.methods[0].relative_seconds == pytest.approx(1.2)
    assert plan.methods[0].seconds == pytest.approx(1.8)
    assert plan.warnings() == ["random would cost more than plain KD in seconds on this machine"]


def test_the_first_round_only_warms_up_and_every_other_one_is_run_in_reverse():
    called: list[str] = []
    calls = {name: partial(called.append, name) for name in "ab"}
    seconds = interleaved(calls, 3, torch.device("cpu"))
    assert "".join(called) == "ba" + "ab" + "ba" + "ab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}


# The command


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def test_plan_prints_the_ratio_and_every_method(teacher, capsys):
    assert call("plan", "--teacher", teacher, "--student", "resnet8", "--rounds", "0") == 0
    text = capsys.readouterr().out
    student, own = (forward_flops(create_model(n, 10, 1), (1, 8, 8)) for n in ("resnet8", "resnet14"))
    assert f"F_t/F_s = {own / student:.2f}" in text
    assert f"{own / 1e6:,.1f} and {student / 1e6:,.1f} MFLOPs" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    for method in ALL:
        assert method.name in rows
    assert rows["kd"][:4] == ["100.0", "100.0", "–", "–"]
    # the teacher's own data: 100 images are one batch of 64 and one of 36, of which 48 and 36 are kept
    assert rows["random"][0] == "84.0"
    assert rows["unix"][-3:] == ["2", "/", "1"]
    assert rows["mixup"][-1] == "any"


def test_plan_of_a_recipe_shows_the_published_ratio_and_reads_no_data(capsys):
    words = (
        "--recipe",
        "cifar100/resnet56-resnet20",
        "--batch_size",
        "4",
        "--rounds",
        "1",
        "--method",
        "unix",
    )
    assert call("plan", *words) == 0
    text = capsys.readouterr().out
    assert "resnet56 → resnet20" in text
    assert "(published: 3.06)" in text
    assert "F_t/F_s = 3.08" in text
    (row,) = (line.split() for line in text.splitlines() if line.startswith(" ") and "unix" in line)
    assert all(float(cell) > 0 for cell in row[1:5])


def test_plan_of_the_imagenet_recipe_needs_neither_data_nor_weights(capsys, tmp_path, monkeypatch):
    """The networks' costs are torchvision's: 3.67 and 1.82 GFLOPs, multiply and add counted as one."""
    recipe = ("--recipe", "imagenet/resnet34-resnet18", "--rounds", "0", "--batch_size", "2")
    monkeypatch.setattr("unixkd.models.published.pretrained", lambda name: pytest.fail("weights for a plan"))
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    original = planning_methods.make_plan
    monkeypatch.setattr(cli_plan, "make_plan", lambda *a, **k: seen.append(a[2].images) or original(*a, **k))
    assert call("plan", *recipe, "--method", "kd") == 0
    assert seen == [1_281_167]
    text = capsys.readouterr().out
    ratio = float(text.partition("F_t/F_s = ")[2].split()[0])
    assert ratio == pytest.approx(3.67 / 1.82, rel=0.02)
    assert call("plan", *recipe, "--data", "folder:photos") == 1
    assert "photos: no such folder" in capsys.readouterr().err


def test_plan_warns(capsys):
    words = ("--teacher", "resnet8", "--student", "resnet14", "--data", "digits", "--rounds", "0")
    assert call("plan", *words) == 0
    assert "WARNING: unix would cost more than plain KD" in capsys.readouterr().out


def test_plan_with_a_keep_that_pays_for_one_convention_only(capsys):
    """1 / (1 - 0.6) - 1 - backward = 0.5 and -0.5."""
    words = ("--teacher", "resnet14", "--student", "resnet8", "--data", "digits", "--rounds", "0")
    assert call("plan", *words, "--method", "hard", "--method.keep", "0.6") == 0
    assert "0.5 / 0" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--batch_size", "0"), ("--rounds", "-1")])
def test_numbers_out_of_range_are_usage_errors(words, capsys):
    assert call("plan", "--teacher", "resnet14", "--student", "resnet8", *words) == 2
    assert "unixkd: error" in capsys.readouterr().err


def test_the_known_data_are_as_they_are():
    data = load_data(DataConfig("digits"))
    train = data.train
    shape = (data.channels, data.size, data.num_classes, len(train), train.num_views)
    assert cli_plan.KNOWN_DATA["digits"] == shape
    held_out = DataConfig("digits", holdout=0.1, crop_padding=2, flip=True, views=3)
    train = load_data(replace(held_out, views=None)).train
    assert cli_plan.data_shape(held_out, ModelConfig())[3:] == pytest.approx(
        (len(train), train.num_views), abs=2
    )
    assert cli_plan.data_shape(held_out, ModelConfig()).views == train.num_views == 50
    # a crop of 16 pixels has a padding of 2
    assert cli_plan.data_shape(DataConfig("cifar100", limit=500, size=16), ModelConfig()) == (
        3,
        16,
        100,
        500,
        50,
    )


def test_the_cost_of_mixed_answers_depends_on_the_store(capsys):
    """`remix` is not among the methods of a plan, and one that is named points to what counts stores."""
    words = ("--teacher", "resnet14", "--student", "resnet8", "--data", "digits", "--rounds", "1")
    assert call("plan", *words) == 0
    assert "remix" not in capsys.readouterr().out
    for named in (("--method", "remix"), ("--method", "mixup", "--method.mixes_answers", "true")):
        assert call("plan", *words, *named) == 1
        assert "depends on its stored answers: give --match-kd or --budget" in capsys.readouterr().err
