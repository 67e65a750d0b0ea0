"""Strategies: evidence, order for a target, and how many answers a shared store is asked for."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from evidence_queue import load, points
from evidence_report import paired
from unixkd.config import MethodConfig
from unixkd.data.views import view_codes
from unixkd.errors import UsageError
from unixkd.method.from_config import build_method
from unixkd.planning.catalogue import (
    Budget,
    Evidence,
    MatchKD,
    Strategy,
    find_strategy,
    parse_target,
    strategies,
)
from unixkd.planning.expected import distinct_answers


def test_the_lower_bound_by_hand():
    """Student's t at 90 %, one-sided, with 4 degrees of freedom is 1.533: −0.1 − 1.533 · 0.5 / √5 = −0.4428."""
    assert Evidence(-0.1, 0.5, 5, 500, "").lower_bound == pytest.approx(-0.4428, abs=1e-4)
    assert Evidence(0.3, 0.0, 1, 500, "").lower_bound == -math.inf


@pytest.mark.parametrize(
    ("difference", "sd", "n", "matches"),
    [
        (0.5, 0.1, 5, True),
        (-0.2, 0.0, 2, True),
        (-0.21, 0.0, 5, False),
        (0.0, 1.0, 4, False),
        (1.0, 0.1, 1, False),
    ],
)
def test_a_match_needs_a_mean_and_a_bound(difference, sd, n, matches):
    assert Evidence(difference, sd, n, 500, "").matches is matches


def test_the_catalogue_is_whole():
    catalogue = strategies()
    names = [each.name for each in catalogue]
    assert len(set(names)) == len(names)
    assert all(each.evidence is None for each in catalogue if each.exact)
    assert all(each.relies_on for each in catalogue[1:])
    for each in catalogue:
        build_method(each.method)


def test_evidence_from_few_images_does_not_count_for_many():
    measured = Evidence(1.0, 0.1, 5, 500, "here")
    unix = Strategy("unix", MethodConfig("unix"), evidence=measured)
    for images in (1, 500, 1000):
        same = unix.for_images(images)
        assert (same.evidence, same.elsewhere, same.matches) == (measured, None, True)
    many = unix.for_images(1001)
    assert (many.evidence, many.elsewhere, many.matches) == (None, measured, None)
    assert many.for_images(500) == unix
    (listed,) = (each for each in strategies(1001) if each.name == "unix")
    assert (listed.evidence, listed.elsewhere) == (None, find_strategy("unix").evidence)


def test_epochs_and_views_of_a_strategy():
    shorter = Strategy("a", MethodConfig("kd"), views_share=0.14, epochs_share=0.75)
    assert [shorter.epochs(n) for n in (240, 1)] == [180, 1]
    assert [shorter.views(n, 162) for n in (240, 128, 1)] == [34, 18, 1]
    assert (shorter.views(128, 18), shorter.views(128, None)) == (None, 18)


def named(name: str, difference: float | None = None, *, exact: bool = False) -> Strategy:
    evidence = None if difference is None else Evidence(difference, 0.1, 9, 500, "here")
    return Strategy(name, MethodConfig("kd"), exact=exact, evidence=evidence)


SOME = [named("kd", exact=True), named("good", 0.1), named("bad", -2.0), named("open"), named("cheap")]
COST = {"kd": 1.0, "good": 0.5, "bad": 0.2, "open": 0.4, "cheap": 0.3}


def order(target) -> list[tuple[bool, list[str]]]:
    return [(group.eligible, [each.name for each in group.strategies]) for group in target.groups(SOME, COST)]


def test_a_match_is_known_and_then_cheap():
    assert order(MatchKD()) == [(True, ["good", "kd"]), (False, ["cheap", "open"]), (False, ["bad"])]


def test_evidence_of_a_long_training_does_not_count_for_a_short_one():
    counts = [each.name for each in strategies(500, 320) if each.evidence]
    assert counts == [each.name for each in strategies(500) if each.evidence]
    assert [each.name for each in strategies(500, 319) if each.evidence] == []
    assert [each.name for each in strategies(500, 319) if each.elsewhere] == counts


def test_within_a_budget_accuracy_counts_before_cost():
    assert order(Budget(0.5)) == [(True, ["good", "bad", "open", "cheap"]), (False, ["kd"])]
    assert order(Budget(1.0)) == [(True, ["good", "kd", "bad", "open", "cheap"])]
    assert order(Budget(0.25)) == [(True, ["bad"]), (False, ["cheap", "open", "good", "kd"])]


def test_what_trains_as_plain_kd_does_comes_before_what_takes_more_of_the_budget():
    plain = Strategy("plain", MethodConfig("kd"), 0.3, stored=True)
    dearer = Strategy("dearer", MethodConfig("stale"), 0.3, stored=True)
    (group,) = Budget(0.5).groups([dearer, plain], {"plain": 0.3, "dearer": 0.4})
    assert group.strategies == [plain, dearer]


@pytest.mark.parametrize("text", ["50%", "0.5", " 50% ", "5e-1"])
def test_a_budget_is_a_share(text):
    assert parse_target(text, False) == Budget(0.5)


@pytest.mark.parametrize("text", ["0", "-1%", "101%", "50", "nan", "half", "", "%", "inf"])
def test_what_is_no_budget(text):
    with pytest.raises(UsageError, match="--budget is a share"):
        parse_target(text, False)


def test_one_target_or_none():
    assert parse_target(None, False) is None
    assert parse_target(None, True) == MatchKD()
    with pytest.raises(UsageError, match="not both"):
        parse_target("50%", True)


def expected_by_enumeration(asked, views, runs, in_turn) -> float:
    """Mean over every sequence of shown views of the chance that each (view) was asked about, the slow way."""
    epochs = len(asked)
    sequences = (
        [[epoch % views for epoch in range(epochs)]]
        if in_turn
        else list(itertools.product(range(views), repeat=epochs))
    )
    total = 0.0
    for shown in sequences:
        for view in range(views):
            asks = [asked[epoch] for epoch in range(epochs) if shown[epoch] == view for _ in range(runs)]
            total += 1 - math.prod(1 - share for share in asks)
    return total / len(sequences)


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize(("views", "runs"), [(2, 1), (3, 2), (5, 1)])
def test_distinct_answers_are_those_of_every_sequence_of_views(views, runs, in_turn):
    asked = [1.0, 0.75, 0.5, 0.5]
    expected = expected_by_enumeration(asked, views, runs, in_turn)
    assert distinct_answers(asked, views, runs, in_turn=in_turn) == pytest.approx(expected)


def test_distinct_answers_are_those_of_the_drawn_views():
    """9 views of 5,000 images in 6 epochs; the sd of the mean is below 0.02."""
    shown = torch.stack([view_codes(0, epoch, torch.arange(5000), 9) for epoch in range(6)])
    distinct = sum(len(column.unique()) for column in shown.T) / 5000
    assert distinct_answers([1.0] * 6, 9, 3, in_turn=False) == pytest.approx(distinct, abs=0.05)


CONTENDERS = {
    "remix, 60% of the epochs": "mixup, views, mixed answers, epochs x0.6",
    "mixup, 33% of the epochs": "mixup, epochs x0.33",
    "kd, 50% of the epochs": "kd, epochs x0.5",
    "random": "random",
    "unix": "unix",
}
"""The contender of benchmarks/accuracy/evidence.py that each strategy with evidence is."""


def test_every_strategy_with_evidence_was_a_contender():
    assert {each.name for each in strategies() if each.evidence} == set(CONTENDERS)


@pytest.mark.parametrize("name", CONTENDERS)
def test_evidence_is_what_the_confirmation_found_with_the_worse_pair(name):
    evidence = find_strategy(name).evidence
    against_kd = []
    for pair in ("vgg13-vgg8", "wrn_40_2-wrn_16_1"):
        runs = load(Path(__file__).parents[2] / "benchmarks" / "results" / "pareto" / pair / "confirm")
        against_kd.append(paired(points(runs[CONTENDERS[name]]), points(runs["kd"])))
    worse = min(against_kd, key=lambda one: one["mean"])
    assert evidence.difference == pytest.approx(worse["mean"], abs=0.005)
    assert evidence.sd == pytest.approx(worse["sd"], abs=0.005)
    assert {one["n"] for one in against_kd} == {evidence.n}
