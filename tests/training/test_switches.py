"""Every switch that only makes a run faster leaves its result as it is: on is off.

Runs are held against each other bit by bit where the arithmetic is the same, else within a tolerance that
is far below what another seed changes. `train.graph` is in test_capture.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from running import alone, distilled, has_compiler, metrics, summary, weights
from slow import RowCounter, images_of, labels_of
from unixkd.config import AnswersConfig, DataConfig, MethodConfig, RunConfig
from unixkd.data import load_data
from unixkd.distiller import Distiller
from unixkd.method.losses import KD, CrossEntropy
from unixkd.method.objective import Term
from unixkd.method.step import StepResult
from unixkd.method.unix import METHODS
from unixkd.models import create_model, load_model
from unixkd.training.engine import Engine
from unixkd.training.predictions import predict
from unixkd.training.run import run

DATA = DataConfig("digits", limit=128)
EXACT = 0.0
ROUNDING = 1e-4
"""Sums in another order: a step differs in the last bits of fp32, which eight steps make larger."""
SEED = 0.1
"""Another seed changes some weight by more than this."""

Made = Callable[[RunConfig], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """A configuration to its run folder, each run once."""
    place, done = tmp_path_factory.mktemp("runs"), []

    def make(config: RunConfig) -> Path:
        if config not in done:
            done.append(config)
            run(config, place / str(len(done) - 1))
        return place / str(done.index(config))

    return make


@pytest.fixture(scope="module")
def teacher(made) -> Path:
    return made(replace(alone(epochs=1), data=DATA))


def base(teacher: Path, method: str | MethodConfig = "kd", **train: Any) -> RunConfig:
    """Two epochs of four steps."""
    return replace(distilled(teacher, method, eval_every=2, **train), data=DATA)


def distance(a: Path, b: Path) -> float:
    """The largest difference of any weight or buffer."""
    mine, theirs = weights(a), weights(b)
    return max((mine[name].double() - theirs[name].double()).abs().max().item() for name in mine)


def trained(folder: Path) -> list[Any]:
    """The images that a run has charged."""
    return [line["images"] for line in metrics(folder)]


# Options of training

SWITCHES: dict[str, tuple[dict[str, Any], float]] = {
    # other kernels, or the same ones after a reordering of the images
    "channels_last": ({"channels_last": False}, ROUNDING),
    # one kernel may contract a · b + c, which several cannot
    "fused": ({"fused": False}, ROUNDING),
    # nothing in a short run is as small as 1e-38
    "flush_denormal": ({"flush_denormal": False}, EXACT),
    # where the memory comes from does not change what is computed in it
    "keep_memory": ({"keep_memory": False}, EXACT),
    # there is none on a CPU
    "graph": ({"graph": False}, EXACT),
}


@pytest.mark.parametrize("method", ["kd", "unix"])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_of_training_leaves_the_result(name, method, made, teacher):
    changes, tolerance = SWITCHES[name]
    on, off = made(base(teacher, method)), made(base(teacher, method, **changes))
    assert distance(on, off) <= tolerance
    assert trained(on) == trained(off)


@pytest.mark.parametrize("method", ["kd", "unix"])
def test_another_seed_is_far_from_any_tolerance(method, made, teacher):
    assert distance(made(base(teacher, method)), made(base(teacher, method, seed=1))) > SEED


@pytest.mark.parametrize(
    "optimizer", [{"nesterov": True}, {"optimizer": "adamw", "lr": 1e-3}, {"momentum": 0.0}]
)
def test_the_fused_kernel_is_the_plain_one(optimizer, made, teacher):
    on, off = (made(base(teacher, fused=fused, **optimizer)) for fused in (True, False))
    assert distance(on, off) <= ROUNDING
    assert distance(on, made(base(teacher))) > ROUNDING


@pytest.mark.parametrize("wanted", [True, False])
def test_the_switches_reach_the_step(wanted, tmp_path, monkeypatch):
    """Else they could not change anything, and the comparisons above would say nothing."""
    seen: list[tuple[bool, bool, bool]] = []
    original = Engine.step

    def step(engine: Engine, *rest: Any) -> StepResult:
        tiny = torch.tensor([1e-39]) * torch.tensor([0.5])
        last = any(not p.is_contiguous() for p in engine.student.parameters())
        seen.append((last, bool(engine.optimizer.defaults["fused"]), tiny.item() == 0))
        return original(engine, *rest)

    monkeypatch.setattr(Engine, "step", step)
    config = replace(alone(epochs=1, channels_last=wanted, fused=wanted, flush_denormal=wanted), data=DATA)
    run(config, tmp_path / "run")
    assert seen == [(wanted, wanted, wanted)] * 4
    assert (torch.tensor([1e-39]) * torch.tensor([0.5])).item() > 0  # the process is as it was


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_compiled_networks_give_the_same_result(made, teacher):
    """Fused kernels round elsewhere; no batch falls back to running uncompiled, as one too many kinds would."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        on, off = made(base(teacher, "unix", compile=True)), made(base(teacher, "unix"))
    assert distance(on, off) <= 10 * ROUNDING
    assert trained(on) == trained(off)


# Stored answers: the rest is in test_answers_runs.py

STEP_CURVE = MethodConfig(curve="step", mix_from=0.25)


@pytest.mark.parametrize(("method", "fill"), [("kd", "epoch"), (STEP_CURVE, "lazy")], ids=["kd", "unix"])
def test_stored_answers_are_the_teachers(method, fill, made, teacher, tmp_path):
    """Each image has two views, one an epoch: the first run asks, the second does not, the third has no store."""
    config = replace(base(teacher, method), data=replace(DATA, views=2))
    answers = AnswersConfig(str(tmp_path / "answers"), precision="fp32", fill=fill)
    for name in ("filling", "full"):
        run(replace(config, answers=answers), tmp_path / name)
    # The teacher sees other batches than without a store, which may change the order of its sums.
    assert distance(tmp_path / "filling", made(config)) <= ROUNDING
    assert distance(tmp_path / "full", tmp_path / "filling") == EXACT
    pure, kept = (32, 32) if method == "kd" else (8, 24)
    images = summary(tmp_path / "full")["cost"]["images"]
    assert images["teacher_cached"] == 8 * pure
    assert images["teacher_forwarded"] == 8 * (kept - pure)


# Data


@pytest.mark.parametrize("views", [9, 1000])
def test_as_many_views_as_there_are_is_no_limit(views, made, teacher):
    config = base(teacher)
    limited = made(replace(config, data=replace(DATA, views=views)))
    assert distance(limited, made(config)) == EXACT
    assert distance(made(replace(config, data=replace(DATA, views=2))), made(config)) > ROUNDING


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two classes of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for number in range(5):
            pixels = (images_of(1, seed=number, size=10)[0, 0] * 128 + 127 * label).byte().numpy()
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_images_in_memory_are_those_on_disk(pictures, made):
    data = DataConfig(f"folder:{pictures}", size=8, crop_padding=1, workers=0)
    config = replace(alone(batch_size=4), data=data)
    on, off = (made(replace(config, data=replace(data, in_memory=wanted))) for wanted in (True, False))
    assert distance(on, off) == EXACT
    assert [line["loss"] for line in metrics(on)] == [line["loss"] for line in metrics(off)]


# bf16

NETS = ("resnet8", "MobileNetV2")
"""A dense one and one with depthwise convolutions."""


def one_step(name: str, method: str, dtype: torch.dtype | None) -> tuple[nn.Module, StepResult]:
    torch.manual_seed(0)
    student, teacher = create_model(name, 5, 3), create_model("resnet8", 5, 3)
    losses = [Term("kd", KD()), Term("ce", CrossEntropy())] if method != "student-alone" else None
    distiller = Distiller(
        student, teacher, METHODS[method](), losses, student_dtype=dtype, teacher_dtype=dtype
    )
    result = distiller.step(images_of(8, size=32), labels_of(8))
    result.loss.backward()
    return student, result


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "unix") for name in NETS), ("resnet8", "student-alone")]
)
def test_in_bf16_every_weight_is_trained_and_stays_in_fp32(name, method):
    """Also behind a scoring forward without gradients in the same precision (pytorch issue 112583)."""
    student, result = one_step(name, method, torch.bfloat16)
    assert result.outputs.logits.dtype == torch.bfloat16
    assert result.loss.dtype == torch.float32
    for parameter in student.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
    assert {b.dtype for b in student.buffers()} == {torch.float32, torch.int64}


def gradient(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", NETS)
def test_a_step_in_bf16_is_near_the_one_in_fp32(name):
    """bf16 has 8 bits, so a layer rounds by up to 2⁻⁹.

    The gradients of fresh depthwise networks are no measure: noise of that size on the pixels turns them as
    far in fp32, as few pixels are left where their BatchNorm divides by a small variance.
    """
    (full, exact), (half, rounded) = (one_step(name, "kd", dtype) for dtype in (None, torch.bfloat16))
    assert rounded.loss.item() != exact.loss.item()
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=0.03)
    if name == "resnet8":
        assert torch.cosine_similarity(gradient(full), gradient(half), dim=0) > 0.98


def test_a_run_in_bf16_is_near_the_one_in_fp32(made, teacher):
    both = {"precision": "bf16", "teacher_precision": "bf16"}
    losses = [[line["loss"] for line in metrics(made(base(teacher, **p)))] for p in ({}, both)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_predictions_in_bf16_are_near_those_in_fp32(teacher):
    """Only images on which the network wavers may change their class."""
    test, model = load_data(DATA).test, load_model(teacher)
    counter = RowCounter(model)
    full, half = (predict(model, test.eval_batches(100), dtype=dtype) for dtype in (None, torch.bfloat16))
    assert sum(counter.rows) == 2 * len(test)
    assert full.agreement(half) > 0.97
    assert half.confidence.dtype == torch.float32
    assert 0 < (full.confidence - half.confidence).abs().max() < 0.05
