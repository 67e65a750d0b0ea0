"""What breaks a rule of `test_fake_cuda.py` is seen: every kind of fault, in every part of a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fake_cuda import ALLOWED, COPIES, MIXES, WAITS, BrokenRuleError, Watcher, fake_cuda, meta, real_cpu
from fake_runs import BATCH, CLASSES, Case, build, epoch, run_once
from unixkd.config import MethodConfig
from unixkd.method.batch import Batch, MixedBatch, Outputs
from unixkd.method.losses import KD
from unixkd.method.network import Network
from unixkd.method.objective import Term
from unixkd.training.engine import Engine
from unixkd.training.static_batch import StaticBatch
from unixkd.training.stepper import Stepper


def written_by_mask(x: Tensor) -> Tensor:
    x = x.detach().clone()
    x[x[:, 0] > 0] = x[0]
    return x


def written_from_host(x: Tensor) -> Tensor:
    x = x.detach().clone()
    x[0] = torch.zeros(CLASSES)
    return x


FAULTS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "item": (WAITS, lambda x: x.sum().item()),
    "tolist": (WAITS, lambda x: x.tolist()),
    "if": (WAITS, lambda x: x if x.isfinite().all() else -x),
    "nonzero": (WAITS, lambda x: x.nonzero()),
    "mask as index": (WAITS, lambda x: x[x > 0]),
    "write by a mask": (WAITS, written_by_mask),
    "unique": (WAITS, lambda x: x.unique()),
    "a slice of a device's length": (WAITS, lambda x: x[: x[0].argmax()]),
    "repeat_interleave": (WAITS, lambda x: x.repeat_interleave(x[:, 0].long(), 0)),
    "equal": (WAITS, lambda x: torch.equal(x, x)),
    "inverse": (WAITS, lambda x: torch.linalg.inv(x.T @ x)),
    "cpu": (COPIES, lambda x: x.cpu()),
    "to": (COPIES, lambda x: x.to("cpu", torch.float64, non_blocking=True)),
    "a list as index": (COPIES, lambda x: x[[0, 1]]),
    "a host tensor as index": (COPIES, lambda x: x[torch.arange(2)]),
    "a tensor of numbers": (COPIES, lambda x: x * torch.tensor([1.0] * CLASSES, device=x.device)),
    "new_tensor": (COPIES, lambda x: x.new_tensor(2.0)),
    "write from the host": (COPIES, written_from_host),
    "host weights": (MIXES, lambda x: x * torch.ones(CLASSES)),
    "a host number": (MIXES, lambda x: x * torch.tensor(2.0)),
    "a host tensor of before": (MIXES, lambda x: torch.where(x > 0, x, BEFORE)),
    "a host tensor in a list": (MIXES, lambda x: torch.cat([x, torch.zeros(1, CLASSES)])),
}
BEFORE = torch.zeros(())
"""A real tensor, as one that a module has as a constant."""


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_seen(name):
    rule, fault = FAULTS[name]
    with fake_cuda() as device:
        x = torch.rand(BATCH, CLASSES, device=device)
        with Watcher(device, ALLOWED), pytest.raises(BrokenRuleError, match=rule):
            fault(x)


def test_what_is_no_fault():
    """A host may work for itself, and give numbers to operations."""
    with fake_cuda() as device, Watcher(device):
        x = torch.rand(BATCH, CLASSES, device=device)
        x[torch.arange(2, device=device)] += torch.full((), 2.0, device=device) * 3
        x[x > 0] = 0.0  # torch fills where a mask says
        x[:, 1] = torch.where(x[:, 0] > 0, x[:, 1], 0.5)
        assert torch.arange(3).cumsum(0).shape == (3,)


def look(x: Tensor) -> Tensor:
    """The tensor, after a look at it."""
    assert x.sum().item() >= 0
    return x


def changing(change: Callable[[Tensor], Tensor]) -> KD:
    """KD of what a function makes of the student's logits."""

    class Own(KD):
        def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Tensor:
            return super().__call__(replace(student, logits=change(student.logits)), teacher, mixed)

    return Own()


def with_loss(stepper: Stepper, loss: KD) -> None:
    stepper.engine.distiller.objective = [Term("own", loss)]


def with_hook(network: Network) -> None:
    network.module.register_forward_hook(lambda module, given, out: look(out.abs() + 1))


def clip_strictly(engine: Engine) -> None:
    """Clip the gradients and raise where their norm is not finite."""
    weights = list(engine.student.parameters())
    engine.optimizer.register_step_pre_hook(
        lambda *_: torch.nn.utils.clip_grad_norm_(weights, 1, error_if_nonfinite=True)
    )


def average_as_torch(engine: Engine) -> None:
    engine.average = AveragedModel(engine.student, device=engine.tally.times_kept.device)


PLACES: dict[str, Callable[[Stepper], object]] = {
    "a scorer": lambda s: setattr(s, "method", replace(s.method, scorer=lambda x: look(x.abs().sum(1)))),
    "a curve": lambda s: setattr(s, "method", replace(s.method, curve=lambda ranks, n: look(ranks / n))),
    "a loss": lambda s: with_loss(s, changing(look)),
    "the student": lambda s: with_hook(s.engine.distiller.student),
    "the teacher": lambda s: with_hook(s.engine.distiller.teacher.network),
    "the optimiser": lambda s: s.engine.optimizer.register_step_post_hook(
        lambda optimizer, *_: look(optimizer.param_groups[0]["lr"])
    ),
    "clipping": lambda s: clip_strictly(s.engine),
    "the average": lambda s: average_as_torch(s.engine),
}
"""Parts of a step, with an `.item()` planted in each."""


@pytest.mark.parametrize(
    ("place", "record"),
    [*((place, None) for place in PLACES), ("a loss", run_once), ("the average", run_once)],
)
def test_a_fault_in_any_part_of_a_step_is_seen(place, record):
    with fake_cuda() as device:
        stepper = build(Case(), device, record)
        stepper.note = pytest.fail  # no capture takes it for something that it refuses
        PLACES[place](stepper)
        with Watcher(device, ALLOWED), pytest.raises(BrokenRuleError, match=WAITS):
            list(stepper.epoch(0))


@pytest.mark.parametrize("fault", [None, "cpu"])
def test_a_captured_steps_batch_of_loaded_images_is_filled_on_the_device(fault, monkeypatch):
    if fault is None:
        assert "convolution" in epoch(Case(loaded=True)).operations
        return
    fill, on_host = StaticBatch.fill, FAULTS[fault][1]

    def planted(self: StaticBatch, batch: Batch) -> None:
        fill(self, replace(batch, images=on_host(batch.pixels)))

    monkeypatch.setattr(StaticBatch, "fill", planted)
    with pytest.raises(BrokenRuleError, match=COPIES):
        epoch(Case(loaded=True))


def with_gradient(fault: Callable[[Tensor], Any]) -> KD:
    """KD that does something with the gradient of the logits, and leaves it as it is."""

    def planted(logits: Tensor) -> Tensor:
        logits.register_hook(lambda gradient: (fault(gradient), gradient)[1])
        return logits

    return changing(planted)


@pytest.mark.parametrize(
    ("setting", "name", "seen"),
    [
        (fake_cuda, "item", False),  # there is no backward
        (real_cpu, "item", True),
        (real_cpu, "host weights", False),  # all is the host's
        (meta, "item", True),
        (meta, "cpu", True),
        (meta, "host weights", True),
    ],
)
def test_where_a_fault_in_the_backward_is_seen(setting, name, seen):
    rule, fault = FAULTS[name]
    with setting() as device:
        stepper = build(Case(MethodConfig("kd")), device)
        with_loss(stepper, with_gradient(fault))
        raised = pytest.raises(BrokenRuleError, match=rule) if seen else contextlib.nullcontext()
        with Watcher(device, ALLOWED), raised:
            list(stepper.epoch(0))
