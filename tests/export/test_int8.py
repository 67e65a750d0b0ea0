"""Weights of 8 bits: how they are made, what is measured, what is warned of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from running import alone, call, make_teacher
from unixkd.cli.export import say_artefact
from unixkd.data import load_data
from unixkd.export import (
    FORMATS,
    Agreement,
    Artefact,
    Sample,
    export_student,
    formats,
    preparation_of,
    random_sample,
)
from unixkd.export.int8 import Accuracy, is_convolutional, measure
from unixkd.models import ModelCard, PixelModel, create_model, load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("runs") / "run")


def student_of(name: str) -> PixelModel:
    torch.manual_seed(0)
    card = ModelCard(name, 3, 1, (0.4,), (0.1,), 8)
    return PixelModel(create_model(name, 3, 1), card).eval()


@pytest.mark.slow
def test_an_int8_model_is_small_and_measured(trained, tmp_path, capsys, monkeypatch):
    traced, trace = [], formats.trace
    monkeypatch.setattr(formats, "trace", lambda *words: traced.append(words) or trace(*words))
    assert call("export", trained, "--out", tmp_path / "out", "--formats", "onnx,int8") == 0
    assert len(traced) == 1  # for all formats
    told = capsys.readouterr().out
    student, quantised = load_model(trained), FORMATS["int8"].open(tmp_path / "out")
    batch = next(load_data(alone().data).test.eval_batches(1000))
    shares = [
        (net(batch.images.contiguous()).argmax(1) == batch.labels).float().mean()
        for net in (quantised, student)
    ]
    line = f"accuracy {100 * shares[0]:.2f} % (in fp32 {100 * shares[1]:.2f} %) on 359 labelled evaluation images"
    assert line in told
    assert line in (tmp_path / "out" / "README.md").read_text()
    weights = sum(value.numel() for value in student.net.parameters())
    assert (tmp_path / "out" / "model.int8.onnx").stat().st_size < 2 * weights  # 4 bytes each in fp32
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "model.onnx",
        "model.int8.onnx",
        "predict.py",
    }
    kinds = {node.op_type for node in onnx.load(tmp_path / "out" / "model.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} < kinds


def test_a_loss_is_warned_of_by_name(capsys):
    agreement = Agreement(72, 60, 3.0, within=False)
    for exported_, told in ((0.90, True), (0.945, False)):
        say_artefact(Artefact("int8", (), agreement, Accuracy(200, 0.95, exported_)), Sample((), "photos"))
        assert ("WARNING: int8 loses 5.0 points of accuracy, more than 1" in capsys.readouterr().out) == told


def test_without_labels_nothing_is_measured(capsys):
    student = student_of("resnet8")
    assert measure(student, student, random_sample(student.card, 8), 8) is None
    say_artefact(Artefact("int8", (), Agreement(72, 60, 3.0, within=False)), Sample((), "photos"))
    assert "accuracy not measured" in capsys.readouterr().out


def test_an_image_without_a_label_is_not_measured_on():
    data = load_data(alone().data)
    labels = data.test.labels.clone()
    labels[:300] = -1
    sample = Sample((), "digits", replace(data, test=replace(data.test, labels=labels)))
    right = dict(zip(map(bytes, data.test.images.numpy()), data.test.labels.tolist(), strict=True))

    def knows(pixels: torch.Tensor) -> torch.Tensor:
        images = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        wanted = torch.tensor([right[bytes(image.numpy())] for image in images])
        return torch.nn.functional.one_hot(wanted, 10)

    assert measure(knows, knows, sample, 8) == Accuracy(59, 1.0, 1.0)


@pytest.mark.slow
def test_without_training_images_there_is_no_int8(tmp_path):
    student = student_of("resnet8")
    sample = random_sample(student.card, 8)
    made, failed = export_student(student, tmp_path, ["int8"], sample, preparation_of(student.card, 8))
    assert made == []
    assert failed == [
        "int8 could not be exported: it is calibrated by training images, and there are none: give --data"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_logits_that_are_not_finite_are_deleted(trained, tmp_path, monkeypatch, capsys):
    ill = FORMATS["int8"]._replace(
        write=lambda subject, folder: (folder / "model.int8.onnx").write_bytes(b""),
        open=lambda folder, code=None: lambda pixels: torch.full((len(pixels), 10), float("nan")),
    )
    monkeypatch.setitem(FORMATS, "int8", ill)
    assert call("export", trained, "--out", tmp_path / "out", "--formats", "int8") == 1
    assert "int8 gives logits that are not finite and was deleted" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_where_the_weights_lie_decides_how_they_are_quantised():
    weights = [
        numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in (("c", (4, 3, 1, 1)), ("m", (13, 1)))
    ]
    nodes = [helper.make_node("Conv", ["x", "c"], ["y"]), helper.make_node("MatMul", ["y", "m"], ["z"])]
    assert not is_convolutional(helper.make_model(helper.make_graph(nodes, "g", [], [], weights)))
    assert is_convolutional(helper.make_model(helper.make_graph(nodes[:1], "g", [], [], weights)))


@pytest.mark.slow
def test_products_of_matrices_need_no_training_images(tmp_path):
    """Scales of their activations are found for each input."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 3))
    student = PixelModel(net, ModelCard("mine.py:Net", 3, 1, (0.5,), (0.2,), 8)).eval()
    sample = random_sample(student.card, 8)
    (made,), failed = export_student(student, tmp_path, ["int8"], sample, preparation_of(student.card, 8))
    assert failed == []
    assert made.accuracy is None
    assert 0 < made.agreement.largest < 0.1
    assert made.size < 2 * sum(value.numel() for value in net.parameters())
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.int8.onnx").metadata_props}
    assert said["quantisation"] == "dynamic, of matrix products"
