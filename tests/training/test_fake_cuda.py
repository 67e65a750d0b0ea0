"""A step on a GPU waits for nothing, copies nothing to or from the host, uses no tensor of the host's: without a GPU.

On fake CUDA tensors (see `fake_cuda`) an epoch is run: the body of a captured step, then a short eager step. Options
are not crossed: each method runs with the sum of all losses that it can have, and each option alone, with what it
needs, on top of UNIX with KD; an own loop runs each method on texts. On a CPU, where the backward and the optimiser are
seen too, run the methods and the options of training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fake_cuda import ALLOWED, ALLOWED_ON_CPU, FIRST_BATCH, Watcher, fake_cuda, meta, real_cpu, stubbed
from fake_runs import BATCH, CLASSES, SIDE, Case, Staged, build, epoch, run_once
from unixkd.config import LossConfig, MethodConfig
from unixkd.distiller import Distiller
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.from_config import CURVES, LOSSES, SCORERS, build_objective
from unixkd.method.named_inputs import NamedInputs
from unixkd.method.step import StepResult
from unixkd.method.unix import METHODS
from unixkd.training.optimizer import OPTIMIZERS

ON_FEATURES = ("at", "sp")
"""Losses that stored answers do not serve."""


def losses(*left_out: str) -> LossConfig:
    """Every loss with a weight, but for some."""
    return LossConfig(**{name: 1.0 for name in (*LOSSES, "ce") if name not in left_out})  # type: ignore[arg-type]


def of_method(name: str) -> Case:
    """A method, with all losses that it can have."""
    mixes_answers = METHODS[name]().mixes_answers
    return Case(MethodConfig(name), losses(*ON_FEATURES if mixes_answers else ()), stored=mixes_answers)


def unix(**changes: Any) -> Case:
    return Case(MethodConfig(**changes))


OPTIONS: dict[str, Case] = {
    **{f"scorer {name}": unix(scorer=name) for name in SCORERS if name != "entropy"},  # UNIX's own
    **{f"curve {name}": unix(curve=name) for name in CURVES if name != "sigmoid"},
    **{f"optimizer {name}": Case(train={"optimizer": name}) for name in OPTIMIZERS},
    "scored in eval mode": unix(scoring_mode="eval"),
    "scored small": unix(scoring_size=0.5),
    "scored in bf16": unix(scoring_precision="bf16"),
    "drawn by score": unix(sampling=1.0),
    "a λ each": unix(per_sample_lambda=True),
    "smaller images": unix(size=0.5),
    "stored answers": Case(MethodConfig("kd"), stored=True),
    "stored answers to some": Case(MethodConfig(curve="step"), stored=True),
    "stored answers, mixed": Case(MethodConfig("mixup", mixes_answers=True), stored=True),
    "bf16": Case(loss=losses("dkd", "dist", "ce"), train={"precision": "bf16", "teacher_precision": "bf16"}),
    "fp16": Case(train={"precision": "fp16", "teacher_precision": "fp16", "clip_norm": 1.0, "ema_decay": 0.9}),
    "clipped": Case(train={"clip_norm": 1.0}),
    "averaged": Case(train={"ema_decay": 0.9}),
    "nesterov": Case(train={"nesterov": True}),
    "smoothed labels": Case(MethodConfig("student-alone"), train={"label_smoothing": 0.1}),
    "contiguous": Case(train={"channels_last": False}),
    "micro-batches": Case(train={"micro_batch": 2}),
    "an optimiser that is not fused": Case(train={"fused": False}),
    "images on the host": Case(on_host=True),
    "images that are loaded": Case(loaded=True),
    "limited views": Case(data={"views": 2}),
    "mixed images": Case(MethodConfig("kd"), losses(), data={"mixes": 2}),
    "no labels": Case(data={"labels": None}),
    "all at once": Case(
        MethodConfig(curve="step", per_sample_lambda=True, scoring_mode="eval", scoring_size=0.5),
        losses(*ON_FEATURES),
        {"optimizer": "adamw", "clip_norm": 1.0, "ema_decay": 0.9, "precision": "bf16", "teacher_precision": "bf16"},
        {"views": 2},
        stored=True,
    ),
}  # fmt: skip
MARKS = {
    "optimizer sgd": "_fused_sgd_",
    "optimizer adamw": "_fused_adamw_",
    "clipped": "_foreach_norm",
    "fp16": "_amp_foreach_non_finite_check_and_unscale_",
    "averaged": "_foreach_lerp_",
    "scored small": "_upsample_bilinear2d_aa",
    "stored answers, mixed": "lerp",
    "mixed images": "lerp_",
}
"""An operation that an option brings with it."""


# No step breaks a rule


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_every_method_with_every_loss(name):
    assert "convolution" in epoch(of_method(name)).operations


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_with_every_option(name):
    assert MARKS.get(name, "convolution") in epoch(OPTIONS[name]).operations


def test_what_is_allowed_is_done():
    captured, on_host = Case(MethodConfig("infobatch"), train={"precision": "fp16"}), Case(on_host=True)
    assert epoch(captured).used | epoch(on_host).used == set(ALLOWED)


# An own loop, with images and with text

WORDS, LENGTH, WIDTH = 11, 6, 4


class Reader(nn.Module):
    """Tokens to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None]
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp_min(1)
        return self.head(self.hidden(mean).relu())


def inputs(kind: str) -> Any:
    """A batch of images or of texts."""
    if kind == "images":
        return torch.rand(BATCH, 3, SIDE, SIDE)
    return {
        "input_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [*(("text", name) for name in METHODS), ("images", "unix")])
def test_a_step_of_an_own_loop(kind, name):
    method = METHODS[name]()
    without = ("at",) if name == "unix" else (*ON_FEATURES, "dkd", "dist")
    layers = {"student_layers": ["hidden"], "teacher_layers": ["hidden"]} if kind == "text" else {}
    objective = build_objective(replace(losses(*without), **layers), method)
    with fake_cuda() as device:
        with device:
            student, teacher = (Reader() if kind == "text" else Staged(CLASSES) for _ in range(2))
            batch, labels = inputs(kind), torch.arange(BATCH) % CLASSES
            answers = torch.rand(BATCH, CLASSES) if method.mixes_answers else None
        distiller = Distiller(
            student, teacher if method.teacher else None, method, objective, student_dtype=torch.bfloat16
        )
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
        draws = make_draws(BATCH, seed=0, step=0, device=device)

        def step() -> StepResult:
            if method.choice is None and answers is None:
                result = distiller.step(batch, labels)
            else:  # the loop has chosen the images, or has the answers
                result = distiller.run(Batch(NamedInputs(batch), labels, answers=answers), draws)
            result.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return result

        with (watcher := Watcher(device)):
            result = step()
            if name == "unix":  # what the first step has looked at, others do not
                with stubbed(tuple(replace(stub, stand_in=pytest.fail) for stub in FIRST_BATCH)):
                    step()
    assert {"_log_softmax", "_foreach_addcdiv_"} <= watcher.operations
    assert result.outputs.logits.dtype == torch.bfloat16


# What fake tensors do not show: the backward and what the optimiser computes


@pytest.mark.parametrize("name", ["unix", "student-alone"])
def test_the_backward_of_every_loss_on_meta_tensors(name):
    with meta() as device:
        stepper = build(of_method(name), device, run_once)
        with (watcher := Watcher(device, ALLOWED)):
            assert len(list(stepper.epoch(0))) == 2
    assert stepper.captured is not None
    assert "convolution_backward" in watcher.operations


TRAINING = [name for name, case in OPTIONS.items() if case.train]
"""Options of training: of the networks' precision, the backward, the optimiser, the average."""


@pytest.mark.parametrize(
    "name", [*METHODS, *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINING)]
)
def test_the_backward_and_the_optimiser_on_a_cpu(name):
    case = of_method(name) if name in METHODS else OPTIONS[name]
    with real_cpu() as device:
        watcher = Watcher(device, ALLOWED_ON_CPU)
        stepper = build(case, device, run_once)
        step = stepper.engine.step

        def watched(*args: Any) -> StepResult:
            with watcher:
                return step(*args)

        stepper.engine.step = watched  # type: ignore[method-assign]
        counts = list(stepper.epoch(0))
    assert counts
    assert "convolution_backward" in watcher.operations
    assert all(tensor.isfinite().all() for tensor in stepper.engine.student.state_dict().values())
