"""A classifier fitted to features before training: the layer, the fit, what it costs, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from running import IMAGES, alone, everything, metrics, stop_and_resume, summary, weights
from several import together
from unixkd.config import ModelConfig
from unixkd.training.display import Note
from unixkd.training.head import logistic_regression
from unixkd.training.run import run


@given(st.floats(0.01, 100), st.floats(-50, 50))
def test_the_fit_does_not_depend_on_the_features_scale(scale, shift):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    x = (rng.normal(size=(30, 4)) + 2 * np.eye(4)[labels]).astype(np.float32)
    y = (scale * x + shift).astype(np.float32)
    logits = [f @ w.T + b for f in (x, y) for w, b in [logistic_regression(f, labels, 3)]]
    assert np.allclose(logits[0], logits[1], atol=0.02)


def test_the_fit_is_where_its_gradient_is_zero():
    """On standardised features: C · Σ (p − y) xᵀ + w = 0, and for the bias, which is not shrunk, Σ (p − y) = 0."""
    rng = np.random.default_rng(1)
    labels = np.arange(40) % 4
    x = rng.normal(size=(40, 3)).astype(np.float32)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    weight, bias = logistic_regression(x, labels, 4)
    logits = x @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = p - np.eye(4)[labels]
    assert np.allclose(0.01 * error.T @ x + weight, 0, atol=1e-3)
    assert np.allclose(error.sum(0), 0, atol=0.05)


def test_a_class_without_images_is_never_the_answer():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 5)).astype(np.float32)
    weight, bias = logistic_regression(x, np.array([1, 3] * 10), classes=5)
    assert set((x @ weight.T + bias).argmax(1)) <= {1, 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of 10 classes that has learnt something; half a network for fewer classes."""
    folder = tmp_path_factory.mktemp("head") / "run"
    run(alone(epochs=6), folder)
    return folder


def test_the_features_give_a_good_start_and_are_charged(trained, tmp_path):
    notes: list[str] = []

    def display(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    config = replace(alone(epochs=1, lr=0.0, fit_head=True), student=ModelConfig(str(trained)))
    done = run(config, tmp_path / "fitted", display=display)
    assert f"the classifier is fitted to features of {IMAGES} training images" in notes
    assert done["cost"]["images"]["scored"] == IMAGES
    assert done["accuracy"]["last"] > summary(trained)["accuracy"]["last"] - 0.05
    before, after = weights(trained), weights(tmp_path / "fitted")
    moved = {name for name in before if not torch.equal(before[name], after[name]) and "running" not in name}
    assert {name.rpartition(".")[0] for name in moved if "batches" not in name} == {"fc"}


def test_a_random_classifier_is_worse_off(trained, tmp_path):
    """The classifier forgotten, all else as it was, and nothing learnt in the one epoch."""
    state = load_file(trained / "model.safetensors")
    state["fc.weight"] = torch.randn_like(state["fc.weight"])
    save_file(state, tmp_path / "spoilt.safetensors")
    start = replace(
        alone(epochs=1, lr=0.0), student=ModelConfig("resnet8", weights=str(tmp_path / "spoilt.safetensors"))
    )
    spoilt = run(start, tmp_path / "spoilt")["accuracy"]["last"]
    mended = run(replace(start, train=replace(start.train, fit_head=True)), tmp_path / "mended")["accuracy"][
        "last"
    ]
    assert mended > spoilt + 0.2


def test_a_stopped_run_goes_on_with_the_classifier_it_has(tmp_path):
    config = alone(epochs=2, fit_head=True)
    run(config, tmp_path / "whole")
    stop_and_resume(config, tmp_path / "stopped", 1, 5)
    assert everything(tmp_path / "whole") == everything(tmp_path / "stopped")


def test_frozen_batchnorm_keeps_its_statistics(trained, tmp_path):
    """And all else learns; without it they move."""
    config = replace(alone(epochs=1), student=ModelConfig(str(trained)))
    for frozen in (True, False):
        train = replace(config.train, freeze_batchnorm=frozen)
        run(replace(config, train=train), tmp_path / str(frozen))
        before, after = weights(trained), weights(tmp_path / str(frozen))
        same = {name for name in before if torch.equal(before[name], after[name])}
        statistics = {name for name in before if "running" in name or "batches" in name}
        assert same == (statistics if frozen else set())


def test_without_labels_it_is_said(trained, tmp_path):
    notes: list[str] = []
    config = alone(epochs=1, fit_head=True)
    config = replace(config, teacher=ModelConfig(str(trained)), method=replace(config.method, name="kd"))
    config = replace(config, data=replace(config.data, labels=False))
    run(config, tmp_path / "run", display=lambda event: notes.append(getattr(event, "text", "")))
    assert "the classifier is not fitted before training: the images have no labels of two classes" in notes


def test_logits_of_no_linear_layer(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 10, 3)\n        self.unused = nn.Linear(3, 10)\n\n"
        "    def forward(self, x):\n        return self.conv(x).mean((2, 3)) + 0 * self.unused.weight.sum()\n"
    )
    notes: list[str] = []
    config = replace(alone(epochs=1, fit_head=True), student=ModelConfig(f"{tmp_path}/net.py:Net"))
    run(config, tmp_path / "run", display=lambda event: notes.append(getattr(event, "text", "")))
    assert any("no linear layer with a bias gives its logits" in note for note in notes)
    assert metrics(tmp_path / "run")[0]["images"]["scored"] == 0


@pytest.mark.slow
def test_two_processes_have_one_classifier(tmp_path):
    together(2, _fit_in, str(tmp_path / "two"))
    assert summary(tmp_path / "two")["cost"]["images"]["scored"] == IMAGES


def _fit_in(folder: str) -> None:
    run(alone(epochs=1, fit_head=True), Path(folder))
