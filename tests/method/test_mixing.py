"""Curves, draws and the mixed batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unixkd.errors import UserError
from unixkd.method.batch import Batch, Draws
from unixkd.method.draws import make_draws
from unixkd.method.mixing import SigmoidCurve, StepCurve, full_curve, mix, num_kept, pure
from unixkd.method.unix import unix

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "method.json").read_text())

shares = st.floats(0, 1)
curves = st.one_of(
    st.builds(SigmoidCurve, shares, st.floats(0, 1000)), st.builds(StepCurve, shares), st.just(full_curve)
)


def draws_of(partner: list[int], lam: float) -> Draws:
    n = len(partner)
    return Draws(torch.tensor(partner), torch.full((n,), lam), torch.zeros(n))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", ORACLE["curves"], ids=lambda case: f"N={case['N']} w={case['w']}")
def test_curves_match_the_oracle(case):
    curve = SigmoidCurve(case["b"] / case["N"], case["w"])
    s = curve(torch.arange(len(case["s"])), case["N"])
    torch.testing.assert_close(s, torch.tensor(case["s"]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "s"), [(64, 4e-4), (256, 0.12), (1024, 0.38)])
def test_a_steep_sigmoid_is_no_step_at_large_batches(n, s):
    """The published figures at rank b − 1 for w = 1000; the exact step is 0 there at every N."""
    below = torch.tensor([n // 2 - 1])
    assert SigmoidCurve(0.5, 1000.0)(below, n).item() == pytest.approx(s, rel=0.05)
    assert StepCurve(0.5)(below, n).item() == 0


def test_step_curve_is_exact():
    assert StepCurve(0.5)(torch.arange(64), 64).tolist() == [0.0] * 32 + [1.0] * 32
    assert StepCurve(1.0)(torch.arange(64), 64).tolist() == [0.0] * 64
    assert StepCurve(0.0)(torch.arange(64), 64).tolist() == [1.0] * 64


@pytest.mark.usefixtures("double")
def test_mixed_batch_matches_the_oracle():
    case = ORACLE["mixing"]
    images = torch.tensor(case["inputs"]).view(case["N"], 3, 1, 1)
    batch = Batch(images, torch.tensor(case["labels"]))
    curve = SigmoidCurve(case["b"] / case["N"], case["w"])
    mixed = mix(
        batch,
        torch.tensor(case["rank"]),
        case["k"],
        curve,
        draws_of(case["partner"], case["lam"]),
        case["N"],
    )
    torch.testing.assert_close(mixed.weight, torch.tensor(case["weight"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(mixed.images.flatten(1), torch.tensor(case["mixed"]), rtol=0, atol=1e-9)
    assert mixed.label_a.tolist() == case["label_a"]
    assert mixed.label_b.tolist() == case["label_b"]
    assert mixed.position.tolist() == case["rank"][: case["k"]]
    assert mixed.sample_weight.tolist() == [1.0] * case["k"]


@pytest.mark.usefixtures("double")
def test_a_short_batch_keeps_the_full_batch_numbers():
    """16 of 64 images: k = 48 keeps all of them, and the curve still counts in 64ths."""
    case = ORACLE["short_batch"]
    method = unix(case["k"] / case["N"], case["b"] / case["N"], case["w"])
    k = num_kept(method.keep, case["N"], case["images"])
    assert k == case["kept"]
    mixed = mix(
        Batch(torch.rand(case["images"], 3, 2, 2)),
        torch.arange(case["images"]),
        k,
        method.curve,
        draws_of(list(range(case["images"])), 1.0),
        case["N"],
    )
    torch.testing.assert_close(mixed.weight, torch.tensor(case["s"]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, float("nan")])
def test_share_of_kept_rows_out_of_range(keep):
    with pytest.raises(UserError, match=r"keep \(k/N\) is a share of the batch and must lie in"):
        num_kept(keep, 64, 64)


def test_keeping_nothing_is_an_error():
    with pytest.raises(UserError, match=r"keep 0\.01 of a batch of 16 keeps no image"):
        num_kept(0.01, 16, 16)


@pytest.mark.parametrize("curve", [SigmoidCurve, StepCurve])
@pytest.mark.parametrize("b", [-0.1, 1.5])
def test_mix_from_out_of_range(curve, b):
    with pytest.raises(UserError, match=r"mix_from \(b\) is a share of the batch"):
        curve(b)


@given(keep=st.floats(0.01, 1), n=st.integers(1, 300), available=st.integers(1, 300))
def test_number_of_kept_rows(keep, n, available):
    if round(keep * n) == 0:
        with pytest.raises(UserError):
            num_kept(keep, n, available)
        return
    k = num_kept(keep, n, available)
    assert 1 <= k <= available
    assert k == available or abs(k - keep * n) <= 0.5  # the nearest whole number, unless there are fewer
    assert num_kept(1.0, n, available) == min(n, available)


@given(curve=curves, n=st.integers(1, 200))
def test_curves_lie_in_the_unit_interval_and_rise_with_rank(curve, n):
    s = curve(torch.arange(n), n)
    assert ((s >= 0) & (s <= 1)).all()
    assert (s.diff() >= 0).all()


@given(curve=curves, n=st.integers(1, 12), keep=st.floats(0.2, 1), seed=st.integers(0, 1000))
def test_mixing_is_convex_and_keeps_labels_beside_their_images(curve, n, keep, seed):
    draws = make_draws(n, seed=seed, step=0, per_sample_lambda=bool(seed % 2))
    images = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    batch = Batch(images, torch.arange(n))
    ranking = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    k = max(1, round(keep * n))
    mixed = mix(batch, ranking, k, curve, draws, n)
    assert ((mixed.weight >= 0) & (mixed.weight <= 1)).all()
    a, b = images[mixed.label_a], images[mixed.label_b]  # a label here is its image's position
    assert (mixed.images >= torch.minimum(a, b) - 1e-6).all()
    assert (mixed.images <= torch.maximum(a, b) + 1e-6).all()
    assert mixed.label_a.tolist() == ranking[:k].tolist()
    assert mixed.label_b.tolist() == draws.partner[:k].tolist()


@given(n=st.integers(1, 40), share=shares, seed=st.integers(0, 1000))
def test_rows_below_b_are_exactly_pure_under_the_step_curve(n, share, seed):
    images = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    ranking = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    draws = make_draws(n, seed=seed, step=0)
    mixed = mix(Batch(images), ranking, n, StepCurve(share), draws, n)
    b = round(share * n)
    assert torch.equal(mixed.images[:b], images[ranking[:b]])
    assert (mixed.weight[:b] == 0).all()
    assert torch.equal(mixed.weight[b:], draws.lam[b:])


def test_pure_rows():
    batch = Batch(torch.rand(4, 3, 2, 2), torch.tensor([3, 2, 1, 0]))
    chosen = pure(batch, torch.tensor([2, 0]))
    assert torch.equal(chosen.images, batch.images[[2, 0]])
    assert chosen.label_a.tolist() == chosen.label_b.tolist() == [1, 3]
    assert chosen.weight.tolist() == [0.0, 0.0]
    assert pure(batch, None).images is batch.images  # plain KD copies nothing


@given(
    n=st.integers(1, 100),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**20),
    per_sample=st.booleans(),
)
def test_draws(n, seed, step, per_sample):
    draws = make_draws(n, seed=seed, step=step, per_sample_lambda=per_sample)
    assert sorted(draws.partner.tolist()) == list(range(n))
    for values in (draws.lam, draws.noise):
        assert values.shape == (n,)
        assert ((values >= 0) & (values <= 1)).all()
    distinct = len(set(draws.lam.tolist()))
    assert distinct == 1 if not per_sample or n == 1 else distinct > 1


def test_draws_differ_by_seed_step_and_rank():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0)]
    draws = [make_draws(64, seed=seed, step=step, rank=rank) for seed, step, rank in keys]
    assert len({tuple(d.partner.tolist()) for d in draws}) == len(keys)
    assert len({tuple(d.noise.tolist()) for d in draws}) == len(keys)
    assert len({d.lam[0].item() for d in draws}) == len(keys)


def test_draws_are_uniform():
    """Over 600 steps: λ has mean 1/2 and variance 1/12, each partner is as likely as any other."""
    draws = [make_draws(4, seed=0, step=step) for step in range(600)]
    lam = torch.stack([d.lam[0] for d in draws])
    assert lam.mean().item() == pytest.approx(1 / 2, abs=0.05)
    assert lam.var().item() == pytest.approx(1 / 12, abs=0.012)
    first = torch.stack([d.partner[0] for d in draws]).bincount(minlength=4)
    assert (first - 150).abs().max() < 53  # 5 standard deviations
