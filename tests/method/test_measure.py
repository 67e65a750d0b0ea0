"""What an own loop charges where shapes change, networks grow, states are restored and costs are not known."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unixkd import unix
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.integrations import costs
from unixkd.method.ledger import Ledger
from unixkd.method.method import Scoring
from unixkd.method.unix import kd, random


def net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)
    )


def flops_of(width: int, size: int) -> int:
    return 2 * (27 * width * size**2 + width * 5)


def images(size: int, rows: int = 8) -> Tensor:
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(rows))


def plain(state: object) -> object:
    return json.loads(json.dumps(state))


def small_then_large(distiller: Distiller) -> None:
    distiller.step(images(16)).loss.backward()
    distiller.method = random(keep=0.5)
    distiller.step(images(64)).loss.backward()


def test_each_batch_is_charged_at_its_own_size():
    """Plain KD on 16 px, then half of a batch of 64 px: (8 · 16² + 4 · 64²) / (8 · 16² + 8 · 64²) = 52.9 %."""
    distiller = Distiller(net(), net(16), kd(), batch_size=8)
    small_then_large(distiller)
    ledger = distiller.ledger
    assert ledger.flops()["teacher"] == 8 * flops_of(16, 16) + 4 * flops_of(16, 64)
    assert ledger.flops()["student_forward"] == 8 * flops_of(4, 16) + 4 * flops_of(4, 64)
    assert "52.9% of plain KD's cost" in str(ledger)
    assert ledger.relative_to_kd()["backward_2x"] == pytest.approx(72 / 136, abs=1e-3)


def test_saved_and_resumed_at_another_size_it_is_charged_alike():
    whole = Distiller(net(), net(16), kd(), batch_size=8)
    small_then_large(whole)
    first = Distiller(net(), net(16), kd(), batch_size=8)
    first.step(images(16))
    second = Distiller(net(), net(16), random(keep=0.5), batch_size=8)
    second.load_state_dict(plain(first.state_dict()))
    second.step(images(64))
    assert plain(second.state_dict()) == plain(whole.state_dict())
    third = Distiller(net(), net(16), kd(), batch_size=8)
    third.load_state_dict(plain(second.state_dict()))
    for distiller in (whole, third):
        distiller.method = kd()
        distiller.step(images(32))
    assert third.ledger.flops() == whole.ledger.flops()
    assert third.ledger.noun == "images"


def test_another_teacher_is_found_at_another_size_too():
    first = Distiller(net(), net(16), kd())
    first.step(images(16))
    other = Distiller(net(), net(8), kd())
    other.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="another teacher"):
        other.step(images(32))


def test_a_student_that_has_grown_is_measured_again():
    student = net()
    distiller = Distiller(student, net(16), kd())
    distiller.step(images(16))
    student.insert(1, nn.Conv2d(4, 4, 3, padding=1))
    distiller.step(images(16))
    grown = flops_of(4, 16) + 2 * 36 * 4 * 16**2
    assert distiller.ledger.flops()["student_forward"] == 8 * flops_of(4, 16) + 8 * grown
    assert distiller.ledger.relative_to_kd() == {"backward_1x": 1.0, "backward_2x": 1.0}
    resumed = Distiller(student, net(16), kd())
    resumed.load_state_dict(plain(distiller.state_dict()))
    with pytest.warns(match="if the student has not grown"):
        resumed.step(images(16))
    assert resumed.ledger.flops()["student_forward"] == 8 * flops_of(4, 16) + 16 * grown


def test_a_grown_student_is_measured_at_its_smaller_size_too():
    student = net()
    distiller = Distiller(student, net(16), replace(unix(), scoring=Scoring(size=0.5)))
    distiller.step(images(16))
    student.insert(1, nn.Conv2d(4, 4, 3, padding=1))
    distiller.step(images(16))
    grown = flops_of(4, 8) + 2 * 36 * 4 * 8**2
    assert distiller.ledger.flops()["scoring"] == 8 * flops_of(4, 8) + 8 * grown


def test_the_callers_figures_hold_for_every_size():
    distiller = Distiller(net(), net(16), kd(), ledger=Ledger(1, 10))
    for size in (8, 16):
        distiller.step(images(size))
    assert distiller.ledger.flops()["teacher"] == 160


def test_a_measured_ledger_of_the_callers_follows_sizes():
    student, teacher = net(), net(16)
    ledger = Ledger.of(student, teacher, (3, 16, 16))
    distiller = Distiller(student, teacher, kd(), batch_size=8, ledger=ledger)
    small_then_large(distiller)
    assert ledger.flops()["teacher"] == 8 * flops_of(16, 16) + 4 * flops_of(16, 64)


# States


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_state_that_is_loaded_is_the_state(steps):
    distiller = Distiller(net(), net(16), unix())
    for rows in (16, 8)[:steps]:
        distiller.step(images(8, rows))
    state = plain(distiller.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of changed sizes
        for size, rows in ((8, 4), (16, 8), (16, 32)):
            distiller.step(images(size, rows))
        distiller.load_state_dict(state)
        assert plain(distiller.state_dict()) == state
        other = Distiller(net(), net(16), unix())
        other.step(images(16, 4))
        other.load_state_dict(state)
    assert plain(other.state_dict()) == state
    if steps:
        assert other.batch_size == 16
        assert len(other.step(images(8, 16)).mixed) == 12


def test_a_state_of_an_older_release_is_read():
    distiller = Distiller(net(), net(16), unix())
    distiller.step(images(8))
    state = plain(distiller.state_dict())
    del state["was_short"], state["ledger"]["noun"], state["ledger"]["image_size"]
    other = Distiller(net(), net(16), unix())
    other.load_state_dict(state)
    assert str(other.ledger) == str(distiller.ledger)
    for each in (distiller, other):
        each.step(images(8))
    assert other.ledger == distiller.ledger


# Costs that are not known


class Elsewhere(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 5)


def test_a_teacher_that_cannot_be_counted_prints_no_share():
    distiller = Distiller(net(), Elsewhere(), unix())
    distiller.step(images(16))
    ledger = distiller.ledger
    assert ledger.relative_to_kd() is None
    assert ledger.flops()["teacher"] is None
    assert ledger.flops()["scoring"] == 8 * flops_of(4, 16)
    assert "the teacher's cost is not known" in str(ledger)
    assert "give the Distiller teacher_flops=" in str(ledger)
    assert "%" not in str(ledger)
    assert "cost_backward_1x" not in costs(ledger)
    with pytest.raises(UserError, match="costs cannot be worked out: the teacher's cost is not known"):
        ledger.known_flops()
    other = Distiller(net(), Elsewhere(), unix())
    other.load_state_dict(plain(distiller.state_dict()))
    other.step(images(16))
    assert other.ledger.relative_to_kd() is None


def test_its_cost_as_the_caller_says():
    told = Distiller(net(), Elsewhere(), unix(), teacher_flops=flops_of(16, 16))
    counted = Distiller(net(), net(16), unix())
    for distiller in (told, counted):
        distiller.step(images(16))
    assert told.ledger == counted.ledger


def test_a_teacher_that_is_never_asked_costs_nothing():
    ledger = Ledger(1, None)
    assert ledger.flops()["teacher"] == 0
