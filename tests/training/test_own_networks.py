"""A network of the user's own that cannot be used is named, with what is wrong, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from running import SMALL, alone, call, everything
from unixkd.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.errors import UserError
from unixkd.models import create_model, load_student
from unixkd.training.resolved import build_run
from unixkd.training.run import run

MINE = """
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, num_classes, in_channels=1):
        super().__init__()
        self.c, self.n, self.f = nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, num_classes)

    def features(self, x):
        return self.n(self.c(x)).relu().mean((2, 3))

    def forward(self, x):
        return self.f(self.features(x))


class Lazy(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.c, self.n, self.f = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(num_classes)


class Wrapped(Base):
    def forward(self, x):
        return {"logits": super().forward(x), "features": None}


class Unused(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.unused = nn.Linear(3, 3)


class Printing(Base):
    def forward(self, x):
        print("here")
        return super().forward(x)


class Caching(Base):
    def features(self, x):
        self.kept = super().features(x)
        return self.kept


class Tuple(Base):
    def forward(self, x):
        return super().forward(x), x


class TupleInTraining(Base):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


class NoLogits(Base):
    def forward(self, x):
        return {"out": super().forward(x)}


class Maps(Base):
    def forward(self, x):
        return super().forward(x)[:, :, None, None]


class Steps(Base):
    def forward(self, x):
        return super().forward(x)[:, None].expand(-1, 4, -1)


class Ignores(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(1000, in_channels)


class OneLogit(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(1, in_channels)


class Fixed(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.f = nn.Linear(in_channels * 32 * 32, num_classes)

    def features(self, x):
        return x.flatten(1)


class NoForward(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.f = nn.Linear(1, num_classes)


class NeedsGPU(Base):
    def forward(self, x):
        raise AssertionError("Torch not compiled with CUDA enabled")


class BatchMean(Base):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


class Complex(Base):
    def forward(self, x):
        return super().forward(x).to(torch.complex64)


class Integers(Base):
    def forward(self, x):
        return super().forward(x).long()


class Exits(Base):
    def forward(self, x):
        raise SystemExit(3)


class ExtraState(Base):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


class OnlyFew(Base):
    def forward(self, x):
        if len(x) > 2:
            raise ValueError("too many")
        return super().forward(x)


class ExitsOnMany(Base):
    def forward(self, x):
        if len(x) > 2:
            raise SystemExit(3)
        return super().forward(x)


class FailsInEvaluation(Base):
    def forward(self, x):
        if len(x) > 2 and not self.training:
            raise KeyError("eval")
        return super().forward(x)


class NoMemory(Base):
    def forward(self, x):
        if len(x) > 2:
            raise MemoryError
        return super().forward(x)


class NaN(Base):
    def forward(self, x):
        return super().forward(x) * float("nan")


class Frozen(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.requires_grad_(False)


class Detached(Base):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Double(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.double()


class Half(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.f.half()


class Meta(Base):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.to("meta")
"""
CPU = torch.device("cpu")
SHAPES = r"\(2, 10\)"
FAULTS = {
    "Tuple": f"gives tuple, not logits {SHAPES}",
    "NoLogits": f"gives dict, not logits {SHAPES}",
    "Maps": rf"gives \(2, 10, 1, 1\), not logits {SHAPES}",
    "Steps": rf"gives \(2, 4, 10\), not logits {SHAPES}",
    "Ignores": rf"gives \(2, 1000\), not logits {SHAPES}",
    "OneLogit": rf"gives \(2, 1\), not logits {SHAPES}",
    "Fixed": r"RuntimeError: .*mat1 and mat2 .* \(mine.py:Fixed\) \(on images of 1 × 8 × 8, before training",
    "BatchMean": rf"gives \(1, 10\), not logits {SHAPES}",
    "Complex": "gives logits in torch.complex64, not in floating point",
    "Integers": "gives logits in torch.int64, not in floating point",
    "Exits": r"mine.py:\d+: SystemExit: 3 \(mine.py:Exits\) \(on images of 1 × 8 × 8, before training",
    "NoForward": "NotImplementedError: Module .* missing the required",
    "NeedsGPU": "AssertionError: Torch not compiled with CUDA",
    "Double": r"has 'c.weight' in torch.float64: make the network in float32",
    "Half": r"has 'f.weight' in torch.float16: make the network in float32",
    "Meta": "NotImplementedError: Cannot copy out of meta tensor",
}
STUDENTS = {
    "ExtraState": "has '_extra_state' in its state_dict, which is no tensor and cannot be saved",
    "TupleInTraining": f"gives tuple, not logits {SHAPES}",
    "NaN": "gives NaN",
    "Frozen": "cannot be trained: all its parameters are frozen",
    "Detached": "cannot be trained: its logits have no gradient",
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    torch.save(create_model("resnet8", 10, 1).state_dict(), "resnet8.pth")
    return tmp_path


def config(student: str, teacher: ModelConfig | None = None) -> RunConfig:
    data = DataConfig("digits", limit=64)
    return RunConfig(ModelConfig(student), teacher, data=data, train=TrainConfig(epochs=1, batch_size=32))


@pytest.mark.parametrize("name", [*FAULTS, *STUDENTS])
def test_a_student_that_cannot_be_trained_is_named(mine, name):
    with pytest.raises(UserError, match=(FAULTS | STUDENTS)[name]) as raised:
        build_run(config(f"mine.py:{name}", ModelConfig("resnet8", weights="resnet8.pth")), CPU)
    assert f"mine.py:{name}" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "Meta"])
def test_and_so_is_a_teacher(mine, name):
    own = create_model(f"mine.py:{name}", 10, 1)
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in own.state_dict().items()}
    torch.save(state, "own.pth")
    with pytest.raises(UserError, match=FAULTS[name]):
        build_run(config("resnet8", ModelConfig(f"mine.py:{name}", weights="own.pth")), CPU)


@pytest.mark.parametrize("name", ["Unused", "Wrapped", "Printing", "Caching"])
def test_what_is_odd_but_right_is_trained(mine, name):
    assert (
        call("train", "--model", f"mine.py:{name}", *SMALL, "--train.ema_decay", "0.9", "--out", "run") == 0
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OnlyFew", r"mine\.py:\d+: ValueError: too many \(mine\.py:OnlyFew\)"),
        ("ExitsOnMany", r"mine\.py:\d+: SystemExit: 3 \(mine\.py:ExitsOnMany\)"),
        ("FailsInEvaluation", r"mine\.py:\d+: KeyError: .*eval.* \(mine\.py:FailsInEvaluation\)"),
        ("NoMemory", "out of memory with batches of 32 images"),
    ],
)
def test_what_fails_in_training_names_the_line(mine, name, message):
    with pytest.raises(UserError, match=message) as raised:
        run(alone(f"mine.py:{name}", epochs=1), mine / "run")
    assert "\n" not in str(raised.value)


def test_an_error_that_is_none_of_the_network_s_stays_as_it_is(mine, monkeypatch):
    monkeypatch.setattr("unixkd.training.run.record_epoch", lambda *of: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(alone("mine.py:Base", epochs=1), mine / "run")


def test_lazy_layers_take_their_shapes_from_an_image(mine):
    lazy = "mine.py:Lazy"
    assert call("train", "--model", lazy, *SMALL, "--out", "run") == 0
    assert call("train", "--model", lazy, *SMALL, "--out", "again") == 0
    assert everything(Path("run")) == everything(Path("again"))
    assert load_student("run", code=lazy)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    teacher = ModelConfig(lazy, weights="run/model.safetensors")
    built = build_run(config(lazy, teacher), CPU)
    saved = load_student("run", code=lazy).net.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in built.teacher.net.state_dict().items())


def test_plan_takes_lazy_layers_and_names_what_fails(mine, capsys):
    words = ("plan", "--teacher", "resnet8", "--data", "digits", "--method", "kd", "--rounds", "0")
    assert call(*words, "--student", "mine.py:Lazy") == 0
    assert call(*words, "--student", "mine.py:Fixed") == 1
    assert "mine.py:15: RuntimeError" in capsys.readouterr().err


def test_the_look_at_a_network_leaves_it_as_it_is(mine):
    torch.manual_seed(0)
    fresh = create_model("mine.py:Base", 10, 1)
    student = build_run(config("mine.py:Base", ModelConfig("resnet8", weights="resnet8.pth")), CPU).student
    assert all(torch.equal(value, student.net.state_dict()[key]) for key, value in fresh.state_dict().items())
    assert student.net.training
    assert all(parameter.grad is None for parameter in student.parameters())


def test_the_command_line_says_it_in_one_line_and_leaves_no_folder(mine, capsys):
    assert call("train", "--model", "mine.py:Frozen", *SMALL, "--out", "run") == 1
    assert "mine.py:Frozen cannot be trained: all its parameters are frozen" in capsys.readouterr().err
    assert not Path("run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit(3)", r"mine\.py:2: SystemExit: 3 \(mine\.py:Net\)"),
        ("from .beside import x", r"mine\.py:1: ImportError: attempted relative import.*mine\.py:Net\)"),
        ("import gone_from_here", r"mine\.py:1: ModuleNotFoundError: No module named 'gone"),
        ("def f(:", r"mine\.py:1: invalid syntax \(mine\.py:Net\)"),
        ("x = '\0'", r"mine\.py:1: source code .* null bytes \(mine\.py:Net\)"),
        ("def Net(num_classes): raise KeyError", r"mine\.py:1: KeyError: KeyError"),
    ],
)
def test_a_file_that_cannot_be_run_names_the_class(mine, code, message):
    (mine / "mine.py").write_text(code)
    with pytest.raises(UserError, match=message):
        create_model("mine.py:Net", 10)
