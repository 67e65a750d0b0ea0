"""Scores and ranking: the oracle's values, extremes, and what must hold for any logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unixkd.errors import UserError
from unixkd.method.scoring import entropy, least_confidence, margin, rank

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "method.json").read_text())["scores"]
SCORERS = {"entropy": entropy, "margin": margin, "least_confidence": least_confidence}
LIMITS = {
    "entropy": lambda c: (0, math.log(c)),
    "margin": lambda c: (-1, 0),
    "least_confidence": lambda c: (0, 1 - 1 / c),
}

rows = st.integers(2, 6).flatmap(
    lambda c: st.lists(st.lists(st.floats(-100, 100), min_size=c, max_size=c), min_size=1, max_size=5)
)


@pytest.mark.parametrize("name", SCORERS)
def test_scores_match_the_oracle(name):
    scores = SCORERS[name](torch.tensor(ORACLE["logits"], dtype=torch.float64))
    torch.testing.assert_close(scores, torch.tensor(ORACLE[name], dtype=torch.float64), rtol=0, atol=1e-9)


def test_ranking_matches_the_oracle():
    scores = entropy(torch.tensor(ORACLE["logits"]))
    assert rank(scores).tolist() == ORACLE["rank_by_entropy"]


def test_ties_go_to_the_lower_position():
    assert rank(torch.zeros(7)).tolist() == list(range(7))
    assert rank(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0])).tolist() == [1, 3, 0, 2, 4]


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("size", [60.0, 1e4])
def test_extreme_logits_are_certain(name, size):
    scores = SCORERS[name](torch.tensor([[size, -size, 0.0], [-size, size, -size]]))
    certain = {"entropy": 0.0, "margin": -1.0, "least_confidence": 0.0}[name]
    torch.testing.assert_close(scores, torch.full((2,), certain))


@pytest.mark.parametrize("name", SCORERS)
def test_sixteen_bit_logits_are_scored_in_float32(name):
    logits = torch.tensor([[1.5, -0.25, 0.75], [0.5, 0.5, 0.5]])  # exact in bfloat16
    scores = SCORERS[name](logits.bfloat16())
    assert scores.dtype == torch.float32
    assert torch.equal(scores, SCORERS[name](logits))


def test_margin_of_one_class():
    with pytest.raises(UserError, match="at least 2 classes, the student has 1"):
        margin(torch.zeros(3, 1))


@pytest.mark.parametrize("name", SCORERS)
@given(values=rows, shift=st.floats(-50, 50))
def test_scores_lie_in_their_range_and_ignore_a_shift(name, values, shift):
    logits = torch.tensor(values, dtype=torch.float64)
    scores = SCORERS[name](logits)
    low, high = LIMITS[name](logits.shape[1])
    assert (scores >= low - 1e-12).all()
    assert (scores <= high + 1e-12).all()
    torch.testing.assert_close(SCORERS[name](logits + shift), scores, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SCORERS)
@given(values=rows, order=st.randoms(use_true_random=False))
def test_scores_ignore_the_order_of_classes(name, values, order):
    classes = list(range(len(values[0])))
    order.shuffle(classes)
    logits = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(SCORERS[name](logits[:, classes]), SCORERS[name](logits), rtol=0, atol=1e-12)


@given(values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=70))
def test_ranking_is_a_permutation_sorted_by_score_with_ties_by_index(values):
    ranking = rank(torch.tensor(values)).tolist()
    assert ranking == sorted(range(len(values)), key=lambda i: (-values[i], i))
