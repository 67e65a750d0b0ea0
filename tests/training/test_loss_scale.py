"""fp16 with a scale of the loss: what overflows is skipped, counted and changes nothing; the rest is plain training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from running import alone, distilled, everything, make_teacher, metrics, stop_and_resume, summary, weights
from slow import TinyNet, images_of, labels_of
from unixkd.config import RunConfig
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.unix import kd
from unixkd.training import loss_scale
from unixkd.training.average import MovingAverage
from unixkd.training.display import Event, Note, silent
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.loss_scale import INITIAL, LossScale
from unixkd.training.run import run

CPU = torch.device("cpu")
N, CLASSES = 8, 5
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3, fused=True),
    "sgd, no momentum": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "sgd, not fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw, not fused": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


# The scale itself


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_scale_are_those_of_torchs_own_scaler(name):
    """Some steps overflow, the first one too; the scale grows after 3 steps without."""
    factors = [float("inf"), 1.0, 0.5, 2.0, float("nan"), float("inf"), -1.0, 1.0, 1.0, 1.0]
    trained, scales = [], []
    for own in (False, True):
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = OPTIMIZERS[name]([weight])
        ours = LossScale(CPU, interval=3)
        theirs = torch.amp.GradScaler("cpu", init_scale=INITIAL, growth_interval=3)
        path: list[Tensor] = []
        for step, factor in enumerate(factors):
            optimizer.zero_grad()
            loss = factor * weight.square().sum()
            if own:
                ours.scaled(loss).backward()
                ours.unscale([weight])
                ours.step(optimizer)
            else:
                theirs.scale(loss).backward()
                theirs.unscale_(optimizer)
                if step:  # where its first fused step is skipped, torch leaves momentum as its memory was
                    theirs.step(optimizer)
                theirs.update()
            path.append(weight.detach().clone())
            scales.append(ours.scale.item() if own else theirs.get_scale())
        trained.append(torch.stack(path))
        if own:
            assert ours.skipped == 3
    assert torch.equal(*trained)
    half = len(scales) // 2
    assert scales[:half] == scales[half:]
    # skipped, 3 steps, skipped twice, 4 steps
    assert [scale / INITIAL for scale in scales[half:]] == [
        *(0.5, 0.5, 0.5, 1.0),
        *(0.5, 0.25),
        *(0.25, 0.25, 0.5, 0.5),
    ]


def test_momentum_begins_at_0_where_the_first_step_is_skipped():
    """Memory that nobody has written to holds NaN here."""

    def trained(begin: bool, factors: list[float]) -> Tensor:
        weight = nn.Parameter(torch.ones(3))
        optimizer, scale = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True), LossScale(CPU)
        with pytest.MonkeyPatch.context() as patch:
            if not begin:
                patch.setattr(loss_scale, "begin_momentum", lambda optimizer: None)
            for factor in factors:
                optimizer.zero_grad()
                scale.scaled(factor * weight.sum()).backward()
                scale.unscale([weight])
                scale.step(optimizer)
        return weight.detach()

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        plain = trained(True, [1.0, 2.0])
        assert torch.equal(trained(True, [float("inf"), 1.0, 2.0]), plain)
        assert trained(False, [float("inf"), 1.0, 2.0]).isnan().all()
    finally:
        torch.use_deterministic_algorithms(before)


# A step


class Overflowing(nn.Module):
    """Multiplies by a number that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm, self.factor = TinyNet(seed=1), nn.BatchNorm2d(3), 1.0

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.norm(images * self.factor))


def make_engine(fused: bool = True, **options: Any) -> Engine:
    student = Overflowing().train()
    distiller = Distiller(student, TinyNet(width=6, seed=2), kd(), batch_size=N)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, fused=fused)
    average = MovingAverage(student, 0.9)
    return Engine(
        distiller, optimizer, EpochStats(torch.zeros(N, dtype=torch.int32)), average=average, **options
    )


def step(engine: Engine, number: int, factor: float = 1.0) -> None:
    engine.student.factor = factor  # type: ignore[assignment]
    images = images_of(N, seed=number).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, labels_of(N, CLASSES), torch.arange(N))
    engine.step(batch, make_draws(N, seed=0, step=number))


def state(engine: Engine, *without: str) -> dict[str, Tensor]:
    """Copies of all that a step changes."""
    return {k: v.detach().clone() for k, v in engine.state().items() if not k.startswith(without or ("-",))}


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.01}, {"clip_norm": 0.5, "micro_batch": 3}])
def test_without_overflow_a_scale_changes_nothing(options):
    """In fp32, where a power of 2 rounds nothing: clipping sees unscaled gradients."""
    plain, scaled = make_engine(**options), make_engine(scale=LossScale(CPU), **options)
    for number in range(3):
        step(plain, number)
        step(scaled, number)
    ours = state(scaled, "scale", "tally.skipped", "tally.lost")
    theirs = state(plain)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in theirs.items() if not torch.equal(value, ours[name])] == []
    assert scaled.tally.skipped() == 0
    assert plain.tally.skipped() is None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("factor", [float("nan"), 1e38])
def test_a_step_that_overflows_is_counted_and_changes_nothing_else(factor, fused):
    """The statistics of BatchNorm and the average do not move either; the next step is as if it had not been."""
    engine, other = make_engine(fused, scale=LossScale(CPU)), make_engine(fused, scale=LossScale(CPU))
    step(engine, 0)
    step(other, 0)
    before = state(engine, "tally", "scale", "times_kept")
    step(engine, 1, factor)
    after = state(engine, "tally", "scale", "times_kept")
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert engine.scale is not None
    assert engine.scale.scale == INITIAL / 2
    assert (engine.tally.skipped(), engine.scale.skipped.item()) == (1, 1)
    step(engine, 2)
    step(other, 2)
    for name in ("net.head.weight", "average.module.norm.running_var"):
        assert torch.equal(state(engine)[name], state(other)[name])
    for each in (engine, other):
        for _ in range(3 if each is engine else 2):
            each.tally.steps += 1
    assert engine.tally.losses() == other.tally.losses()  # the loss that was not finite is in no mean
    assert engine.finite()


def test_without_a_scale_such_a_step_breaks_the_weights():
    """The negative control."""
    engine = make_engine()
    step(engine, 0, float("nan"))
    assert engine.student.norm.running_mean.isnan().all()  # type: ignore[union-attr, operator]
    assert not engine.finite()


class Read(TorchDispatchMode):
    """Operations by which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [True, False])
def test_a_fused_step_reads_nothing_back(fused):
    engine = make_engine(fused, scale=LossScale(CPU), clip_norm=1.0)
    with Read() as read:
        step(engine, 0)
    assert (read.found == []) == fused


# Whole runs


def noted(config: RunConfig, folder: Any) -> list[str]:
    events: list[Event] = []
    run(config, folder, display=events.append)
    return [event.text for event in events if isinstance(event, Note) and "skipped" in event.text]


def half(config: RunConfig) -> RunConfig:
    return replace(config, train=replace(config.train, precision="fp16", teacher_precision="fp16"))


def test_a_run_in_fp16_comes_out_near_one_in_fp32(tmp_path, monkeypatch):
    """UNIX with an average: losses and averaged weights, from a scale at which no step overflows."""
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**8)
    config = distilled(make_teacher(tmp_path / "teacher"), ema_decay=0.5, clip_norm=5.0, lr=0.02)
    for name, each in (("fp32", config), ("fp16", half(config))):
        assert noted(each, tmp_path / name) == []
    single, lower = (metrics(tmp_path / name) for name in ("fp32", "fp16"))
    assert [line["loss"] for line in lower] == pytest.approx([line["loss"] for line in single], rel=0.02)
    assert lower[-1]["loss"] != single[-1]["loss"]
    assert [line.get("skipped_steps") for line in lower] == [0, 0]
    assert "skipped_steps" not in single[0] | summary(tmp_path / "fp32")
    assert summary(tmp_path / "fp16")["skipped_steps"] == 0
    assert summary(tmp_path / "fp16")["environment"]["precision"] == "fp16"
    one, other = weights(tmp_path / "fp32"), weights(tmp_path / "fp16")
    assert all(torch.allclose(one[name], other[name], atol=0.05) for name in one)


def test_steps_that_overflow_are_counted_over_a_resumed_run_to_the_bit(tmp_path, monkeypatch):
    """From a scale at which fp16 must overflow; stopped while it falls, and while it grows."""
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**25)
    original = LossScale.__init__
    monkeypatch.setattr(LossScale, "__init__", lambda scale, device: original(scale, device, interval=3))
    config = half(alone(epochs=2, batch_size=8, ema_decay=0.9, clip_norm=1.0, lr=0.02))
    config = replace(config, data=replace(config.data, limit=84))  # 11 steps
    (note,) = noted(config, tmp_path / "whole")
    skipped = [line["skipped_steps"] for line in metrics(tmp_path / "whole")]
    assert skipped[0] >= 4
    assert 1 <= skipped[1] <= 4  # of the scale that grows too far every 3 steps
    assert summary(tmp_path / "whole")["skipped_steps"] == sum(skipped)
    assert note.startswith(
        f"steps skipped because their gradients overflowed in fp16: {sum(skipped)} of 22 (the loss "
    )
    stop_and_resume(config, tmp_path / "stopped", 3, 18)
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")


def test_what_stays_not_finite_ends_the_run(tmp_path, monkeypatch):
    """A learning rate that throws the weights out of fp16's range; nothing is saved but before that."""
    monkeypatch.setattr(loss_scale, "INITIAL", 4.0)
    config = half(alone(epochs=4, batch_size=8, lr=1e7))
    with pytest.raises(
        UserError, match=r"the loss, the gradients or the weights are no longer finite; lower --lr"
    ) as e:
        run(config, tmp_path / "run", display=silent)
    assert "--train.precision fp32 instead of fp16" in str(e.value)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_state_without_a_scale_leaves_it_at_its_beginning():
    scale = LossScale(CPU)
    scale.load_state({})
    assert scale.scale == INITIAL
    scale.load_state({"scale": torch.tensor(8.0), "clean": torch.tensor(3), "skipped": torch.tensor(5)})
    assert [tensor.item() for tensor in scale.state().values()] == [8.0, 3, 5]
