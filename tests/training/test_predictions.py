"""Accuracy, agreement and calibration against slow loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slow import TinyNet, images_of, labels_of
from unixkd.method.batch import Batch
from unixkd.training.predictions import (
    Predictions,
    calibration_curve,
    expected_calibration_error,
    join_predictions,
    predict,
    predict_each,
)


def batches(n: int, size: int, *, labels: bool = True) -> list[Batch]:
    images, targets = images_of(n), labels_of(n)
    return [Batch(images[i : i + size], targets[i : i + size] if labels else None) for i in range(0, n, size)]


def slow_calibration_error(confidence: list[float], correct: list[bool], bins: int) -> float:
    """Guo et al.: bins (0, 1/B], (1/B, 2/B], …; Σ share of the bin · |its accuracy − its confidence|."""
    error = 0.0
    for b in range(bins):
        inside = [
            i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)
        ]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean)
    return error


@given(
    values=st.lists(st.tuples(st.integers(0, 64), st.booleans()), min_size=1, max_size=40),
    bins=st.sampled_from([1, 2, 8, 16]),
)
def test_calibration_error_matches_its_slow_version(values, bins):
    confidence = [c / 64 for c, _ in values]  # 64ths: on and between the edges, exact in binary
    correct = [c for _, c in values]
    ours = expected_calibration_error(torch.tensor(confidence), torch.tensor(correct), bins)
    assert ours == pytest.approx(slow_calibration_error(confidence, correct, bins), abs=1e-12)


def test_calibration_error_by_hand():
    """Two bins: 0.25 (half right) and 0.75 (all right): (2 · 0.25 + 1 · 0.25) / 3."""
    confidence, correct = torch.tensor([0.25, 0.25, 0.75]), torch.tensor([True, False, True])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(0.25)
    assert expected_calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0.0


@given(
    values=st.lists(st.tuples(st.integers(0, 64), st.booleans()), min_size=1, max_size=40),
    bins=st.sampled_from([1, 2, 8, 16]),
)
def test_the_calibration_curve_has_the_bins_of_the_error(values, bins):
    """Its points give the error: their distance from the diagonal, weighted by their images; none is empty."""
    confidence, correct = torch.tensor([c / 64 for c, _ in values]), torch.tensor([c for _, c in values])
    curve = calibration_curve(confidence, correct, bins)
    assert sum(point.images for point in curve) == len(values)
    assert all(point.images and point.low <= point.confidence <= point.high for point in curve)
    error = sum(point.images * abs(point.confidence - point.accuracy) for point in curve) / len(values)
    assert error == pytest.approx(expected_calibration_error(confidence, correct, bins), abs=1e-12)


def test_several_models_are_asked_about_the_same_batches_with_their_top_classes():
    models, read = [TinyNet(seed=1), TinyNet(seed=2)], []
    counted = (read.append(1) or batch for batch in batches(10, 4))
    both = predict_each(models, counted, top=2)
    assert len(read) == 3
    for model, said in zip(models, both, strict=True):
        alone = predict(model, batches(10, 10))
        assert torch.equal(said.classes, alone.classes)
        torch.testing.assert_close(said.confidence, alone.confidence)
        assert alone.top is None
        with torch.no_grad():
            order = model.eval()(images_of(10)).argsort(dim=1, descending=True)
        assert torch.equal(said.top, order[:, :2])


def test_parts_of_processes_are_joined_in_the_order_of_the_split():
    top = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 1]])

    def part(rows: list[int]) -> Predictions:
        return Predictions(
            top[rows, 0], torch.tensor(rows) / 4, torch.tensor(rows), torch.tensor(rows), top[rows]
        )

    joined = join_predictions([part([0, 3]), part([2, 1])])
    assert joined.classes.tolist() == joined.labels.tolist() == [0, 1, 2, 3]
    assert joined.confidence.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert torch.equal(joined.top, top)
    assert joined.index is None


@pytest.mark.parametrize("size", [1, 4, 10, 64])
def test_predictions_do_not_depend_on_the_batch_size(size):
    model = TinyNet(seed=1).train()
    model.stem.eval()
    flags = {name: m.training for name, m in model.named_modules()}
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    answers = predict(model, batches(10, size))
    assert {name: m.training for name, m in model.named_modules()} == flags
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())

    images, labels, right = images_of(10), labels_of(10), 0
    model.eval()
    with torch.no_grad():
        for i in range(10):
            p = torch.softmax(model(images[i : i + 1]), dim=1)[0]
            assert answers.classes[i] == p.argmax()
            assert answers.confidence[i].item() == pytest.approx(p.max().item(), abs=1e-6)
            right += int(p.argmax() == labels[i])
    assert len(answers) == 10
    assert answers.accuracy == pytest.approx(right / 10)
    assert not answers.confidence.requires_grad


def test_predictions_of_unlabelled_images():
    answers = predict(TinyNet(), batches(6, 4, labels=False))
    assert answers.labels is None
    assert answers.accuracy is None
    assert answers.calibration_error is None
    assert len(answers.classes) == 6


def test_sixteen_bit_networks_are_read_in_float32():
    class Half(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)).bfloat16()

    assert predict(Half(), batches(4, 4)).confidence.dtype == torch.float32


def test_agreement_and_accuracy_by_hand():
    labels = torch.tensor([0, 1, 2, 3])
    a = Predictions(torch.tensor([0, 1, 2, 0]), torch.full((4,), 0.5), labels)
    b = Predictions(torch.tensor([0, 1, 3, 3]), torch.full((4,), 0.5), labels)
    assert (a.accuracy, b.accuracy) == (0.75, 0.75)
    assert a.agreement(b) == b.agreement(a) == 0.5
    assert a.agreement(a) == 1.0
    assert a.calibration_error == pytest.approx(0.25)
