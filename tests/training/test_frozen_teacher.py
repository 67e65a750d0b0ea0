"""The forms in which a frozen teacher is asked: the same logits, a teacher left as it was, a choice that is kept.

Nothing is timed here: what a forward takes is made up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from running import DATA, alone, distilled, has_compiler, make_teacher, metrics, model_bytes, weights
from slow import TinyNet, images_of
from unixkd.config import AnswersConfig, LossConfig, ModelConfig
from unixkd.errors import UserError
from unixkd.method.network import Network
from unixkd.models import create_model
from unixkd.models.card import ModelCard, PixelModel
from unixkd.training import frozen_teacher
from unixkd.training.compare import decide_once
from unixkd.training.display import Event, Note, silent
from unixkd.training.fingerprint import teacher_fingerprint
from unixkd.training.frozen_teacher import (
    LEAST_WORK,
    ROUNDS,
    CompiledNet,
    RefusedError,
    TeacherForms,
    best_form,
    fold,
)
from unixkd.training.resolved import build_run, read_method, rows_asked
from unixkd.training.run import end_epoch, epoch_steps, run, start
from unixkd.training.run_folder import RunFolder

CPU = torch.device("cpu")


@torch.no_grad()
def model_of(net: nn.Module, size: int = 16) -> PixelModel:
    """A model in eval mode, whose BatchNorm has statistics of its own."""
    images = images_of(16, size=size)
    model = PixelModel(net, ModelCard("net", 5, 3, (0.5,) * 3, (0.25,) * 3))
    for _ in range(10):
        model(images)
    return model.eval()


def forms_of(model: PixelModel, dtype: torch.dtype | None = None, size: int = 16) -> TeacherForms:
    """The forms of a teacher; what they note is an error."""
    return TeacherForms(model, dtype, torch.channels_last, lambda: images_of(8, 1, size), pytest.fail)


def no_batch() -> Tensor:
    raise AssertionError("nothing is probed here")


# Folding


def test_a_fold_by_hand():
    """BN(2x) with mean 3, variance 4, weight 5 and bias 7 is (2x − 3) / 2 · 5 + 7 = 5x − 0.5."""
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)
    nn.init.constant_(conv.weight, 2.0)
    norm.running_mean, norm.running_var = torch.tensor([3.0]), torch.tensor([4.0])
    norm.weight.data, norm.bias.data = torch.tensor([5.0]), torch.tensor([7.0])
    net = nn.Sequential(conv, norm).eval()
    assert fold(net, lambda: net(torch.ones(1, 1, 1, 1))) == 1
    assert (net[0].weight.item(), net[0].bias.item()) == pytest.approx((5.0, -0.5))
    assert isinstance(net[1], nn.Identity)
    assert not net[0]._forward_hooks


@pytest.mark.parametrize(("name", "left"), [("resnet8", 0), ("MobileNetV2", 0), ("wrn_16_1", 7)])
def test_a_network_of_the_family_keeps_its_logits(name, left):
    """A wide ResNet has BatchNorm before its convolutions: of 13 in it 6 follow one within their block.

    The stem's follows one too, whose output is also the first block's shortcut.
    """
    model = model_of(create_model(name, 5, 3), size=32)
    folded = forms_of(model, size=32).make("folded")
    images = images_of(3, size=32)
    with torch.no_grad():
        assert torch.allclose(folded(images), model(images), atol=1e-5, rtol=1e-4)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == left


class Twice(TinyNet):
    """A convolution that is used twice, each time before another BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 3, 1), nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        for norm in self.norms:
            images = norm(self.conv(images))
        return super().forward(images)


class Branching(TinyNet):
    """What a convolution gives is used without BatchNorm too."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem[0](images)
        return self.head(self.body(self.stem[1](x) + x).mean(dim=(2, 3)))


class ByShape(TinyNet):
    """What is done depends on the batch: on eight images no BatchNorm follows, else it does."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem[0](images)
        return self.head(self.body(self.stem[1](x) if len(x) != 8 else x).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("network", "layer"), [(Twice, "norms.0"), (Twice, "norms.1"), (Branching, "stem.1")]
)
def test_what_is_used_twice_is_not_folded(network, layer):
    folded = forms_of(model_of(network())).make("folded")
    assert type(folded.net.get_submodule(layer)) is nn.BatchNorm2d
    assert type(folded.net.body[1]) is nn.Identity


def test_a_teacher_that_would_give_other_logits_is_asked_as_it_is():
    model, notes = model_of(ByShape()), []
    forms = replace(forms_of(model), note=notes.append)
    assert forms.get("folded") == "eager"
    assert len(notes) == 1
    assert notes[0].startswith("the teacher cannot be folded here: its logits would differ by ")


def test_nothing_to_fold_is_said():
    with pytest.raises(RefusedError, match="no BatchNorm follows a convolution"):
        forms_of(model_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)))).make("folded")


def test_a_teacher_stays_as_it_was():
    model = model_of(TinyNet()).train()
    before, state = teacher_fingerprint(model), {k: v.clone() for k, v in model.state_dict().items()}
    folded = forms_of(model, torch.bfloat16).make("folded")
    assert folded is not model
    assert teacher_fingerprint(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m.training for m in (*model.modules(), *folded.modules()))
    assert not any(p.requires_grad for p in folded.parameters())


# The choice


def made_up(monkeypatch: pytest.MonkeyPatch, work: float, setup: float, **share: float) -> list[str]:
    """A batch takes so long that a teacher's work on 80 images takes `work`; what was compiled is listed."""
    compiled = []

    def interleaved(calls: dict[str, Any], rounds: int, device: torch.device) -> dict[str, list[float]]:
        return {form: [2.0 * share.get(form, 1.0)] * rounds for form in calls}

    def seconds(forms: TeacherForms, call: Callable[[], object]) -> float:
        call()
        return setup if compiled else work * len(forms.images) / 80

    def compile_(forms: TeacherForms) -> PixelModel:
        compiled.append("compiled")
        return forms.make("folded")

    monkeypatch.setattr(frozen_teacher, "SLOWEST", 0.0)
    monkeypatch.setattr(frozen_teacher, "interleaved", interleaved)
    monkeypatch.setattr(TeacherForms, "seconds", seconds)
    monkeypatch.setattr(TeacherForms, "compiled", compile_)
    return compiled


@pytest.mark.parametrize(
    ("folded", "compiled", "chosen"),
    [(0.9, 0.5, "compiled"), (0.9, 0.89, "folded"), (0.99, 0.98, "eager"), (1.5, 1.5, "eager")],
)
def test_the_probe_decides_by_what_a_form_saves_in_the_run(folded, compiled, chosen, monkeypatch):
    """Of 1,200 s, to compile takes 30 s: it has to save more than 2.5 % of them."""
    notes: list[str] = []
    forms = replace(forms_of(model_of(TinyNet())), note=notes.append)
    made_up(monkeypatch, 1200.0, 30.0, folded=folded, compiled=compiled)
    assert forms.choose(80.0, 256) == chosen
    assert notes == [
        f"teacher {chosen}: of its eager forward's time here it takes folded {folded:.0%}, compiled {compiled:.0%}; "
        "set up in 30 s, for about 20 minutes of eager forwards"
    ]


def test_a_run_that_is_short_is_not_probed(monkeypatch):
    model = model_of(TinyNet())
    assert replace(forms_of(model), batch=no_batch).choose(1e4, 256) == "eager"
    compiled = made_up(monkeypatch, LEAST_WORK - 1.0, 0.0, folded=0.1, compiled=0.1)
    assert forms_of(model).choose(80.0, 256) == "eager"
    assert compiled == []


def test_a_form_that_cannot_be_had_is_not_chosen():
    assert best_form({"eager": 1.0}, 1e6, 1.0) == "eager"
    assert best_form({"eager": 1.0, "compiled": 0.9}, 1e6, 1.0) == "compiled"
    assert ROUNDS > 1


def test_a_compiler_that_fails_is_said_and_the_teacher_is_folded(monkeypatch):
    def compiled(forms: TeacherForms) -> PixelModel:
        raise RuntimeError("No working C++ compiler found\nand so on")

    monkeypatch.setattr(TeacherForms, "compiled", compiled)
    notes: list[str] = []
    forms = replace(forms_of(model_of(TinyNet())), note=notes.append)
    assert forms.get("compiled") == "folded"
    assert notes == ["the teacher cannot be compiled here: No working C++ compiler found"]


# Runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def form_in(folder: Path) -> str:
    return yaml.safe_load((folder / "run.yaml").read_text())["train"]["frozen_teacher"]


def test_forwards_that_a_run_will_ask_for(teacher, tmp_path):
    """100 images in batches of 32, 32, 32 and 4, two epochs; unix keeps 24 and 4 of them, kd all."""

    def asked(method: str, **options: Any) -> float:
        config = replace(distilled(teacher, method), **options)
        built = build_run(config, CPU)
        return rows_asked(config, built.method, built.data)

    assert (asked("kd"), asked("unix")) == (200, 152)
    store = AnswersConfig(str(tmp_path / "answers"))
    one_view = {"answers": store, "data": replace(DATA, views=1)}
    assert asked("kd", **one_view) == pytest.approx(100)
    run(replace(distilled(teacher, "kd"), **one_view), tmp_path / "run")
    assert asked("kd", **one_view) == pytest.approx(0)


@pytest.mark.parametrize("method", ["kd", "unix"])
def test_a_run_with_a_folded_teacher_is_the_same_but_for_rounding(method, teacher, tmp_path):
    for form in ("eager", "folded"):
        run(distilled(teacher, method, frozen_teacher=form), tmp_path / form)
        assert form_in(tmp_path / form) == form
    eager, folded = (weights(tmp_path / form) for form in ("eager", "folded"))
    assert max((eager[name] - folded[name]).abs().max() for name in eager) <= 1e-3
    images = [line["images"] for line in metrics(tmp_path / "eager")]
    assert images == [line["images"] for line in metrics(tmp_path / "folded")]


def test_auto_leaves_a_small_run_alone(teacher, tmp_path):
    run(distilled(teacher, "kd"), tmp_path / "run")
    assert form_in(tmp_path / "run") == "eager"


def test_a_resumed_run_keeps_its_form(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(TeacherForms, "choose", lambda *_: "folded")
    config = distilled(teacher, "unix")
    run(config, tmp_path / "whole")
    begun = start(config, RunFolder(tmp_path / "run"), "new", silent)
    for _ in epoch_steps(begun):
        pass
    end_epoch(begun)
    next(epoch_steps(begun))  # into the second epoch
    monkeypatch.setattr(TeacherForms, "choose", lambda *_: pytest.fail("decided anew"))
    run(config, tmp_path / "run", mode="resume")
    assert form_in(tmp_path / "run") == "folded"
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")
    with pytest.raises(UserError, match=r"train\.frozen_teacher: folded then, eager now"):
        run(distilled(teacher, "unix", frozen_teacher="eager"), tmp_path / "run", mode="resume")


def test_a_run_of_an_older_version_goes_on_eagerly(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(TeacherForms, "choose", lambda *_: "eager")
    config = distilled(teacher, "kd")
    begun = start(config, RunFolder(tmp_path / "run"), "new", silent)
    for _ in epoch_steps(begun):
        pass
    end_epoch(begun)
    begun.folder.close()
    saved = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    del saved["train"]["frozen_teacher"]
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump(saved))
    monkeypatch.setattr(TeacherForms, "choose", lambda *_: pytest.fail("decided anew"))
    run(config, tmp_path / "run", mode="resume")


@pytest.mark.parametrize("form", ["folded", "compiled"])
def test_losses_on_features_read_the_teacher_as_it_is(form, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(TeacherForms, "choose", lambda *_: pytest.fail("probed"))
    config = replace(distilled(teacher, "kd", epochs=1), loss=LossConfig(sp=1.0))
    run(config, tmp_path / "run")
    assert form_in(tmp_path / "run") == "eager"
    with pytest.raises(UserError, match="at and sp read features inside the teacher"):
        read_method(replace(config, train=replace(config.train, frozen_teacher=form)), CPU)


def test_on_a_gpu_it_is_folded_at_most(teacher):
    cuda = torch.device("cuda")
    read_method(distilled(teacher, "kd", frozen_teacher="folded"), cuda)
    with pytest.raises(UserError, match="compiled on a CPU only, not on cuda"):
        read_method(distilled(teacher, "kd", frozen_teacher="compiled"), cuda)


def test_a_comparison_without_bf16_units_is_eager(teacher, tmp_path):
    config = decide_once(distilled(teacher, "kd"), tmp_path, pytest.fail)
    train = config.train
    assert (train.precision, train.teacher_precision, train.frozen_teacher) == ("fp32", "fp32", "eager")


# Compiled


def needs_compiler(test: Callable[..., None]) -> Callable[..., None]:
    """Marks of a test that compiles."""
    test = pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")(test)
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore")(test))  # torch's own, of its compiler


def logits(model: PixelModel, dtype: torch.dtype | None, images: Tensor) -> Tensor:
    with torch.no_grad():
        return Network(model, dtype=dtype)(images).logits.float()


@needs_compiler
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_compiled_teacher_gives_the_eager_logits_on_batches_of_any_size(dtype):
    """As far from fp32's as the eager ones at most 1.5 times; one set-up serves all sizes and both layouts."""
    torch._dynamo.reset()
    model = model_of(TinyNet(width=16))
    compiled = forms_of(model, dtype).make("compiled")
    assert isinstance(compiled.net, CompiledNet)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (1, 2, 5, 8, 33):
            images = images_of(rows, seed=rows, size=16)
            full, eager = logits(model, None, images), logits(model, dtype, images)
            allowed = max(1.5 * (eager - full).norm(), 1e-5 * full.norm())
            for layout in (torch.contiguous_format, torch.channels_last):
                ours = logits(compiled, dtype, images.to(memory_format=layout))
                assert ours.shape == (rows, 5)
                assert (ours - full).norm() <= allowed


SMALL_NETWORK = """
from torch import nn


class Small(nn.Sequential):
    def __init__(self, num_classes, in_channels):
        layers = [nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
        super().__init__(*layers, nn.Linear(8 * 6 * 6, num_classes))
"""


@needs_compiler
def test_a_compiled_teacher_is_the_same_run_again_and_resumed(tmp_path):
    """Resumed after a kill, compiled anew; the mean loss is the eager run's but for rounding."""
    (tmp_path / "small.py").write_text(SMALL_NETWORK)
    code = f"{tmp_path}/small.py:Small"
    run(alone(code, epochs=1), tmp_path / "teacher")
    config = distilled(tmp_path / "teacher", "unix", frozen_teacher="compiled")
    config = replace(config, teacher=ModelConfig(str(tmp_path / "teacher"), code=code))
    notes: list[Event] = []
    run(config, tmp_path / "whole", display=notes.append)
    assert not any(isinstance(event, Note) and "cannot" in event.text for event in notes)
    run(replace(config, train=replace(config.train, frozen_teacher="eager")), tmp_path / "eager")
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("whole", "eager")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    torch._dynamo.reset()
    begun = start(config, RunFolder(tmp_path / "run"), "new", silent)
    for _ in epoch_steps(begun):
        pass
    end_epoch(begun)
    begun.folder.close()
    torch._dynamo.reset()
    run(config, tmp_path / "run", mode="resume")
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "whole")


@needs_compiler
def test_without_a_compiler_the_teacher_is_folded(monkeypatch):
    torch._dynamo.reset()
    notes: list[str] = []
    forms = replace(forms_of(model_of(TinyNet(width=6))), note=notes.append)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        assert forms.get("compiled") == "folded"
    assert len(notes) == 1
    assert "the teacher cannot be compiled here: " in notes[0]
