"""Small runs on the digits, and their files read back; shared by the tests that train."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unixkd.cli import main
from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.method.step import StepResult
from unixkd.training.engine import Engine
from unixkd.training.run import run
from unixkd.training.stopping import Stopped

IMAGES, BATCH = 100, 32
"""Batches of 32, 32, 32 and 4 images."""
TEST_IMAGES = 359
DATA = DataConfig("digits", limit=IMAGES)
TRAIN = TrainConfig(epochs=2, batch_size=BATCH)
SMALL = ("--data.limit", str(IMAGES), "--train.batch_size", str(BATCH), "--epochs", "1")
"""The same on the command line, for one epoch."""


def call(*words: object) -> int:
    """The exit code of a command, run in this process."""
    try:
        return main.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def alone(student: str = "resnet8", **train: Any) -> RunConfig:
    """A student trained on labels."""
    return RunConfig(
        ModelConfig(student), None, MethodConfig("student-alone"), data=DATA, train=replace(TRAIN, **train)
    )


def distilled(teacher: Path, method: str | MethodConfig = "unix", **train: Any) -> RunConfig:
    """A resnet8 distilled from a run folder."""
    method = MethodConfig(method) if isinstance(method, str) else method
    return RunConfig(
        ModelConfig("resnet8"), ModelConfig(str(teacher)), method, data=DATA, train=replace(TRAIN, **train)
    )


def make_teacher(folder: Path) -> Path:
    """A run folder with a teacher that has seen something: resnet14, three epochs."""
    return Path(shutil.copytree(_teacher(), folder, dirs_exist_ok=True))


@functools.cache
def _teacher() -> Path:
    """It is trained once in each process of the tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    run(alone("resnet14", epochs=3), folder / "run")
    return folder / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def model_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """A summary or a line of metrics without what a clock has measured."""
    return {key: value for key, value in record.items() if key not in ("seconds", "time")}


def everything(folder: Path) -> tuple[Any, ...]:
    """All that two equal runs have in common: weights, metrics, summary, selection, disagreements."""
    chosen = [folder / name for name in ("selection.json", "disagreements.json")]
    return (
        model_bytes(folder),
        [untimed(line) for line in metrics(folder)],
        untimed(summary(folder)),
        *(path.read_text() if path.exists() else None for path in chosen),
    )


class Signal:
    """Sends this process a signal in a step of the run, counted from 0; what it does otherwise is unchanged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGTERM) -> None:
        original, sent = Engine.step, []

        def step(engine: Engine, *rest: Any) -> StepResult:
            if engine.distiller.steps == at and not sent:
                sent.append(number)
                os.kill(os.getpid(), number)
            return original(engine, *rest)

        monkeypatch.setattr(Engine, "step", step)


def stop_and_resume(config: RunConfig, folder: Path, *at: int) -> None:
    """Ask the run to stop in each of these steps, and let it finish."""
    for part, step in enumerate(at):
        with pytest.MonkeyPatch.context() as patch:
            Signal(patch, step, signal.SIGINT if part % 2 else signal.SIGTERM)
            with pytest.raises(Stopped):
                run(config, folder, mode="resume")
        assert not (folder / "summary.json").exists()
    run(config, folder, mode="resume")


def has_compiler() -> bool:
    """Whether torch.compile can work here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
