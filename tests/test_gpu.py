"""What only a GPU can show: run with `pytest -m gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.train import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DATA = DataConfig("digits", limit=256)


def train(out: Path, device: str, precision: str = "fp32", method: str = "random") -> dict:
    """One short run with a teacher trained on the CPU."""
    teacher = out.parent / "teacher"
    if not teacher.exists():
        alone = MethodConfig("student-alone")
        run(
            RunConfig(
                ModelConfig("resnet8"), None, alone, data=DATA, train=TrainConfig(epochs=3, device="cpu")
            ),
            teacher,
        )
    config = RunConfig(
        ModelConfig("resnet8"),
        ModelConfig(str(teacher)),
        MethodConfig(method),
        data=DATA,
        train=TrainConfig(epochs=2, device=device, precision=precision),  # type: ignore[arg-type]
    )
    return run(config, out)


def test_same_samples_are_chosen_on_both_devices(tmp_path: Path) -> None:
    """Draws are made on the CPU, so a random choice does not depend on the device."""
    for device in ("cpu", "cuda"):
        train(tmp_path / device, device)
    kept = [json.loads((tmp_path / d / "selection.json").read_text()) for d in ("cpu", "cuda")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_run_follows_the_cpu_run(tmp_path: Path, precision: str) -> None:
    """The first epoch's loss agrees to the precision's rounding."""
    losses = []
    for device, kind in (("cpu", "fp32"), ("cuda", precision)):
        train(tmp_path / device, device, kind, method="kd")
        losses.append(json.loads((tmp_path / device / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.01 if precision == "fp32" else 0.1)


def test_unix_charges_every_image_on_a_gpu(tmp_path: Path) -> None:
    """The ledger counts what the step did."""
    summary = train(tmp_path / "unix", "cuda", method="unix")
    assert summary["cost"]["images"]["scored"] == 2 * 256
    assert summary["cost"]["images"]["teacher_forwarded"] == 2 * 4 * 48
