"""Methods as values: what they are, what one step of them costs, what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unixkd.config import MethodConfig
from unixkd.errors import UserError
from unixkd.method.from_config import build_method
from unixkd.method.method import Method, Scoring, StepCounts
from unixkd.method.mixing import SigmoidCurve, full_curve
from unixkd.method.scoring import entropy, margin
from unixkd.method.unix import METHODS, kd, mixup, random, remix, student_alone, unix, unix_random

FULL, SHORT = 64, 16  # 50,000 images leave a last batch of 16

COUNTS = {
    "kd": ((64, 0, 64, 64), (16, 0, 16, 16)),
    "unix": ((64, 64, 48, 48), (16, 16, 16, 16)),
    "unix-random": ((64, 64, 48, 48), (16, 16, 16, 16)),
    "random": ((64, 0, 48, 48), (16, 0, 16, 16)),
    "hard": ((64, 64, 48, 48), (16, 16, 16, 16)),
    "mixup": ((64, 0, 64, 64), (16, 0, 16, 16)),
    "remix": ((64, 0, 64, 64), (16, 0, 16, 16)),
    "selective-backprop": ((64, 64, 48, 48), (16, 16, 16, 16)),
    "random-epoch": ((64, 0, 64, 64), (16, 0, 16, 16)),
    "stale": ((64, 0, 64, 64), (16, 0, 16, 16)),
    "infobatch": ((64, 0, 64, 64), (16, 0, 16, 16)),
    "student-alone": ((64, 0, 0, 64), (16, 0, 0, 16)),
}


@pytest.mark.parametrize("name", METHODS)
def test_images_through_each_forward(name):
    method = METHODS[name]()
    assert method.name == name
    full, short = COUNTS[name]
    assert method.counts(FULL, FULL) == StepCounts(*full)
    assert method.counts(SHORT, FULL) == StepCounts(*short)


def test_unix_is_the_published_one():
    method = unix()
    assert method.scorer is entropy
    assert round(method.keep * 64) == 48
    assert method.curve == SigmoidCurve(mix_from=32 / 64, steepness=10.0)
    assert method.scoring == Scoring()
    assert not method.per_sample_lambda


def test_controls_differ_from_unix_in_one_thing():
    assert replace(unix_random(), name="unix", sampling=None) == unix()
    assert random() == Method("random", unix().keep, None, None)
    assert mixup() == Method("mixup", 1.0, None, full_curve)
    assert remix() == Method("remix", 1.0, None, full_curve, mixes_answers=True)
    assert not student_alone().teacher


def test_arguments_reach_the_value():
    method = unix(0.5, 0.25, 1000.0, margin, "eval")
    assert method == Method("unix", 0.5, margin, SigmoidCurve(0.25, 1000.0), Scoring("eval"))


def test_only_plain_methods_leave_the_order_alone():
    plain = ["kd", "random-epoch", "stale", "infobatch", "student-alone"]
    assert [name for name, make in METHODS.items() if not make().ranks] == plain


def test_a_short_batch_may_be_larger_than_k():
    assert unix().counts(50, FULL).trained == 48
    assert unix().counts(47, FULL).trained == 47
    assert unix().counts(1, FULL) == StepCounts(1, 1, 1, 1)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_keep_out_of_range(keep):
    with pytest.raises(
        UserError, match=r"method unix: keep \(k/N\) is a share of the batch and must lie in \(0, 1\]"
    ):
        unix(keep)


def test_k_of_0():
    with pytest.raises(UserError, match=r"keep 0\.1 of a batch of 4 keeps no image; raise keep"):
        unix(0.1).counts(4, 4)


def test_b_beyond_n():
    with pytest.raises(UserError, match="mix_from"):
        unix(mix_from=1.1)


def test_unknown_scoring_mode():
    with pytest.raises(UserError, match="scoring_mode is train or eval, not 'test'"):
        build_method(MethodConfig("unix", scoring_mode="test"))


def test_a_method_is_a_value_with_a_scorer_of_ones_own():
    def norm(logits: torch.Tensor) -> torch.Tensor:
        return -logits.norm(dim=1)

    method = Method("own", 0.5, norm)
    assert method == Method("own", 0.5, norm)
    assert method.counts(64, 64) == StepCounts(64, 64, 32, 32)
    assert kd() != method
