"""Forecasts of ways to distil against the ledgers of real runs, and `plan` with a target."""

from __future__ import annotations

import shlex
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
from unixkd.planning import strategies, timing
from unixkd.planning.catalogue import Strategy, way, ways
from unixkd.planning.expected import phases
from unixkd.planning.strategies import Setting, make_forecasts, questions, run_cost
from unixkd.training.run import run

EPOCHS = 4
SETTING = Setting(IMAGES, BATCH, EPOCHS, views=9)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def model(name: str) -> PixelModel:
    return PixelModel(create_model(name, 10, 1), ModelCard(name, 10, 1, (0.5,), (0.5,)))


def predicted(way: Strategy, setting: Setting) -> dict[str, float]:
    ledger = Ledger.of(model("resnet8"), model("resnet14"), (1, 8, 8))
    return run_cost(way, questions(way, setting), ledger, setting, refreshes=True)


def measured(way: Strategy, teacher: Path, folder: Path, setting: Setting) -> dict[str, float]:
    """The mean cost of runs that share their answers, as `distill` counts it."""
    costs = []
    for seed in range(setting.runs):
        config = distilled(teacher, way.method, seed=seed, epochs=way.epochs(EPOCHS), eval_every=9)
        config = replace(
            config,
            data=replace(config.data, views=way.views(EPOCHS, setting.views)),
            answers=AnswersConfig(str(folder / "answers") if way.stored else None, fill="lazy"),
            reference_epochs=EPOCHS,
        )
        run(config, folder / str(seed))
        costs.append(summary(folder / str(seed))["cost"]["relative_to_kd"])
    return {name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]}


MIXED = "remix, 60% of the epochs"
SMALL_FIRST = Strategy("s", MethodConfig("kd", size=0.5, size_end=1.0), views_share=0.5, stored=True)
FEW_STEP = Strategy("u", MethodConfig("unix", curve="step", scoring_size=0.5), views_share=0.25, stored=True)


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize(
    "planned",
    [way("kd"), way("kd, 50% of the epochs"), way("kd, few views"), way("unix"), way("random"), SMALL_FIRST],
    ids=lambda planned: planned.name,
)
def test_what_is_not_left_to_chance_is_predicted_exactly(planned, runs, teacher, tmp_path):
    setting = replace(SETTING, runs=runs)
    assert predicted(planned, setting) == pytest.approx(
        measured(planned, teacher, tmp_path, setting), rel=1e-9
    )


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize(
    "planned",
    [
        way("kd, stored answers"),
        way(MIXED),
        way("random-epoch, few views"),
        way("infobatch, few views"),
        FEW_STEP,
    ],
    ids=lambda planned: planned.name,
)
def test_what_is_drawn_at_random_is_predicted_closely(planned, runs, teacher, tmp_path):
    setting = replace(SETTING, runs=runs)
    assert predicted(planned, setting) == pytest.approx(
        measured(planned, teacher, tmp_path, setting), abs=0.03
    )


def test_more_runs_share_the_bill():
    """KD on 1 view: one answer per image in all, so R runs of E epochs pay 1 / (R · E) of their teacher's bill."""
    few = Strategy("f", MethodConfig("kd"), views_share=0.25, stored=True)
    assert questions(few, replace(SETTING, runs=5)) == strategies.TeacherForwards(visits=4.0, forwarded=0.2)
    ahead = replace(SETTING, ahead=True)
    stepped = Strategy("u", MethodConfig("unix", curve="step"), views_share=0.25, stored=True)
    assert questions(stepped, ahead).forwarded == 1.0  # all that an epoch shows, used or not
    assert questions(stepped, SETTING).forwarded < 1.0


def test_views_without_end_cannot_be_stored_unless_few():
    endless = replace(SETTING, views=None)
    assert [each.name for each in ways() if not endless.allows(each)] == ["kd, stored answers", MIXED]


def test_seconds_by_hand(monkeypatch):
    """A step takes 3 s, 2 s with its answers at hand, the teacher's forward 1 s; 100 images are 3.125 batches."""

    def seconds(teacher, student, steps, batch, rounds):
        return {step: [2.0 if step.answered else 3.0] * rounds for step in steps} | {
            timing.TEACHER: [1.0] * rounds
        }

    monkeypatch.setattr(strategies, "step_seconds", seconds)
    batch = Batch(torch.rand(BATCH, 1, 8, 8), torch.zeros(BATCH, dtype=torch.int64))
    plans = [way("kd"), way("kd, 50% of the epochs"), Strategy("f", MethodConfig("kd"), 0.25, stored=True)]
    results = make_forecasts(plans, model("resnet14"), model("resnet8"), batch, SETTING, rounds=2)
    # 4 epochs of 3.125 steps; the few views' one is asked about in the first of 4 epochs
    assert [each.seconds for each in results] == pytest.approx([37.5, 18.75, 25.0 + 3.125])
    assert [each.relative_seconds for each in results] == pytest.approx([1.0, 0.5, 0.75])


def test_steps_that_take_the_same_time_are_timed_once():
    plain, stale, few = (
        strategies.way_steps(way(name), SETTING, (8, 8))
        for name in ("kd", "stale, few views", "kd, few views")
    )
    assert stale[0][0] == few[0][0] != plain[0][0]
    assert (plain[0][1], stale[0][1]) == (12.5, 0.75 * 12.5)
    small = strategies.way_steps(SMALL_FIRST, SETTING, (8, 8))
    assert [step.method.size for step, _ in small] == [
        0.5,
        0.5,
        0.75,
        1.0,
    ]  # 4, 5, 6 and 7 pixels in steps of 2


def test_an_answered_step_forwards_mixed_rows_only():
    """unix with a step curve: 32 rows, 24 kept, 16 of them pure; the teacher sees 8, and 24 where nothing is stored."""
    teacher, student, seen = model("resnet14"), model("resnet8").train(), []
    teacher.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    batch = Batch(torch.rand(32, 1, 8, 8), torch.zeros(32, dtype=torch.int64))
    (phase,) = phases(build_method(MethodConfig("unix", curve="step")), 2)
    for answered, rows in ((True, 8), (False, 24)):
        seen.clear()
        step = timing.step_of(phase, (8, 8), answered=answered)
        timing.step_seconds(teacher, student, [step], batch, rounds=1)
        assert sorted(seen) == sorted([32, 32, 32, rows, rows])  # the answers, then two rounds of both
    assert all(p.grad is None for p in student.parameters())


# The command

PAIR = ("plan", "--teacher", "resnet14", "--student", "resnet8", "--data", "digits", "--epochs", "20")


def printed(capsys, *words: str) -> tuple[str, list[str]]:
    """What `plan` says, and the words of the command that it ends with."""
    assert call(*PAIR, *words) == 0
    text = capsys.readouterr().out
    return text, shlex.split(text.splitlines()[-1])


def test_the_printed_command_runs_what_was_predicted(capsys):
    text, words = printed(capsys, "--budget", "60%", "--rounds", "0", "--runs", "3", "--data.limit", "500")
    assert words[:2] == ["unixkd", "distill"]
    options = main.parse("distill", words[2:])
    row = next(line for line in text.splitlines() if line.strip().startswith("1 "))
    chosen = next(
        each for each in sorted(ways(), key=lambda w: -len(w.name)) if f"  {each.name}  " in f"{row}  "
    )
    assert (options.teacher.name, options.student.name) == ("resnet14", "resnet8")
    assert options.method == chosen.method
    assert options.data == DataConfig("digits", limit=500, views=chosen.views(20, 9))
    assert options.answers == AnswersConfig("answers")
    assert (options.train.epochs, options.reference_epochs) == (chosen.epochs(20), 20)
    setting = Setting(500, 64, 20, runs=3, views=9)
    assert f"{100 * predicted(chosen, setting)['backward_2x']:.1f}" in row.split()


def test_to_match_kd_stored_answers_need_no_evidence(capsys):
    text, words = printed(capsys, "--match-kd", "--rounds", "1", "--batch_size", "32", "--runs", "2")
    assert "The first: kd, stored answers." in text
    assert "1,438 images × 9 views × 10 classes" in text
    assert words[-2:] == ["--train.batch_size", "32"]
    options = main.parse("distill", words[2:])
    assert (options.method, options.data.views, options.answers.path) == (MethodConfig("kd"), None, "answers")


def test_fewer_epochs_are_compared_with_those_planned():
    from unixkd.cli.plan import command_words

    options = main.parse("plan", [*PAIR[1:], "--recipe", "cifar100/vgg13-vgg8"])
    words = command_words(options, way("kd, 75% of the epochs"), options.data, SETTING)
    parsed = main.parse("distill", words[2:])
    assert (parsed.train.epochs, parsed.reference_epochs) == (3, 4)
    assert parsed.train.schedule == "multistep"  # the recipe's
    assert parsed.data.name == "digits"


def test_a_budget_that_nothing_fits(capsys):
    assert call(*PAIR, "--budget", "1%", "--rounds", "0") == 0
    text = capsys.readouterr().out
    assert "No way is within the budget; the cheapest is" in text
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
