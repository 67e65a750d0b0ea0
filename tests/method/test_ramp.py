"""How a method changes over a run: by hand, what it costs, and what a run makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from running import IMAGES, distilled, make_teacher, metrics, summary
from slow import images_of
from unixkd.config import AnswersConfig, MethodConfig, ModelConfig
from unixkd.distiller import Distiller
from unixkd.errors import UsageError, UserError
from unixkd.method.ledger import Ledger
from unixkd.method.method import Method, Ramp
from unixkd.method.mixing import SigmoidCurve
from unixkd.method.unix import hard, kd, selective_backprop, unix
from unixkd.planning.expected import expected_cost
from unixkd.training.run import run


def with_ramp(method: Method, **ramp) -> Method:
    return Method(**{**vars(method), "ramp": Ramp(**ramp)})


def test_a_line_by_hand():
    method = with_ramp(unix(), keep=0.25, mix_from=0.0, steepness=50.0)
    half = method.at(0.5)
    assert half == unix(keep=0.5, mix_from=0.25, steepness=30.0)
    assert method.at(0.0) == unix()
    assert half.at(0.9) is half  # an epoch's method changes no more


def test_a_cosine_is_slow_at_both_ends():
    method = with_ramp(hard(keep=1.0), keep=0.5, shape="cosine")
    kept = [method.at(progress).keep for progress in (0.0, 1 / 3, 0.5, 2 / 3)]
    assert kept == pytest.approx([1.0, 0.875, 0.75, 0.625])  # (1 − cos(π/3)) / 2 = 1/4 of the way


def test_what_has_no_end_stays():
    assert with_ramp(unix(), keep=0.5).at(0.7).curve == SigmoidCurve(0.5, 10.0)
    assert with_ramp(unix(), steepness=100.0).at(0.7).keep == unix().keep


@pytest.mark.parametrize("method", [unix(), hard(), selective_backprop()], ids=lambda m: m.name)
def test_at_the_end_a_step_is_that_of_plain_kd(method):
    last = with_ramp(method, full_last=0.25).at(0.75)
    assert last.counts(64, 64) == kd().counts(64, 64)
    assert not last.ranks
    before = with_ramp(method, full_last=0.25).at(0.74)
    assert before.counts(64, 64) == method.counts(64, 64)


@given(
    start=st.floats(0.1, 1),
    end=st.floats(0.1, 1),
    shape=st.sampled_from(["linear", "cosine"]),
    progress=st.floats(0, 1, exclude_max=True),
)
def test_a_ramp_stays_between_its_ends(start, end, shape, progress):
    keep = with_ramp(hard(keep=start), keep=end, shape=shape).at(progress).keep
    assert min(start, end) - 1e-9 <= keep <= max(start, end) + 1e-9


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        ({"keep": 0.0}, r"keep_end is a share .* \(0, 1\], got 0"),
        ({"keep": 1.5}, "keep_end is a share"),
        ({"full_last": -0.1}, r"full_last is a share .* \[0, 1\], got -0.1"),
        ({"shape": "cosin"}, "unknown ramp 'cosin'; did you mean 'cosine'"),
    ],
)
def test_nonsense_is_refused(ramp, message):
    with pytest.raises((UserError, UsageError), match=message):
        Ramp(**ramp)


def test_b_beyond_n_at_the_end_is_refused_at_once():
    with pytest.raises(UserError, match="mix_from"):
        with_ramp(unix(), mix_from=1.5)


def test_the_expected_cost_is_the_mean_over_the_epochs():
    """F_t/F_s = 3, backward = 2: scoring costs 1/6, an epoch k/N; four epochs with k/N = 1, 7/8, 3/4 and KD."""
    method = with_ramp(hard(keep=1.0), keep=0.5, full_last=0.25)
    cost = expected_cost(method, Ledger(1, 3), [64], epochs=4)
    assert cost["backward_2x"] == pytest.approx((1 + 7 / 8 + 3 / 4 + 3 / 6 + 1) / 4)


def test_an_own_loop_sets_each_epochs_method():
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)) for _ in range(2)]
    method = with_ramp(hard(keep=1.0), keep=0.5)
    distiller = Distiller(*networks, method, batch_size=8)
    with pytest.raises(UserError, match=r"distiller.method = method.at\(progress\) before each epoch"):
        distiller.step(images_of(8))
    for epoch, kept in enumerate((8, 6)):
        distiller.method = method.at(epoch / 2)
        assert len(distiller.step(images_of(8)).mixed) == kept


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.mark.parametrize(
    ("shape", "message"), [("cosine", "keeps no image"), ("linear", "would train on 1 image")]
)
def test_a_ramp_that_ends_in_too_few_images_is_refused_before_training(shape, message, teacher, tmp_path):
    """In the last epoch k/N is 0.002 or 0.020."""
    config = distilled(teacher, MethodConfig("random", keep_end=0.001, ramp=shape), epochs=40)
    config = replace(config, data=replace(config.data, limit=96))  # three batches of 32
    with pytest.raises(UserError, match=message):
        run(replace(config, student=ModelConfig("vgg8")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stored_answers_serve_the_part_of_a_run_that_is_pure(teacher, tmp_path):
    for fill in ("lazy", "epoch"):
        config = distilled(teacher, MethodConfig("unix", full_last=0.5), epochs=2)
        run(replace(config, answers=AnswersConfig(str(tmp_path / fill), fill=fill)), tmp_path / f"{fill}-run")
        images = summary(tmp_path / f"{fill}-run")["cost"]["images"]
        assert images["teacher_forwarded"] == 3 * 24 + 4 + IMAGES  # mixed ones, then all
        assert images["teacher_filled"] == IMAGES


def test_a_run_keeps_what_its_epochs_say(teacher, tmp_path):
    """Batches of 32, 32, 32 and 4; k/N = 1, 13/16, 10/16 are k = 32, 26, 20, then all are kept, unscored."""
    config = distilled(teacher, MethodConfig("hard", keep=1.0, keep_end=0.25, full_last=0.25), epochs=4)
    run(config, tmp_path / "run")
    records = [line["selection"] for line in metrics(tmp_path / "run")]
    assert [round(line["kept"] * IMAGES) for line in records] == [100, 3 * 26 + 4, 3 * 20 + 4, 100]
    assert [line["score_kept"] is None for line in records] == [False, False, False, True]
    images = summary(tmp_path / "run")["cost"]["images"]
    assert images["scored"] == 3 * IMAGES
    assert images["trained"] == images["teacher_forwarded"] == 100 + 82 + 64 + 100
