"""Which precision a network gets: decided by capability and a probe, told, kept, and open to contradiction.

Nothing is timed here: what a pass takes is made up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from running import SMALL, alone, call, distilled, metrics, summary
from slow import TinyNet, images_of
from tape import Tape
from unixkd.config import ModelConfig, RunConfig, TrainConfig
from unixkd.errors import UserError
from unixkd.method.network import Network
from unixkd.models import create_model
from unixkd.training import precision
from unixkd.training.cuda_graph import WARM_UPS
from unixkd.training.display import Event, Note, silent
from unixkd.training.precision import (
    GAIN,
    ROUNDS,
    choose_precision,
    has_native_bf16,
    probe,
    settle,
    with_auto,
)
from unixkd.training.run import end_epoch, epoch_steps, run, start
from unixkd.training.run_folder import RunFolder

Seconds = Callable[[Network], float]


NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def capabilities(monkeypatch: pytest.MonkeyPatch, **known: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setattr("unixkd.training.precision.NATIVE", NATIVE)  # conftest.py has emptied it


def timings(monkeypatch: pytest.MonkeyPatch, bf16: Seconds) -> list[tuple[Network, bool]]:
    """fp32 takes a second, bf16 what is said; the passes that were asked for."""
    passes = []

    def interleaved(
        calls: dict[str, partial], rounds: int, device: torch.device, **_: object
    ) -> dict[str, list[float]]:
        passes.extend((call.args[0], call.args[2]) for call in calls.values())
        network = calls["bf16"].args[0]
        return {"fp32": [1.0] * rounds, "bf16": [bf16(network) for _ in range(rounds)]}

    monkeypatch.setattr(precision, "interleaved", interleaved)
    return passes


def no_images() -> Tensor:
    raise AssertionError("nothing is probed here")


def batch() -> Tensor:
    return images_of(4)


# One network


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
def test_what_is_wanted_is_taken_without_a_probe(wanted, monkeypatch):
    capabilities(monkeypatch, avx512_bf16=wanted == "fp32")
    given = TrainConfig(precision=wanted, teacher_precision=wanted)
    assert settle(given, TinyNet(), TinyNet(), no_images, CPU, pytest.fail) == given


@pytest.mark.parametrize("known", [{}, {"avx2": True, "neon": True}, {"avx512_bf16": False, "bf16": False}])
def test_a_processor_without_bf16_computes_in_fp32_without_a_probe(known, monkeypatch):
    capabilities(monkeypatch, **known)
    assert choose_precision(TinyNet(), no_images, CPU, training=True) == ("fp32", None)


def test_so_does_one_that_torch_knows_nothing_of(monkeypatch):
    """As in the oldest torch that is supported."""
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_native_bf16(torch.device("cpu"))


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
@pytest.mark.parametrize(
    ("speedup", "chosen"), [(0.5, "fp32"), (1.0, "fp32"), (GAIN - 0.01, "fp32"), (GAIN + 0.01, "bf16")]
)
def test_on_one_that_computes_in_bf16_the_probe_decides(name, speedup, chosen, monkeypatch):
    capabilities(monkeypatch, **{name: True})
    timings(monkeypatch, lambda _: 1 / speedup)
    precision, found = choose_precision(TinyNet(), batch, CPU, training=True)
    assert precision == chosen
    assert found == pytest.approx(speedup)


def gpu(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


def test_on_a_gpu_with_bf16_units_it_is_that_without_a_probe(monkeypatch):
    gpu(monkeypatch, bf16=True)
    assert choose_precision(TinyNet(), no_images, CUDA, training=True) == ("bf16", None)


@pytest.mark.parametrize(("speedup", "chosen"), [(0.1, "fp32"), (GAIN - 0.01, "fp32"), (GAIN + 0.01, "fp16")])
def test_on_a_gpu_without_them_a_probe_of_fp16_decides(speedup, chosen, monkeypatch):
    """As on a T4, which has fast units for fp16, or on a GTX 10, which has slow ones."""
    gpu(monkeypatch, bf16=False)
    seconds = {"fp32": [1.0] * ROUNDS, "fp16": [1 / speedup] * ROUNDS}
    monkeypatch.setattr(precision, "interleaved", lambda *_, **__: seconds)
    found = choose_precision(TinyNet(), batch, CUDA, training=True, record=Tape())
    assert found == (chosen, pytest.approx(speedup))


@pytest.mark.parametrize("training", [True, False])
def test_what_is_timed_there_is_a_captured_pass(training, monkeypatch):
    gpu(monkeypatch, bf16=False)
    tape, seen = Tape(), []
    original = precision.one_pass

    def one_pass(network: Network, images: Tensor, training: bool) -> None:
        seen.append(network.dtype)
        original(network, images, training)

    monkeypatch.setattr(precision, "one_pass", one_pass)
    choose_precision(TinyNet(), batch, CUDA, training=training, record=tape)
    assert seen == [None] * (WARM_UPS + 1) + [torch.float16] * (WARM_UPS + 1)
    assert (tape.recordings, tape.replays) == (2, 2 * (1 + ROUNDS))


def test_a_sharded_student_has_no_fp16(monkeypatch):
    """There is no gradient scale for its shards; its teacher needs none."""
    gpu(monkeypatch, bf16=False)
    monkeypatch.setattr(precision, "probe", lambda *_, **__: 3.0)
    notes: list[str] = []
    for sharding, expected in (("none", "fp16"), ("both", "fp32")):
        given = TrainConfig(sharding=sharding)  # type: ignore[arg-type]
        config = settle(given, TinyNet(), TinyNet(), batch, CUDA, notes.append)
        assert (config.precision, config.teacher_precision) == (expected, "fp16")
    teacher = "teacher in fp16: fp16 takes 33% of fp32's time here"
    assert notes == ["student in fp16: fp16 takes 33% of fp32's time here", teacher, teacher]


def test_other_devices_compute_in_fp32():
    assert not has_native_bf16(torch.device("mps"))
    assert not has_native_bf16(torch.device("meta"))


# The probe


def test_one_odd_round_is_passed_over(monkeypatch):
    seconds = iter([0.5, 10.0, 0.5])  # of fp32's
    passes = timings(monkeypatch, lambda _: next(seconds))
    assert probe(TinyNet(), batch(), training=True) == 2.0
    assert [network.dtype for network, _ in passes] == [None, torch.bfloat16]


@pytest.mark.parametrize("training", [True, False])
def test_a_probe_runs_a_copy_as_the_network_will_be_run(training, monkeypatch):
    """Real passes: a student forward and backward, a teacher in eval mode without gradients."""
    seen = []
    original = precision.one_pass

    def one_pass(network: Network, images: Tensor, training: bool) -> None:
        module = network.module
        module.register_forward_hook(
            lambda m, _, out: seen.append((m.training, out.dtype, out.requires_grad))
        )
        original(network, images, training)
        assert (module.head.weight.grad is not None) == training
        module._forward_hooks.clear()

    module = TinyNet().train(not training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    monkeypatch.setattr(precision, "one_pass", one_pass)
    assert probe(module, batch(), training=training) > 0
    fp32, bf16 = (training, torch.float32, training), (training, torch.bfloat16, training)
    assert seen == [bf16, fp32, fp32, bf16] * ((1 + ROUNDS) // 2)  # in reverse every other round
    assert module.training is not training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


# Both networks


def depthwise(network: Network) -> bool:
    return any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.module.modules())


def test_a_depthwise_and_a_dense_network_may_differ(monkeypatch):
    capabilities(monkeypatch, avx512_bf16=True)
    passes = timings(monkeypatch, lambda network: 2.0 if depthwise(network) else 0.5)
    student, teacher = (create_model(name, 5, 3) for name in ("MobileNetV2", "resnet8"))
    notes: list[str] = []
    config = settle(TrainConfig(), student, teacher, batch, CPU, notes.append)
    assert (config.precision, config.teacher_precision) == ("fp32", "bf16")
    assert notes == [
        "student in fp32: bf16 takes 200% of fp32's time here",
        "teacher in bf16: bf16 takes 50% of fp32's time here",
    ]
    assert {training for network, training in passes if depthwise(network)} == {True}
    assert {training for network, training in passes if not depthwise(network)} == {False}


def test_each_precision_can_be_given_by_itself(monkeypatch):
    capabilities(monkeypatch, avx512_bf16=True)
    timings(monkeypatch, lambda _: 0.5)
    given = TrainConfig(precision="fp32", lr=0.3)
    notes: list[str] = []
    config = settle(given, TinyNet(), TinyNet(), batch, CPU, notes.append)
    assert config == TrainConfig(precision="fp32", teacher_precision="bf16", lr=0.3)
    assert notes == ["teacher in bf16: bf16 takes 50% of fp32's time here"]


@pytest.mark.parametrize("wanted", ["auto", "fp32", "bf16"])
def test_without_a_teacher_nothing_is_left_open(wanted):
    config = TrainConfig(precision="fp32", teacher_precision=wanted)
    settled = settle(config, TinyNet(), None, no_images, CPU, pytest.fail)
    assert settled.teacher_precision == ("fp32" if wanted == "auto" else wanted)


def test_what_was_decided_once_stands_in_for_auto_alone():
    saved = {"precision": "bf16", "teacher_precision": "fp32"}

    def decided(train: TrainConfig, saved: dict[str, str]) -> TrainConfig:
        return with_auto(RunConfig(ModelConfig("vgg8"), train=train), saved).train

    assert decided(TrainConfig(), saved) == TrainConfig(precision="bf16", teacher_precision="fp32")
    explicit = TrainConfig(precision="fp32", teacher_precision="bf16")
    assert decided(explicit, saved) == explicit
    assert decided(TrainConfig(), {}) == TrainConfig()


@pytest.mark.parametrize("field", ["precision", "teacher_precision"])
@pytest.mark.parametrize("teacher", [None, TinyNet()], ids=["no teacher", "teacher"])
def test_an_unknown_precision_is_named(field, teacher):
    config = TrainConfig(**{"precision": "fp32", "teacher_precision": "fp32", field: "bf61"})
    with pytest.raises(UserError, match="unknown precision 'bf61'; did you mean 'bf16'"):
        settle(config, TinyNet(), teacher, no_images, CPU, pytest.fail)


def test_an_unknown_precision_on_the_command_line(capsys, tmp_path):
    words = ("--model", "resnet8", *SMALL, "--train.precision", "half", "--out", tmp_path / "run")
    assert call("train", *words) == 2
    assert "train.precision" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Whole runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    run(alone("resnet14", epochs=1), folder)
    return folder


def train(config: RunConfig, folder: Path, **options: str) -> list[str]:
    """The notes of a run."""
    events: list[Event] = []
    run(config, folder, display=events.append, **options)
    return [event.text for event in events if isinstance(event, Note) and "fp32's time" in event.text]


def decided(folder: Path) -> tuple[str, str]:
    chosen = yaml.safe_load((folder / "run.yaml").read_text())["train"]
    return chosen["precision"], chosen["teacher_precision"]


def test_a_run_says_what_its_probes_found_and_keeps_it(teacher, tmp_path, monkeypatch):
    capabilities(monkeypatch, avx512_bf16=True)
    passes = timings(monkeypatch, lambda network: 0.5 if network.module.card.name == "resnet8" else 1.25)
    folder, config = tmp_path / "run", distilled(teacher, "kd")
    assert train(config, folder) == [
        "student in bf16: bf16 takes 50% of fp32's time here",
        "teacher in fp32: bf16 takes 125% of fp32's time here",
    ]
    assert decided(folder) == ("bf16", "fp32")
    assert summary(folder)["environment"]["precision"] == "student bf16, teacher fp32"
    passes.clear()
    given = distilled(teacher, "kd", precision="bf16", teacher_precision="fp32")
    assert train(given, tmp_path / "given") == []
    assert passes == []
    assert metrics(tmp_path / "given")[-1]["loss"] == metrics(folder)[-1]["loss"]


def test_a_resumed_run_keeps_its_precision_whatever_a_probe_would_say_now(teacher, tmp_path, monkeypatch):
    capabilities(monkeypatch, avx512_bf16=True)
    timings(monkeypatch, lambda _: 0.5)
    config, folder = distilled(teacher, "kd"), tmp_path / "run"
    begun = start(config, RunFolder(folder), "new", silent)
    for _ in epoch_steps(begun):
        pass
    end_epoch(begun)
    next(epoch_steps(begun))  # into the second epoch
    passes = timings(monkeypatch, lambda _: 2.0)
    capabilities(monkeypatch)
    assert train(config, folder, mode="resume") == []
    assert passes == []
    assert decided(folder) == ("bf16", "bf16")
    assert summary(folder)["environment"]["precision"] == "bf16"
    for other in (distilled(teacher, "kd", precision="fp32"), alone(precision="fp32")):
        with pytest.raises(UserError, match=r"train\.precision: bf16 then, fp32 now"):
            train(other, folder, mode="resume")


def test_a_run_here_without_bf16_units_is_silent_and_in_fp32(teacher, tmp_path, monkeypatch):
    capabilities(monkeypatch)
    passes = timings(monkeypatch, lambda _: 0.1)
    assert train(distilled(teacher, "kd", epochs=1), tmp_path / "run") == []
    assert passes == []
    assert decided(tmp_path / "run") == ("fp32", "fp32")
