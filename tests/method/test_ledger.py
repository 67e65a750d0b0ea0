"""Cost: the published figures, the ledger by hand, and FLOPs counted over whole steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slow import TinyNet, images_of
from unixkd.cli.recipes import PAIRS
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.flops import forward_flops
from unixkd.method.ledger import CONVENTIONS, ImageCounts, Ledger, break_even_ratio, relative_cost
from unixkd.method.method import StepCounts
from unixkd.method.unix import METHODS, hard, kd, random, unix
from unixkd.models import create_model

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "method.json").read_text())["ledger"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_published_computation_of_each_pair(pair):
    """k/N + F_s/(F_t + 2 F_s) from the published ratio gives the published figure to 0.025 points."""
    ours = 100 * relative_cost(48 / 64, pair.ratio, backward=1)
    assert ours == pytest.approx(pair.computation, abs=0.025)


def epoch(ledger: Ledger) -> Ledger:
    """One epoch of the oracle's data: full batches and a short last one."""
    method = unix(ORACLE["k"] / ORACLE["batch"])
    full, rest = divmod(ORACLE["images"], ORACLE["batch"])
    for images in [ORACLE["batch"]] * full + [rest]:
        ledger.charge(method.counts(images, ORACLE["batch"]))
    return ledger


def test_an_epoch_of_the_ledger_matches_the_oracle():
    ledger = epoch(Ledger(student_flops=400, teacher_flops=1300))  # ratio 3.25
    assert ledger.seen == ORACLE["images"]
    for name, count in ORACLE["per_epoch"].items():
        assert getattr(ledger.images, name) == count, name
    expected = ORACLE["relative_to_kd_at_ratio_3.25"]
    relative = ledger.relative_to_kd()
    assert set(relative) == set(CONVENTIONS) == {"backward_1x", "backward_2x"}
    for convention, value in relative.items():
        assert value == pytest.approx(expected[convention], abs=1e-8)
    assert relative_cost(0.75, 3.25, 1) == pytest.approx(expected["paper_formula_k_over_N"], abs=1e-8)


# Arithmetic


def test_relative_cost_by_hand():
    assert relative_cost(0.75, 2.0, 1) == 0.75 + 1 / 4
    assert relative_cost(0.75, 1.0, 2) == 0.75 + 1 / 4
    assert relative_cost(0.5, 8.0, 1, scored=False) == 0.5


@pytest.mark.parametrize(
    ("method", "backward_1x", "backward_2x"),
    [
        (unix(), 2.0, 1.0),  # 1/4 saved = one student forward of four
        (unix(keep=0.5), 0.0, 0.0),  # 1/2 saved: 1/(1 - 0.5) - 2 = 0, always cheaper
        (unix(keep=0.9), 8.0, 7.0),
        (hard(keep=1.0), float("inf"), float("inf")),
        (kd(), 0.0, 0.0),
        (random(), 0.0, 0.0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_break_even_by_hand(method, backward_1x, backward_2x):
    assert break_even_ratio(method, 1) == pytest.approx(backward_1x)
    assert break_even_ratio(method, 2) == pytest.approx(backward_2x)


@pytest.mark.parametrize("backward", [1, 2])
@pytest.mark.parametrize("keep", [0.6, 0.7, 0.75, 0.9])
def test_the_method_costs_what_kd_costs_at_its_break_even_ratio(keep, backward):
    ratio = break_even_ratio(unix(keep), backward)
    if ratio > 0:
        assert relative_cost(keep, ratio, backward) == pytest.approx(1.0)
    assert relative_cost(keep, ratio + 1, backward) < 1.0


def test_smaller_images_want_a_ledger_that_knows_their_cost():
    small = StepCounts(4, 0, 4, 4, trained_size=(4, 4))
    with pytest.raises(UserError, match=r"make it with Ledger\.of"):
        Ledger(10, 100).charge(small)
    ledger = Ledger(10, 100, student_at={(4, 4): 3}.__getitem__)
    ledger.charge(small)
    ledger.charge_scoring(2, (4, 4))
    assert ledger.flops()["student_forward"] == 4 * 3
    assert ledger.flops()["scoring"] == 2 * 3
    restored = Ledger(10, 100)
    restored.load_state_dict(ledger.state_dict())
    assert restored.flops() == ledger.flops()


def test_a_state_from_before_images_could_be_smaller():
    ledger = Ledger(10, 100)
    ledger.charge(StepCounts(4, 4, 3, 3))
    state = ledger.state_dict()
    del state["spent"]
    restored = Ledger(10, 100)
    restored.load_state_dict(state)
    assert restored.flops() == ledger.flops()


def test_charges_by_hand():
    ledger = Ledger(student_flops=10, teacher_flops=100)
    ledger.charge(StepCounts(seen=8, scored=8, teacher_forwarded=6, trained=6))
    ledger.charge(StepCounts(seen=2, scored=2, teacher_forwarded=2, trained=2))
    ledger.charge_evaluation(5)
    ledger.charge_evaluation(3, teacher=True)
    assert ledger.images == ImageCounts(
        scored=10, teacher_forwarded=8, teacher_cached=0, trained=8, evaluated=5
    )
    assert ledger.flops() == {
        "scoring": 100,
        "teacher": 800,
        "student_forward": 80,
        "evaluation": 50 + 300,
        "refresh": 0,
    }
    assert ledger.training_flops(1) == 100 + 800 + 160  # evaluation stands beside, not inside
    assert ledger.training_flops(2) == 100 + 800 + 240
    assert ledger.relative_to_kd() == {"backward_1x": 1060 / 1200, "backward_2x": 1140 / 1300}
    assert ledger.relative_to_kd(20) == {"backward_1x": 1060 / 2400, "backward_2x": 1140 / 2600}


def test_plain_kd_costs_exactly_itself():
    ledger = Ledger(student_flops=10, teacher_flops=100)
    for images in (64, 64, 16):
        ledger.charge(kd().counts(images, 64))
    assert ledger.relative_to_kd() == {"backward_1x": 1.0, "backward_2x": 1.0}


def test_an_unused_ledger():
    assert Ledger(1, 2).relative_to_kd() == {"backward_1x": 0.0, "backward_2x": 0.0}


def test_the_summary_names_every_count():
    text = str(epoch(Ledger(400, 1300)))
    for figure in ("50,000 images seen", "50,000 scored", "37,504 asked", "37,504 trained", "94.1%", "91.0%"):
        assert figure in text


def test_ledger_state_survives_json():
    ledger = epoch(Ledger(400, 1300))
    ledger.charge_evaluation(7)
    ledger.charge_evaluation(9, teacher=True)
    restored = Ledger(400, 1300)
    restored.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert restored == ledger
    assert restored.flops() == ledger.flops()


def test_a_ledger_of_other_networks_is_refused():
    with pytest.raises(UserError, match="teacher_flops was 1300 and is now 1400"):
        Ledger(400, 1400).load_state_dict(Ledger(400, 1300).state_dict())


# FLOPs


@pytest.mark.parametrize("name", METHODS)
def test_forward_flops_of_a_run_equal_the_ledger(name):
    """Scoring, teacher and student forwards of four steps, the last one short, counted op by op."""
    student, teacher = TinyNet(seed=1), TinyNet(width=6, seed=2)
    method = replace(METHODS[name](), choice=None, mixes_answers=False)  # nothing is stored here
    distiller = Distiller(student, teacher if method.teacher else None, method, batch_size=8)
    ledger = distiller.measure((3, 8, 8))
    labels = torch.zeros(8, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        for n in (8, 8, 8, 3):
            distiller.step(images_of(n), labels[:n])
    flops = ledger.flops()
    assert counter.get_total_flops() == flops["scoring"] + flops["teacher"] + flops["student_forward"]


FIRST = {"resnet8": "conv1", "vgg8": "block0.0"}


@pytest.mark.parametrize("name", FIRST)
def test_flops_of_whole_steps_equal_the_second_convention(name):
    """A backward is two forwards, but for the first convolution, which has no image to give a gradient to."""
    student, teacher = create_model(name, 10), create_model("resnet14", 10)
    distiller = Distiller(student, teacher, unix(), batch_size=4)
    ledger = distiller.measure((3, 32, 32))
    with FlopCounterMode(display=False) as counter:
        for n in (4, 2):
            distiller.step(images_of(n, size=32)).loss.backward()
    assert ledger.images == ImageCounts(scored=6, teacher_forwarded=5, trained=5)
    first = forward_flops(student.get_submodule(FIRST[name]), (3, 32, 32))
    assert counter.get_total_flops() == ledger.training_flops(backward=2) - 5 * first


def test_own_loop_measures_at_the_first_step():
    student, teacher = TinyNet(seed=1), nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    distiller = Distiller(student, teacher)
    assert distiller.ledger.student_flops == 0
    distiller.step(images_of(8))
    assert distiller.ledger.student_flops == forward_flops(student, (3, 8, 8))
    assert distiller.ledger.teacher_flops == 2 * 192 * 5


def test_a_ledger_of_ones_own_goes_on_being_charged():
    ledger = Ledger(student_flops=1, teacher_flops=10)
    ledger.charge(kd().counts(8, 8))
    distiller = Distiller(TinyNet(), TinyNet(), unix(), ledger=ledger)
    distiller.step(images_of(8))
    assert distiller.ledger is ledger
    assert ledger.images == ImageCounts(scored=8, teacher_forwarded=14, trained=14)
