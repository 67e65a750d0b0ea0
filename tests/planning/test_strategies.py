"""Estimates of strategies against the ledgers of real runs, and `plan` with a target."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from running import BATCH, IMAGES, call, distilled, make_teacher, summary
from unixkd.cli import main
from unixkd.config import AnswersConfig, DataConfig, MethodConfig
from unixkd.method.batch import Batch
from unixkd.method.from_config import build_method
from unixkd.method.ledger import Ledger
from unixkd.models import ModelCard, PixelModel, create_model
from unixkd.planning import strategies as planning_strategies
from unixkd.planning.catalogue import Strategy, find_strategy, strategies
from unixkd.planning.expected import Workload
from unixkd.planning.strategies import (
    TeacherForwards,
    estimate_strategies,
    is_possible,
    run_cost,
    strategy_steps,
    teacher_forwards,
    with_all_views,
)
from unixkd.planning.timing import TEACHER_FORWARD, Pair, step_of, time_steps
from unixkd.training.run import run

EPOCHS = 4
WORKLOAD = Workload(IMAGES, BATCH, EPOCHS, views=9)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def model(name: str) -> PixelModel:
    return PixelModel(create_model(name, 10, 1), ModelCard(name, 10, 1, (0.5,), (0.5,)))


def predicted(planned: Strategy, workload: Workload) -> dict[str, float]:
    ledger = Ledger.of(model("resnet8"), model("resnet14"), (1, 8, 8))
    return run_cost(planned, teacher_forwards(planned, workload), ledger, workload, refreshes=True)


def measured(planned: Strategy, teacher: Path, folder: Path) -> Iterator[tuple[Workload, dict[str, float]]]:
    """One run, and two where they share answers: their mean cost, as `distill` counts it."""
    costs: list[dict[str, float]] = []
    for seed in range(2 if planned.stored else 1):
        config = distilled(teacher, planned.method, seed=seed, epochs=planned.epochs(EPOCHS), eval_every=9)
        config = replace(
            config,
            data=replace(config.data, views=planned.views(EPOCHS, WORKLOAD.views)),
            answers=AnswersConfig(str(folder / "answers") if planned.stored else None, fill="lazy"),
            reference_epochs=EPOCHS,
        )
        run(config, folder / str(seed))
        costs.append(summary(folder / str(seed))["cost"]["relative_to_kd"])
        mean = {name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]}
        yield replace(WORKLOAD, runs=len(costs)), mean


MIXED = "remix, 60% of the epochs"
SMALL_FIRST = Strategy("s", MethodConfig("kd", size=0.5, size_end=1.0), views_share=0.5, stored=True)
FEW_STEP = Strategy("u", MethodConfig("unix", curve="step", scoring_size=0.5), views_share=0.25, stored=True)


@pytest.mark.parametrize(
    "planned",
    [
        find_strategy("kd"),
        find_strategy("kd, 50% of the epochs"),
        find_strategy("kd, few views"),
        find_strategy("unix"),
        find_strategy("random"),
        SMALL_FIRST,
    ],
    ids=lambda planned: planned.name,
)
def test_what_is_not_left_to_chance_is_predicted_exactly(planned, teacher, tmp_path):
    for workload, cost in measured(planned, teacher, tmp_path):
        assert predicted(planned, workload) == pytest.approx(cost, rel=1e-9), workload.runs


@pytest.mark.parametrize(
    "planned",
    [
        find_strategy("kd, stored answers"),
        find_strategy(MIXED),
        find_strategy("random-epoch, few views"),
        find_strategy("infobatch, few views"),
        FEW_STEP,
    ],
    ids=lambda planned: planned.name,
)
def test_what_is_drawn_at_random_is_predicted_closely(planned, teacher, tmp_path):
    for workload, cost in measured(planned, teacher, tmp_path):
        assert predicted(planned, workload) == pytest.approx(cost, abs=0.03), workload.runs


def test_more_runs_share_the_bill():
    """KD on 1 view: one answer per image in all, so R runs of E epochs pay 1 / (R · E) of their teacher's bill."""
    few = Strategy("f", MethodConfig("kd"), views_share=0.25, stored=True)
    assert teacher_forwards(few, replace(WORKLOAD, runs=5)) == TeacherForwards(needed=4.0, asked=0.2)
    ahead = replace(WORKLOAD, ahead=True)
    stepped = Strategy("u", MethodConfig("unix", curve="step"), views_share=0.25, stored=True)
    assert teacher_forwards(stepped, ahead).asked == 1.0  # all that an epoch shows, used or not
    assert teacher_forwards(stepped, WORKLOAD).asked < 1.0


def test_of_views_without_end_a_few_are_stored_but_by_a_training_on_all():
    endless = replace(WORKLOAD, views=None)
    assert [each.name for each in strategies() if not is_possible(each, endless)] == ["kd, stored answers"]
    mixed = find_strategy(MIXED)
    assert (mixed.views(100, None), mixed.views(100, 50)) == (14, None)


def test_seconds_by_hand(monkeypatch):
    """A step takes 3 s, 2 s with its answers at hand, the teacher's forward 1 s; 100 images are 3.125 batches."""

    def seconds(pair, steps, rounds):
        return {step: [2.0 if step.stored else 3.0] * rounds for step in steps} | {
            TEACHER_FORWARD: [1.0] * rounds
        }

    monkeypatch.setattr(planning_strategies, "time_steps", seconds)
    batch = Batch(torch.rand(BATCH, 1, 8, 8), torch.zeros(BATCH, dtype=torch.int64))
    plans = [
        find_strategy("kd"),
        find_strategy("kd, 50% of the epochs"),
        Strategy("f", MethodConfig("kd"), 0.25, stored=True),
    ]
    pair = Pair(model("resnet14"), model("resnet8"), batch)
    results = estimate_strategies(plans, pair, WORKLOAD, rounds=2)
    # 4 epochs of 3.125 steps; the few views' one is asked about in the first of 4 epochs
    assert [each.seconds for each in results] == pytest.approx([37.5, 18.75, 25.0 + 3.125])
    assert [each.relative_seconds for each in results] == pytest.approx([1.0, 0.5, 0.75])


def test_steps_that_take_the_same_time_are_timed_once():
    plain, stale, few = (
        strategy_steps(find_strategy(name), WORKLOAD, (8, 8))
        for name in ("kd", "stale, few views", "kd, few views")
    )
    assert stale[0][0] == few[0][0] != plain[0][0]
    assert (plain[0][1], stale[0][1]) == (12.5, 0.75 * 12.5)
    small = strategy_steps(SMALL_FIRST, WORKLOAD, (8, 8))
    assert [step.method.size for step, _ in small] == [
        0.5,
        0.5,
        0.75,
        1.0,
    ]  # 4, 5, 6 and 7 pixels in steps of 2


def test_a_step_with_stored_answers_forwards_mixed_rows_only():
    """unix with a step curve: 32 rows, 24 kept, 16 of them pure; the teacher sees 8, and 24 where nothing is stored."""
    teacher, student, seen = model("resnet14"), model("resnet8").train(), []
    teacher.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    batch = Batch(torch.rand(32, 1, 8, 8), torch.zeros(32, dtype=torch.int64))
    method = build_method(MethodConfig("unix", curve="step"))
    for stored, rows in ((True, 8), (False, 24)):
        seen.clear()
        steps = [TEACHER_FORWARD, step_of(method, (8, 8), stored=stored)]
        time_steps(Pair(teacher, student, batch), steps, rounds=1)
        answers = [32] * stored
        assert sorted(seen) == sorted([*answers, 32, 32, rows, rows])  # the answers, then two rounds of both
    assert all(p.grad is None for p in student.parameters())


# The command

PAIR = ("plan", "--teacher", "resnet14", "--student", "resnet8", "--data", "digits", "--epochs", "20")


def printed(capsys, *words: str) -> tuple[str, list[str]]:
    """What `plan` says, and the words of the command that it ends with."""
    assert call(*PAIR, *words) == 0
    text = capsys.readouterr().out
    return text, shlex.split(text.splitlines()[-1])


@pytest.mark.parametrize("budget", ["75%", "37%"])
def test_the_printed_command_runs_what_was_predicted(budget, capsys):
    """With all epochs, and, where nothing else is cheap enough, with fewer."""
    text, words = printed(capsys, "--budget", budget, "--rounds", "0", "--runs", "3", "--data.limit", "500")
    assert words[:2] == ["unixkd", "distill"]
    options = main.parse("distill", words[2:])
    row = next(line for line in text.splitlines() if line.strip().startswith("1 "))
    chosen = next(
        each for each in sorted(strategies(), key=lambda s: -len(s.name)) if f"  {each.name}  " in f"{row}  "
    )
    assert (options.teacher.name, options.student.name) == ("resnet14", "resnet8")
    assert options.method == chosen.method
    assert options.data == DataConfig("digits", limit=500, views=chosen.views(20, 9))
    assert options.answers == AnswersConfig("answers" if chosen.stored else None)
    fewer = chosen.epochs_share < 1
    assert fewer == (budget == "37%")
    assert (options.train.epochs, options.reference_epochs) == (chosen.epochs(20), 20 if fewer else None)
    workload = Workload(500, 64, 20, runs=3, views=9)
    assert f"{100 * predicted(chosen, workload)['backward_2x']:.1f}" in row.split()


def test_to_match_kd_stored_answers_need_no_evidence(capsys):
    text, words = printed(capsys, "--match-kd", "--rounds", "1", "--batch_size", "32", "--runs", "2")
    assert "The first: kd, stored answers." in text
    assert "1,438 images × 9 views × 10 classes" in text
    assert words[-2:] == ["--train.batch_size", "32"]
    options = main.parse("distill", words[2:])
    assert (options.method, options.data.views, options.answers.path) == (MethodConfig("kd"), None, "answers")


def test_fewer_epochs_are_compared_with_those_planned():
    from unixkd.cli.plan_ranking import command_words

    options = main.parse("plan", [*PAIR[1:], "--recipe", "cifar100/vgg13-vgg8"])
    words = command_words(options, find_strategy("kd, 75% of the epochs"), options.data, WORKLOAD)
    parsed = main.parse("distill", words[2:])
    assert (parsed.train.epochs, parsed.reference_epochs) == (3, 4)
    assert parsed.train.schedule == "multistep"  # the recipe's
    assert parsed.data.name == "digits"


def test_a_batch_size_that_differs_from_the_recipes_is_in_the_command():
    """The recipe's is 256, the command line's default 64."""
    from unixkd.cli.plan_ranking import command_words

    recipe = ("--recipe", "imagenet/resnet34-resnet18")
    options = main.parse("plan", [*PAIR[1:], *recipe, "--batch_size", "64"])
    words = command_words(options, find_strategy("kd"), options.data, replace(WORKLOAD, batch_size=64))
    assert main.parse("distill", words[2:]).train.batch_size == 64


def test_a_budget_that_nothing_fits(capsys):
    assert call(*PAIR, "--budget", "1%", "--rounds", "0") == 0
    text = capsys.readouterr().out
    assert "No strategy is within the budget; the cheapest is" in text
    assert "unixkd distill" not in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--budget", "50%", "--match-kd"), "not both"),
        (("--budget", "120%"), "--budget is a share"),
        (("--budget", "half"), "--budget is a share"),
        (("--match-kd", "--method", "unix"), "--method"),
        (("--match-kd", "--train.epochs", "0"), "epochs"),
        (("--match-kd", "--runs", "0"), "runs"),
    ],
)
def test_what_a_target_does_not_allow(words, told, capsys):
    assert call(*PAIR, *words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["kd, few views", "kd, few mixes", "stale, few views", "kd, few views, small first"]
)
def test_a_budget_buys_as_many_views_as_it_can(name):
    pair = Pair.on_random_pixels(model("resnet14"), model("resnet8"), rows=4, size=8)
    workload = replace(WORKLOAD, epochs=64, views=None)

    def cost(views: float) -> float:
        return predicted(replace(planned, views_share=views / 64), workload)["backward_2x"]

    planned = find_strategy(name)
    least = planned.views(64, None)
    budget = cost(least + 7) + 1e-9
    (bought,) = with_all_views([planned], budget, pair, workload)
    assert bought.views(64, None) == least + 7
    assert cost(least + 7) <= budget < cost(least + 8)
    assert with_all_views([planned], cost(least) / 2, pair, workload) == [planned]
    (all_of_them,) = with_all_views([planned], 1e9, pair, workload)
    assert all_of_them.views(64, None) == 64


def test_a_budget_leaves_strategies_without_a_few_views_alone():
    pair = Pair.on_random_pixels(model("resnet14"), model("resnet8"), rows=4, size=8)
    others = [each for each in strategies() if each.views_share is None]
    assert with_all_views(others, 1.0, pair, WORKLOAD) == others
