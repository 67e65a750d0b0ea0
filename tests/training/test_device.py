"""Which device a process gets, and that it is the current one before anything is made; GPUs are made up here."""

from __future__ import annotations

import pytest
import torch

from running import alone
from unixkd.config import TrainConfig
from unixkd.errors import UsageError
from unixkd.training.device import claim_device, pick_device
from unixkd.training.run import run

CPU = torch.device("cpu")


class MadeError(Exception):
    """The process group would be made now."""


def machine(monkeypatch: pytest.MonkeyPatch, kind: str, devices: int = 1) -> list[str]:
    """A machine with an accelerator; what is done to it in order."""
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(str(device)))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind)
    )
    return done


def one_of(monkeypatch: pytest.MonkeyPatch, size: int, local: str) -> None:
    values = {
        "WORLD_SIZE": str(size),
        "RANK": "3",
        "LOCAL_RANK": local,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("local", "gpus", "device"),
    [("1", 4, "cuda:1"), ("5", 4, "cuda:1"), ("2", 1, "cuda:0"), ("x", 2, "cuda:0")],
)
def test_each_of_several_processes_claims_its_own_gpu(local, gpus, device, monkeypatch):
    done = machine(monkeypatch, "cuda", gpus)
    one_of(monkeypatch, 8, local)
    for name in ("auto", "cuda"):
        assert claim_device(TrainConfig(device=name)) == torch.device(device)
    assert done == [device, device]
    assert claim_device(TrainConfig(device="cpu")) == CPU
    assert len(done) == 2


def test_one_process_leaves_the_current_gpu_to_its_caller(monkeypatch):
    done = machine(monkeypatch, "cuda", 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert claim_device(TrainConfig()) == torch.device("cuda")
    assert done == []


def test_a_run_claims_its_gpu_before_the_process_group_is_made(monkeypatch, tmp_path):
    done = machine(monkeypatch, "cuda", 2)
    one_of(monkeypatch, 4, "3")

    def init(backend: str) -> None:
        done.append(backend)
        raise MadeError

    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    with pytest.raises(MadeError):
        run(alone(), tmp_path / "run")
    assert done == ["cuda:1", "cpu:gloo,cuda:nccl"]


@pytest.mark.parametrize("name", ["auto", "mps"])
def test_one_process_trains_on_mps(name, monkeypatch):
    machine(monkeypatch, "mps")
    assert claim_device(TrainConfig(device=name)) == torch.device("mps")


def test_several_processes_do_not_train_on_mps(monkeypatch, tmp_path):
    machine(monkeypatch, "mps")
    one_of(monkeypatch, 2, "0")
    assert claim_device(TrainConfig(device="auto")) == CPU
    with pytest.raises(UsageError, match=r"^several processes cannot train on mps, .*--train\.device cpu$"):
        run(alone(device="mps"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numbers_choose_among_gpus_alone(monkeypatch):
    machine(monkeypatch, "cuda", 3)
    assert [pick_device(TrainConfig(), n).index for n in (None, 0, 2, 3)] == [None, 0, 2, 0]
    assert pick_device(TrainConfig(device="cpu"), 2) == CPU
