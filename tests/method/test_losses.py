"""Each loss against the oracle, an independent slow version and its own definition."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import slow
from slow import mixed_of, outputs_of
from unixkd.errors import UserError
from unixkd.method.batch import Outputs
from unixkd.method.losses import (
    DIST,
    DKD,
    KD,
    AttentionTransfer,
    CrossEntropy,
    SimilarityPreserving,
    kl_divergence,
    pearson,
    similarity,
)

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "method.json").read_text())
SEEDS = range(3)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(value, expected, tolerance=1e-9):
    value, expected = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (value, expected))
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


def featured(*features):
    """Outputs with these feature maps under the names 0, 1, …"""
    names = map(str, range(len(features)))
    return Outputs(torch.zeros(len(features[0]), 2), dict(zip(names, features, strict=True)))


# The oracle


def test_kd_matches_the_oracle():
    case = ORACLE["losses"]
    student, teacher = (Outputs(tensor(case[f"{who}_logits"])) for who in ("student", "teacher"))
    close(KD(case["temperature"])(student, teacher, mixed_of(6)), case["kd"])


def test_mixed_cross_entropy_matches_the_oracle():
    case, mixing = ORACLE["losses"], ORACLE["mixing"]
    mixed = replace(
        mixed_of(6, weight=tensor(mixing["weight"])),
        label_a=torch.tensor(mixing["label_a"]),
        label_b=torch.tensor(mixing["label_b"]),
    )
    student = Outputs(tensor(case["student_logits"]))
    close(CrossEntropy()(student, None, mixed), case["mixed_cross_entropy"])


def test_attention_transfer_matches_the_oracle():
    case = ORACLE["attention_transfer"]
    student, teacher = ([tensor(stage) for stage in case[who]] for who in ("student", "teacher"))
    mixed = mixed_of(len(student[0]))
    for s, t, value in zip(student, teacher, case["per_stage"], strict=True):
        close(AttentionTransfer(("0",), ("0",))(featured(s), featured(t), mixed), value)
    layers = ("0", "1")
    close(AttentionTransfer(layers, layers)(featured(*student), featured(*teacher), mixed), case["sum"])


def test_similarity_preserving_matches_the_oracle():
    case = ORACLE["similarity_preserving"]
    student, teacher = (featured(tensor(case[who])) for who in ("student", "teacher"))
    close(SimilarityPreserving(("0",), ("0",))(student, teacher, mixed_of(4)), case["loss"])


# Independent slow versions


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_matches_its_slow_version(seed, temperature):
    s, t = (outputs_of(6, seed=seed + i).logits.detach() for i in (0, 10))
    loss = KD(temperature)(Outputs(s), Outputs(t), mixed_of(6))
    close(loss, slow.kd(s.numpy(), t.numpy(), temperature))


@pytest.mark.parametrize("seed", SEEDS)
def test_cross_entropy_matches_its_slow_version(seed):
    s, mixed = outputs_of(6, seed=seed).logits.detach(), mixed_of(6, seed=seed)
    expected = slow.cross_entropy(
        s.numpy(), mixed.label_a.tolist(), mixed.label_b.tolist(), mixed.weight.tolist()
    )
    close(CrossEntropy()(Outputs(s), None, mixed), expected, 1e-7)  # the mixing weights are float32


def test_label_smoothing_spreads_over_all_classes():
    """ε of the label's mass goes to the mean log-probability of all classes."""
    s, mixed = outputs_of(4).logits.detach(), mixed_of(4, weight=torch.zeros(4))
    log_p = s.log_softmax(1)
    plain = -log_p[torch.arange(4), mixed.label_a]
    close(CrossEntropy(0.2)(Outputs(s), None, mixed), (0.8 * plain - 0.2 * log_p.mean(1)).mean())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("temperature", "alpha", "beta"), [(4.0, 1.0, 8.0), (1.0, 2.0, 0.0), (2.0, 0.0, 3.0)]
)
def test_dkd_matches_the_definition_of_the_paper(seed, temperature, alpha, beta):
    s, t = (outputs_of(6, seed=seed + i).logits.detach() for i in (0, 10))
    mixed = mixed_of(6, seed=seed)
    rows = [
        (1 - m) * slow.dkd_row(*pair, a, temperature, alpha, beta)
        + m * slow.dkd_row(*pair, b, temperature, alpha, beta)
        for pair, a, b, m in zip(
            zip(s.numpy(), t.numpy(), strict=True),
            mixed.label_a.tolist(),
            mixed.label_b.tolist(),
            mixed.weight.tolist(),
            strict=True,
        )
    ]
    close(DKD(temperature, alpha, beta)(Outputs(s), Outputs(t), mixed), np.mean(rows), 1e-7)


def test_dkd_with_the_right_weights_is_kd():
    """KL = target part + (1 − p_target of the teacher) · other part: the identity behind DKD."""
    s, t = (outputs_of(1, seed=i).logits.detach() for i in (0, 1))
    mixed = mixed_of(1, weight=torch.zeros(1))
    p = torch.softmax(t / 4.0, dim=1)[0, mixed.label_a].item()
    close(DKD(4.0, 1.0, 1 - p)(Outputs(s), Outputs(t), mixed), KD(4.0)(Outputs(s), Outputs(t), mixed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("inter", "intra"), [(1.0, 1.0), (2.0, 0.0), (0.0, 0.5)])
def test_dist_matches_its_slow_version(seed, inter, intra):
    s, t = (outputs_of(6, seed=seed + i).logits.detach() for i in (0, 10))
    loss = DIST(2.0, inter, intra)(Outputs(s), Outputs(t), mixed_of(6))
    close(loss, slow.dist(s.numpy(), t.numpy(), 2.0, inter, intra))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("student_size", "teacher_size"), [(4, 4), (8, 4), (2, 8)])
def test_attention_transfer_matches_its_slow_version(seed, student_size, teacher_size):
    student = outputs_of(5, channels=3, size=student_size, seed=seed)
    teacher = outputs_of(5, channels=6, size=teacher_size, seed=seed + 10)
    expected = slow.attention_transfer(*(o.features["map"].detach().numpy() for o in (student, teacher)))
    close(AttentionTransfer(("map",), ("map",))(student, teacher, mixed_of(5)), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_similarity_preserving_matches_its_slow_version(seed):
    student, teacher = outputs_of(5, channels=3, seed=seed), outputs_of(5, channels=7, size=2, seed=seed + 10)
    expected = slow.similarity_preserving(*(o.features["map"].detach().numpy() for o in (student, teacher)))
    close(SimilarityPreserving(("map",), ("map",))(student, teacher, mixed_of(5)), expected)


@given(weight=st.lists(st.integers(0, 4), min_size=3, max_size=8), seed=st.integers(0, 1000))
def test_weighted_pearson_is_the_correlation_of_repeated_values(weight, seed):
    assume(sum(w > 0 for w in weight) >= 2)
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, len(weight), generator=generator, dtype=torch.float64) for _ in range(2))
    value = pearson(a, b, tensor(weight))
    for row in range(2):
        repeated = (np.repeat(x[row].numpy(), weight).tolist() for x in (a, b))
        close(value[row], slow.correlation(*repeated))


# Edges


def test_pearson_of_a_constant_row_is_zero_with_a_finite_gradient():
    a = torch.full((1, 4), 0.25, requires_grad=True)
    value = pearson(a, torch.rand(1, 4), torch.ones(4))
    value.sum().backward()
    assert value.item() == 0
    assert a.grad.isfinite().all()


def test_dist_sees_classes_that_are_rare_in_the_batch():
    """Columns of tiny probabilities count: equal outputs give 0, not a constant for every rare class."""
    logits = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    logits[:, :4] += 16.0
    outputs = Outputs(logits)
    assert torch.softmax(logits, dim=1)[:, 4:].max() < 1e-5
    close(DIST(1.0)(outputs, outputs, mixed_of(8)), 0.0, 2e-2)


@pytest.mark.parametrize("dead", [[0], [0, 1, 2, 3]])
def test_rows_of_dead_features_have_a_finite_gradient(dead):
    feature = torch.rand(4, 3, 2, 2)
    feature[dead] = 0.0
    feature.requires_grad_()
    teacher, mixed = featured(torch.rand(4, 5, 2, 2)), mixed_of(4)
    for loss in (SimilarityPreserving(("0",), ("0",)), AttentionTransfer(("0",), ("0",))):
        (gradient,) = torch.autograd.grad(loss(featured(feature), teacher, mixed), feature)
        assert gradient.isfinite().all()


def test_similarity_rows_are_unit_vectors():
    rows = similarity(torch.rand(5, 3, 2, 2), torch.ones(5))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))


@given(
    rows=st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=2, max_size=2),
    temperature=st.floats(0.5, 20),
)
def test_divergence_is_never_negative_and_zero_for_equal_rows(rows, temperature):
    target, guess = tensor(rows[:1]), tensor(rows[1:])
    assert kl_divergence(target, guess, temperature).item() >= -1e-9
    assert kl_divergence(target, target, temperature).item() == 0


def test_temperature_keeps_the_size_of_the_gradient():
    """For high T, the gradient of T² · KL is the difference of centred logits / classes (Hinton et al.)."""
    s, t = (outputs_of(1, seed=i).logits for i in (0, 1))
    (gradient,) = torch.autograd.grad(KD(1e5)(Outputs(s), Outputs(t.detach()), mixed_of(1)), s)
    centred = (s - s.mean()) - (t - t.mean())
    torch.testing.assert_close(gradient, centred.detach() / s.shape[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", [KD, DKD, DIST])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_out_of_range(loss, temperature):
    with pytest.raises(UserError, match="temperature must be greater than 0"):
        loss(temperature)


@pytest.mark.parametrize("loss", [KD(), DKD(), DIST()])
def test_networks_of_different_classes(loss):
    student, teacher = outputs_of(4, num_classes=5), outputs_of(4, num_classes=7)
    with pytest.raises(UserError, match="the student has 5 classes, the teacher 7"):
        loss(student, teacher, mixed_of(4))


@pytest.mark.parametrize("loss", [KD(), DKD(), DIST(), AttentionTransfer(("map",), ("map",))])
def test_no_teacher(loss):
    with pytest.raises(UserError, match="needs a teacher"):
        loss(outputs_of(4), None, mixed_of(4))


@pytest.mark.parametrize("loss", [CrossEntropy(), DKD()])
def test_no_labels(loss):
    mixed = replace(mixed_of(4), label_a=None, label_b=None)
    with pytest.raises(UserError, match="needs labels, and the images have none: use kd, dist, at or sp"):
        loss(outputs_of(4), outputs_of(4), mixed)


@pytest.mark.parametrize("loss", [CrossEntropy(), DKD()])
def test_labels_of_any_integer_type(loss):
    mixed = mixed_of(4)
    short = replace(mixed, label_a=mixed.label_a.int(), label_b=mixed.label_b.to(torch.int16))
    outputs = outputs_of(4), outputs_of(4, seed=1)
    assert loss(*outputs, short) == loss(*outputs, mixed)


def test_attention_transfer_of_flat_features():
    flat = featured(torch.rand(4, 8))
    with pytest.raises(UserError, match="needs feature maps"):
        AttentionTransfer(("0",), ("0",))(flat, flat, mixed_of(4))
