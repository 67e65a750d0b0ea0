"""Too little disk or memory, a process that dies: one clear error, and what was saved stays."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from running import SMALL, alone, call, everything
from unixkd.errors import UserError
from unixkd.training import checkpoint
from unixkd.training.checkpoint import checkpoints
from unixkd.training.engine import Engine
from unixkd.training.run import run
from unixkd.training.stopping import EXIT_CODE


class Usage:
    free = 1_000_000


def test_a_full_disk_is_found_before_training_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    assert call("train", "--model", "resnet8", *SMALL, "--out", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path} has 1 MB free, but the checkpoints of this run need 2 MB" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "sgd"}, {"optimizer": "adamw", "lr": 1e-3, "ema_decay": 0.9}],
    ids=lambda c: c["optimizer"],
)
def test_what_is_foreseen_is_what_a_checkpoint_takes(changes, tmp_path, monkeypatch):
    foreseen: list[int] = []
    monkeypatch.setattr(checkpoint, "check_space", lambda folder, size: foreseen.append(size))
    run(alone(**changes), tmp_path / "run")
    taken = sum(path.stat().st_size for path in checkpoints(tmp_path / "run" / "checkpoints")[-1].iterdir())
    assert foreseen[0] == pytest.approx(taken, rel=0.1)


def test_where_the_disk_fills_up_the_last_checkpoint_stays_and_the_run_goes_on(tmp_path, monkeypatch):
    config = alone(epochs=3)
    run(config, tmp_path / "whole")
    original, times = checkpoint.save_file, []

    def save(tensors: Any, path: Path) -> None:
        times.append(path)
        if len(times) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", save)
    with pytest.raises(
        UserError, match=r"No space left on device.*epoch-00001 is kept, make room and resume"
    ):
        run(config, tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["epoch-00001"]
    run(config, tmp_path / "parts", mode="resume")
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_says_what_to_lower(error, tmp_path, monkeypatch, capsys):
    def step(*given: object) -> None:
        raise error

    monkeypatch.setattr(Engine, "step", step)
    assert call("train", "--model", "resnet8", *SMALL, "--out", tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert "out of memory with batches of 32 images" in told
    assert "--train.micro_batch 16 to train on fewer at once, or lower --train.batch_size" in told
    assert "--train.eval_batch_size (256)" in told


def test_another_runtime_error_is_not_taken_for_it(tmp_path, monkeypatch):
    def step(*given: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(RuntimeError, match="a bug"):
        run(alone(), tmp_path / "run")


def pictures(place: Path, many: int) -> Path:
    """Two classes of small pictures, in folders."""
    for label, name in enumerate(("cat", "dog")):
        for part, count in (("train", many), ("val", 2)):
            (place / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (12, 12), (100 * label, 3 * i, 7)).save(place / part / name / f"{i}.png")
    return place


ON_DISK = ("--data.size", 12, "--data.in_memory", "false", "--data.workers", 1, "--train.batch_size", 4)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_all_processes_and_the_run_still_saves(tmp_path):
    """The whole group of processes gets the signal, as from a terminal."""
    place = pictures(tmp_path / "data", 40)
    words = ("train", "--model", "resnet8", "--data", f"folder:{place}", *ON_DISK, "--epochs", 2000)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "unixkd",
            *map(str, words),
            "--train.eval_every",
            "2000",
            "--out",
            str(tmp_path / "run"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while not checkpoints(tmp_path / "run" / "checkpoints"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE, told
    assert told.count("stopping after this step") == 1
    assert "and saved" in told
    assert "Traceback" not in told


def test_results_that_cannot_be_written_are_an_error_and_the_checkpoints_stay(tmp_path, capsys, monkeypatch):
    words = ("train", "--model", "resnet8", *SMALL, "--out", tmp_path / "run")

    def full(*anything: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("unixkd.models.folder.save_file", full)
        assert call(*words) == 1
    told = capsys.readouterr().err
    assert f"cannot write to the run folder {tmp_path / 'run'}" in told
    assert (tmp_path / "run" / "checkpoints" / "epoch-00001").exists()
    assert call(*words, "--resume") == 0
