"""What every scorer, curve and loss must do, in every combination."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slow import TinyNet, images_of, labels_of, mixed_of, outputs_of
from unixkd.distiller import Distiller
from unixkd.method.batch import Outputs
from unixkd.method.losses import DIST, DKD, KD, AttentionTransfer, CrossEntropy, Loss, SimilarityPreserving
from unixkd.method.method import Method
from unixkd.method.mixing import SigmoidCurve, StepCurve, full_curve
from unixkd.method.objective import Term
from unixkd.method.scoring import entropy, least_confidence, margin

SCORERS = {"entropy": entropy, "margin": margin, "least_confidence": least_confidence, "random": None}
CURVES = {"none": None, "sigmoid": SigmoidCurve(), "step": StepCurve(), "full": full_curve}
LOSSES = {
    "kd": KD(),
    "ce": CrossEntropy(),
    "dkd": DKD(),
    "dist": DIST(),
    "at": AttentionTransfer(("map",), ("map",)),
    "sp": SimilarityPreserving(("map",), ("map",)),
}
LOGIT_LOSSES = ("kd", "ce", "dkd", "dist")
LABEL_LOSSES = ("ce", "dkd")
MATCHING_LOSSES = ("kd", "dkd", "dist", "at", "sp")  # 0 where student and teacher agree


def on_layers(loss: Loss) -> Loss:
    """The same loss on layers of TinyNet."""
    if "student_layers" in vars(loss):
        return replace(loss, student_layers=("body",), teacher_layers=("body",))
    return loss


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("scorer", SCORERS)
def test_every_combination_trains_the_student_and_not_the_teacher(scorer, curve, loss):
    student, teacher = TinyNet(seed=0), TinyNet(width=6, seed=1)
    method = Method("any", 0.75, SCORERS[scorer], CURVES[curve])
    distiller = Distiller(student, teacher, method, [Term(loss, on_layers(LOSSES[loss]))])
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for n in (8, 3):  # a full and a short batch
        student.zero_grad()
        result = distiller.step(images_of(n), labels_of(n))
        result.loss.backward()
        assert result.loss.isfinite()
        trained = [p.grad for p in student.parameters() if p.grad is not None]
        assert any(g.abs().sum() > 0 for g in trained)
        assert all(g.isfinite().all() for g in trained)
        if loss in LOGIT_LOSSES:
            assert len(trained) == len(list(student.parameters()))
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def evaluate(name, student, teacher, mixed):
    return LOSSES[name](student, teacher, mixed)


def repeated(outputs: Outputs, times: torch.Tensor) -> Outputs:
    return Outputs(
        outputs.logits.repeat_interleave(times, 0),
        {name: f.repeat_interleave(times, 0) for name, f in outputs.features.items()},
    )


@pytest.mark.parametrize("name", LOSSES)
@given(times=st.lists(st.integers(0, 3), min_size=2, max_size=6).filter(any), seed=st.integers(0, 100))
def test_a_weight_is_a_number_of_repetitions_times_the_mean_weight(name, times, seed):
    """The one rule of losses.py, which also says that a weight of 0 removes a row."""
    k, w = len(times), torch.tensor(times)
    student, teacher = outputs_of(k, seed=seed), outputs_of(k, seed=seed + 1000)
    mixed = mixed_of(k, seed=seed, sample_weight=w.float())
    longer = replace(
        mixed,
        **{
            field: getattr(mixed, field).repeat_interleave(w, 0)
            for field in ("images", "label_a", "label_b", "weight", "position")
        },
        sample_weight=torch.ones(int(w.sum())),
    )
    weighted = evaluate(name, student, teacher, mixed)
    expected = w.double().mean() * evaluate(name, repeated(student, w), repeated(teacher, w), longer)
    torch.testing.assert_close(weighted.double(), expected.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sp"])
@given(weight=st.lists(st.floats(0.1, 5), min_size=5, max_size=5), scale=st.floats(0.1, 10))
def test_scaling_all_weights_scales_the_loss(name, weight, scale):
    """All but similarity preserving, whose value halves where every row is there twice."""
    student, teacher = outputs_of(5), outputs_of(5, seed=1)
    w = torch.tensor(weight)
    value, scaled = (evaluate(name, student, teacher, mixed_of(5, sample_weight=x)) for x in (w, scale * w))
    torch.testing.assert_close(scaled.double(), scale * value.double(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_all_weights_0_is_a_loss_of_0(name):
    student = outputs_of(4)
    loss = evaluate(name, student, outputs_of(4, seed=1), mixed_of(4, sample_weight=torch.zeros(4)))
    assert loss.item() == 0


@pytest.mark.parametrize("name", MATCHING_LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_agreement_with_the_teacher_is_0_with_gradient_0(name, dtype, tolerance):
    like = outputs_of(6)
    student, teacher = (
        Outputs(
            like.logits.detach().to(dtype).requires_grad_(),
            {"map": like.features["map"].detach().to(dtype).requires_grad_()},
        )
        for _ in range(2)
    )
    loss = evaluate(name, student, teacher, mixed_of(6))
    assert abs(loss.item()) < tolerance
    source = student.logits if name in LOGIT_LOSSES else student.features["map"]
    (gradient,) = torch.autograd.grad(loss, source)
    assert gradient.abs().max() < tolerance


@pytest.mark.parametrize("name", MATCHING_LOSSES)
def test_disagreement_costs(name):
    assert evaluate(name, outputs_of(6), outputs_of(6, seed=1), mixed_of(6)).item() > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_sixteen_bit_outputs_give_a_float32_loss(name):
    student, teacher = (
        Outputs(o.logits.detach().bfloat16(), {"map": o.features["map"].detach().bfloat16()})
        for o in (outputs_of(6), outputs_of(6, seed=1))
    )
    widened = (Outputs(o.logits.float(), {"map": o.features["map"].float()}) for o in (student, teacher))
    loss = evaluate(name, student, teacher, mixed_of(6))
    assert loss.dtype == torch.float32
    assert loss == evaluate(name, *widened, mixed_of(6))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
@pytest.mark.parametrize("size", [60.0, 1e4])
def test_extreme_logits_stay_finite(name, size):
    signs = torch.tensor([[1.0, -1, -1, -1, 0], [-1, 1, -1, 1, 0], [-1, -1, -1, -1, 1], [0, 0, 1, 0, 0]])
    student = (size * signs).requires_grad_()
    teacher = size * signs.flip(1)
    loss = evaluate(name, Outputs(student), Outputs(teacher), mixed_of(4))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_the_second_label_of_a_pure_row_is_irrelevant(name):
    student, teacher = outputs_of(6), outputs_of(6, seed=1)
    mixed = mixed_of(6, weight=torch.zeros(6))
    other = replace(mixed, label_b=(mixed.label_b + 1) % 5)
    assert evaluate(name, student, teacher, mixed) == evaluate(name, student, teacher, other)


@pytest.mark.parametrize("name", LABEL_LOSSES)
@given(m=st.floats(0, 1))
def test_mixed_labels_are_linear_in_the_mixing_weight(name, m):
    student, teacher = outputs_of(6), outputs_of(6, seed=1)
    first, second, between = (
        evaluate(name, student, teacher, mixed_of(6, weight=torch.full((6,), weight)))
        for weight in (0.0, 1.0, m)
    )
    torch.testing.assert_close(between, (1 - m) * first + m * second, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["kd", "dist", "at", "sp"])
def test_losses_without_labels_take_none(name):
    mixed = replace(mixed_of(6), label_a=None, label_b=None)
    assert not LOSSES[name].needs_labels
    assert evaluate(name, outputs_of(6), outputs_of(6, seed=1), mixed).isfinite()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_what_it_needs(name):
    loss = LOSSES[name]
    assert isinstance(loss, Loss)
    assert not isinstance(SimpleNamespace(), Loss)
    assert loss.needs_labels == (name in LABEL_LOSSES)
    assert loss.needs_teacher == (name != "ce")
