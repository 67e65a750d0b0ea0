"""Odd labels and images in an own loop: one line that names the row and the value, or what torch's convention says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from slow import TinyNet, images_of, mixed_of, outputs_of
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import Outputs, answered
from unixkd.method.labels import UNLABELLED, check_labels, check_range
from unixkd.method.losses import DIST, DKD, KD, CrossEntropy, divergence
from unixkd.method.named_inputs import as_inputs
from unixkd.method.objective import Term
from unixkd.method.scoring import TrueLoss, entropy, least_confidence, margin
from unixkd.method.unix import kd, mixup, selective_backprop, unix
from unixkd.teacher.teacher import mixed_logits

LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
CE, DECOUPLED = [Term("ce", CrossEntropy())], [Term("dkd", DKD())]

ODD = {
    "-1": (
        LABELS.clone().index_fill_(0, torch.tensor(7), -1),
        r"row 7 of the batch has label -1, .* in 0\.\.4",
    ),
    "5 of 5": (
        LABELS.clone().index_fill_(0, torch.tensor(2), 5),
        r"row 2 of the batch has label 5, .* in 0\.\.4",
    ),
    "float": (LABELS + 0.5, r"float32 and shape \[8\] \(row 0 has 0.5\) are no class numbers"),
    "bool": (LABELS > 2, r"bool and shape \[8\] \(row 0 has False\) are no class numbers"),
    "column": (LABELS[:, None], r"shape \[8, 1\] \(row 0 has \[0\]\) are no class numbers"),
    "one-hot": (
        nn.functional.one_hot(LABELS),
        r"shape \[8, 5\] \(row 0 has \[1, 0, 0, 0, 0\]\) .* labels.argmax\(1\)",
    ),
    "soft": (
        torch.full((8, 5), 0.25),
        r"float32 and shape \[8, 5\] \(row 0 has \[0.25, .* labels.argmax\(1\)",
    ),
    "short": (LABELS[:7], r"labels of shape \[7\] for 8 samples"),
    "long": (torch.cat([LABELS, LABELS]), r"labels of shape \[16\] for 8 samples"),
    "scalar": (LABELS[0], r"labels of shape \[\] for 8 samples"),
}


@pytest.mark.parametrize("objective", [CE, DECOUPLED], ids=["ce", "dkd"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_labels_are_refused_whether_their_rows_are_kept_or_not(odd, objective):
    labels, message = ODD[odd]
    for method in (kd(), unix(keep=0.25)):
        distiller = Distiller(TinyNet(seed=1), TinyNet(seed=2), method, objective)
        with pytest.raises(UserError, match=message) as error:
            distiller.step(images_of(8), labels)
        assert "\n" not in str(error.value)
        assert distiller.steps == 0


def test_labels_that_are_no_tensor_are_named():
    for labels, kind in ((LABELS.numpy(), "ndarray"), (LABELS.tolist(), "list"), (["a"] * 8, "list")):
        with pytest.raises(UserError, match=f"the labels are a {kind}: give a tensor"):
            check_labels(labels, 8, classes=True)


def test_odd_labels_are_refused_where_a_scorer_reads_them():
    distiller = Distiller(TinyNet(seed=1), TinyNet(seed=2), selective_backprop())
    for odd in ("-1", "float", "one-hot"):
        with pytest.raises(UserError, match=ODD[odd][1]):
            distiller.step(images_of(8), ODD[odd][0])


def test_labels_that_no_loss_reads_may_be_of_any_kind_but_not_of_another_number():
    distiller = Distiller(TinyNet(seed=1), TinyNet(seed=2))
    assert distiller.step(images_of(8), torch.full((8, 5), 0.2)).loss.isfinite()
    with pytest.raises(UserError, match=r"labels of shape \[7\] for 8 samples"):
        distiller.step(images_of(8), LABELS[:7])


def test_small_integers_are_class_numbers():
    losses = {
        Distiller(TinyNet(seed=1).eval(), TinyNet(seed=2), kd(), CE)
        .step(images_of(8), LABELS.to(dtype))
        .loss.item()
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.int8)
    }
    assert len(losses) == 1
    with pytest.raises(
        UserError, match="row 0 of the batch has label 156"
    ):  # −100 modulo 256 is a number, no sign
        check_range(torch.tensor([156], dtype=torch.uint8), 5)


def test_a_label_that_is_no_class_makes_the_loss_nan_where_nobody_looks():
    """As on a GPU, where a look would stop the device, and an assertion of the device would end the process."""
    mixed = mixed_of(4, weight=torch.zeros(4))
    mixed.label_a[1] = 7
    assert CrossEntropy()(outputs_of(4), None, mixed).isnan()
    assert DKD()(outputs_of(4), outputs_of(4, seed=1), mixed).isnan()


# −100


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(0.1), DKD()], ids=["ce", "smoothed", "dkd"])
def test_the_mean_is_over_rows_that_have_a_label(loss):
    student, teacher, mixed = outputs_of(6), outputs_of(6, seed=1), mixed_of(6, weight=torch.zeros(6))
    mixed.label_a[:2] = UNLABELLED
    expected = loss(student.rows(2, 6), teacher.rows(2, 6), mixed.rows(2, 6))
    given = loss(student, teacher, mixed)
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(given, student.logits)
    assert not gradient[:2].any()
    mixed.label_a[:] = UNLABELLED
    nothing = loss(student, teacher, mixed)
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, student.logits)[0].any()


def test_it_is_torchs_mean():
    logits, labels = outputs_of(8).logits, LABELS.index_fill(0, torch.tensor([3, 7]), UNLABELLED)
    distiller = Distiller(TinyNet(seed=1), None, Distiller(TinyNet(), TinyNet()).method, CE)
    result = distiller.step(images_of(8), labels)
    assert result.loss.isfinite()
    mixed = mixed_of(8, weight=torch.zeros(8))
    mixed.label_a[:] = labels
    expected = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(CrossEntropy()(Outputs(logits), None, mixed), expected)


def test_a_mixed_row_counts_as_much_of_it_as_is_labelled():
    """Of the first row 0.75 is labelled, of the second all, of the third nothing."""
    logits, m = outputs_of(3).logits.detach(), torch.tensor([0.25, 0.5, 0.5])
    mixed = mixed_of(3, weight=m)
    mixed.label_a[:] = torch.tensor([0, 1, UNLABELLED])
    mixed.label_b[:] = torch.tensor([UNLABELLED, 2, UNLABELLED])
    log_p = logits.log_softmax(1)
    total = -0.75 * log_p[0, 0] - 0.5 * log_p[1, 1] - 0.5 * log_p[1, 2]
    torch.testing.assert_close(CrossEntropy()(Outputs(logits), None, mixed), total / 1.75)


def test_an_own_loop_goes_on_where_some_or_all_have_no_label():
    for method in (kd(), unix(), mixup(), selective_backprop()):
        for labels in (LABELS.index_fill(0, torch.tensor([7]), UNLABELLED), torch.full((8,), UNLABELLED)):
            objective = [Term("kd", KD()), Term("ce", CrossEntropy()), Term("dkd", DKD())]
            result = Distiller(TinyNet(seed=1), TinyNet(seed=2), method, objective).step(images_of(8), labels)
            result.loss.backward()
            assert result.loss.isfinite()
            assert (result.parts["ce"] == 0) == (result.parts["dkd"] == 0) == bool((labels < 0).all())


# One logit, images that are not finite


def test_one_logit_is_refused():
    for method in (kd(), unix()):
        with pytest.raises(UserError, match=r"TinyNet gives one logit \[N, 1\]"):
            Distiller(TinyNet(1), TinyNet(1), method).step(images_of(8), LABELS.clamp(0, 1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", [kd(), unix()], ids=["kd", "unix"])
def test_an_image_that_is_not_finite_is_blamed_before_a_statistic_takes_it_in(method, value):
    student, images = TinyNet(seed=1), images_of(8)
    images[3, 0, 0, 0] = value
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    distiller = Distiller(student, TinyNet(seed=2), method)
    with pytest.raises(UserError, match=r"images hold NaN or inf in 1 of 8 rows \(batch positions 3\)"):
        distiller.step(images)
    assert all(torch.equal(buffer, before[name]) for name, buffer in student.named_buffers())
    distiller.step(torch.full((8, 3, 8, 8), 1e38))  # their sum is inf, they are not


@pytest.mark.parametrize("inputs", [images_of(4).numpy(), list(images_of(4)), (images_of(4), LABELS)])
def test_inputs_that_are_no_tensor_are_named(inputs):
    with pytest.raises(UserError, match=r"the inputs are a (ndarray|list|tuple): give a tensor"):
        as_inputs(inputs)


# A teacher's −inf


def ruled_out(logits: Tensor, *classes: int, to: float = -math.inf) -> Outputs:
    return Outputs(
        logits.detach().float().index_fill(1, torch.tensor(classes, dtype=torch.int64), to).requires_grad_()
    )


@pytest.mark.parametrize("loss", [KD(), KD(1.0), DKD(), DIST()], ids=["kd", "kd at 1", "dkd", "dist"])
@pytest.mark.parametrize("both", [False, True], ids=["teacher", "both"])
@pytest.mark.parametrize("classes", [(3,), (3, 4), (0,), (0, 1, 2, 3)], ids=str)
def test_a_probability_of_0_is_the_limit_of_a_small_one(loss, both, classes):
    """−1e4 gives a probability of exactly 0 in float32 too, and no infinity on the way."""
    mixed = mixed_of(6, weight=torch.zeros(6))
    values, gradients = [], []
    for low in (-math.inf, -1e4):
        teacher = ruled_out(outputs_of(6, seed=1).logits, *classes, to=low)
        student = ruled_out(outputs_of(6).logits, *(classes if both else ()), to=low)
        value = loss(student, teacher, mixed)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, student.logits)[0])
    assert values[0].isfinite()
    assert gradients[0].isfinite().all()
    if not isinstance(
        loss, DKD
    ):  # where all the rest is ruled out, −1e4 is a distribution over it, −inf is none
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)


def test_kd_with_a_class_ruled_out_by_hand():
    """The teacher says (1/2, 1/2, 0), the student 1/3 each: log(3/2)."""
    teacher = Outputs(torch.tensor([[0.0, 0.0, -math.inf]]))
    value = KD(1.0)(Outputs(torch.zeros(1, 3)), teacher, mixed_of(1, num_classes=3))
    assert value.item() == pytest.approx(math.log(1.5))
    assert divergence(torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])).item() == math.inf


def test_scores_of_a_student_with_a_class_ruled_out():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert entropy(logits).item() == pytest.approx(math.log(2))
    assert margin(logits).item() == 0
    assert least_confidence(logits).item() == 0.5
    assert TrueLoss()(logits, torch.tensor([0])).item() == pytest.approx(math.log(2))
    assert TrueLoss()(logits, torch.tensor([UNLABELLED])).item() == 0


class RulesOut(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = TinyNet(seed=seed)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).index_fill(1, torch.tensor([3, 4]), -math.inf)


@pytest.mark.parametrize("marks_faulty", [False, True])
@pytest.mark.parametrize("method", [kd(), unix(), mixup()], ids=["kd", "unix", "mixup"])
@pytest.mark.parametrize("student", [TinyNet, RulesOut])
def test_an_own_loop_learns_from_a_teacher_that_rules_classes_out(student, method, marks_faulty):
    distiller = Distiller(student(seed=1), RulesOut(seed=2), method, marks_faulty=marks_faulty)
    result = distiller.step(images_of(8))
    result.loss.backward()
    assert 0 < result.loss.item() < 100
    assert result.answers.finite is None or result.answers.finite.all()


def test_only_rows_that_are_no_distribution_are_faulty():
    rows = [[0.0, -math.inf], [-math.inf, -math.inf], [math.nan, 0.0], [math.inf, 0.0], [math.nan, -math.inf]]
    assert answered(torch.tensor(rows)).tolist() == [True, False, False, False, False]


def test_a_mix_of_answers_rules_out_what_either_does_unless_it_has_no_share():
    ranked, partner = torch.tensor([[-math.inf, 1.0, 2.0]]), torch.tensor([[0.0, -math.inf, 4.0]])
    given = [mixed_logits(ranked, partner, torch.tensor([[m]])).tolist()[0] for m in (0.0, 0.25, 1.0)]
    assert given == [[-math.inf, 1.0, 2.0], [-math.inf, -math.inf, 2.5], [0.0, -math.inf, 4.0]]
