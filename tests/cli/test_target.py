"""`distill --budget` and `--match-kd`: what `plan` names first is what is run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from running import call, make_teacher, summary
from unixkd.cli.distill import reasons
from unixkd.cli.main import parse
from unixkd.config import read_yaml
from unixkd.planning.catalogue import strategies
from unixkd.planning.expected import Workload
from unixkd.planning.strategies import StrategyEstimate, TeacherForwards

PROTOCOL = ("--data", "digits", "--epochs", "10")
FAST = ("--data.limit", "64", "--train.batch_size", "32", "--train.precision", "fp32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.mark.parametrize("target", [("--budget", "70%"), ("--match-kd",), ("--budget", "34%")])
def test_the_strategy_that_plan_names_first_is_run(target, teacher, tmp_path, capsys):
    pair = ("--teacher", teacher, "--student", "resnet8")
    planned = ("plan", *pair, *PROTOCOL, "--data.limit", 64, "--batch_size", 32, "--rounds", 0)
    assert call(*planned, *target) == 0
    printed = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    named = parse("distill", printed[2:])
    assert call("distill", *pair, *PROTOCOL, *FAST, *target, "--out", tmp_path / "run") == 0
    made = read_yaml(tmp_path / "run" / "run.yaml")
    assert made["method"]["name"] == named.method.name
    assert made["train"]["epochs"] == named.train.epochs
    assert made["reference_epochs"] == named.reference_epochs
    assert (made["data"]["views"], made["data"]["mixes"]) == (named.data.views, named.data.mixes)
    stored = [str(path) for path in tmp_path.glob("answers-*")] or [None]
    assert [made["answers"]["path"]] == stored
    assert (stored == [None]) == (named.answers.path is None)
    cost = summary(tmp_path / "run")["cost"]["relative_to_kd"]["backward_2x"]
    if target[0] == "--budget":
        assert cost <= float(target[1].rstrip("%")) / 100 + 0.005  # a last batch is kept whole


def test_it_is_said_what_was_chosen_at_what_cost_and_on_which_evidence():
    def said(epochs: int) -> list[str]:
        (chosen,) = (each for each in strategies(500, epochs) if each.name == "random")
        estimate = StrategyEstimate(chosen, {"backward_2x": 0.75}, TeacherForwards(1.0, 1.0))
        return reasons(chosen, estimate, Workload(500, epochs=epochs))

    first = "random: 75.00 % of plain KD's cost is expected, a backward counted as 2 forwards"
    measured = (
        "measured against plain KD: -0.08 ± 0.48 points, 5 seeds, on CIFAR-100 at 16 pixels, 640 epochs"
    )
    assert said(640)[0] == said(30)[0] == first
    assert said(640)[1].startswith(measured)
    relies = "it relies on a quarter of the images being dispensable"
    assert said(30)[1] == f"its accuracy was not measured with 500 images and 30 epochs; {relies}"


def test_a_store_of_one_s_own_that_is_not_used_is_named(teacher, tmp_path, capsys):
    words = ("distill", "--teacher", teacher, "--student", "resnet8", *PROTOCOL, *FAST, "--budget", "80%")
    more = ("--epochs", 1, "--loss.at", 1, "--answers.path", tmp_path / "mine", "--out", tmp_path / "run")
    assert call(*words, *more) == 0
    assert f"--answers.path {tmp_path / 'mine'} is not used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--budget", "1%"), "no strategy is within the budget; the cheapest is "),
        (("--budget", "50%", "--match-kd"), "give --budget or --match-kd, not both"),
        (("--budget", "half"), "--budget is a share of plain KD's cost such as 50% or 0.5"),
        (("--budget", "50%", "--method", "unix"), "leave --method or the target out"),
        (("--match-kd", "--method.keep", "0.5"), "leave --method or the target out"),
        (("--match-kd", "--data.mixes", "4"), "--data.mixes: leave it or the target out"),
        (("--match-kd", "--reference_epochs", "4"), "--reference_epochs: leave it or the target out"),
    ],
)
def test_what_a_target_cannot_go_with_is_named(more, message, teacher, tmp_path, capsys):
    words = ("distill", "--teacher", teacher, "--student", "resnet8", *PROTOCOL, *FAST)
    assert call(*words, *more, "--out", tmp_path / "run") != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_target_in_a_file_counts_as_well(teacher, tmp_path):
    file = tmp_path / "goal.yaml"
    file.write_text("budget: 70%\n")
    words = ("distill", "--teacher", teacher, "--student", "resnet8", *PROTOCOL, *FAST, "--config", file)
    assert call(*words, "--epochs", 2, "--out", tmp_path / "run") == 0
    assert read_yaml(tmp_path / "run" / "run.yaml")["method"]["name"] != "unix"


def test_losses_on_features_are_not_served_from_a_store(teacher, tmp_path):
    words = ("distill", "--teacher", teacher, "--student", "resnet8", *PROTOCOL, *FAST, "--budget", "70%")
    assert call(*words, "--epochs", 2, "--loss.at", 1, "--out", tmp_path / "run") == 0
    assert read_yaml(tmp_path / "run" / "run.yaml")["answers"]["path"] is None
