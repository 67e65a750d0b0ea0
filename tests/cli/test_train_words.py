"""`train` speaks of the model it trains, in its errors too: no student is trained there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from running import SMALL, alone, call
from unixkd.config import ModelConfig, TrainConfig
from unixkd.errors import UserError
from unixkd.models.registry import create_model
from unixkd.names import current
from unixkd.training import precision, resolved
from unixkd.training.device import pick_device
from unixkd.training.run import run

NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.fc = torch.nn.Linear(64 * in_channels, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1)){}
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--model is missing"),
        (("--model", "resnet8", "--model.pretrained", "true"), "drop --model.pretrained"),
        (("--model", "resnet8", "--model.weights", "none.pth"), "none.pth"),
        (("--model", "resnet88"), "resnet8"),
    ],
)
def test_errors_name_the_model(words, says, tmp_path, capsys):
    assert call("train", *words, "--data", "digits", *SMALL, "--out", tmp_path / "run") in (1, 2)
    told = capsys.readouterr().err
    assert says in told
    assert "student" not in told


def test_a_run_of_train_speaks_of_no_student(tmp_path, capsys):
    assert call("train", "--model", "resnet8", "--data", "digits", *SMALL, "--out", tmp_path / "run") == 0
    captured = capsys.readouterr()
    assert "student" not in captured.out + captured.err


@pytest.mark.parametrize("teacher", [False, True])
def test_a_probe_says_whose_precision_it_found(teacher, monkeypatch):
    monkeypatch.setattr(precision, "candidate", lambda device: "bf16")
    monkeypatch.setattr(precision, "choose_precision", lambda *args, **kwargs: ("bf16", 2.0))
    said: list[str] = []
    model = create_model("resnet8", 10, 1)
    images = lambda: None  # noqa: E731
    device = torch.device("cpu")
    precision.settle(TrainConfig(), model, model if teacher else None, images, device, said.append)
    who = ["student", "teacher"] if teacher else ["model"]
    assert [line.split()[0] for line in said] == who


def test_changed_code_is_the_models_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET.format(""))
    run(alone("net.py:Net", epochs=1), tmp_path / "run")
    Path("net.py").write_text(NET.format(" + 0"))
    with pytest.raises(UserError, match=re.escape("the model's code has changed since")):
        run(alone("net.py:Net", epochs=1), tmp_path / "run", mode="resume")


def test_the_network_is_built_as_the_model(monkeypatch):
    said = []
    create = resolved.build_model

    def watched(*args, **kwargs):
        said.append((kwargs["option"], kwargs["role"]))
        return create(*args, **kwargs)

    monkeypatch.setattr(resolved, "build_model", watched)
    resolved.build_run(alone(), pick_device(alone().train))
    assert said == [("model", "student")]
    assert current() is None
    assert alone().student == ModelConfig("resnet8")
