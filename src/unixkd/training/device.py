"""The device of a process: chosen, and made the current one before anything is made on it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from unixkd.config import TrainConfig
from unixkd.errors import UsageError, UserError, lookup
from unixkd.training.distributed.launch import local_rank, processes


def claim_device(config: TrainConfig) -> torch.device:
    """The device of this process, which is made the current one: what names no GPU of its own uses that.

    NCCL's communicator, streams and workspaces lie on the current device. It has to be called before a process group
    is made; otherwise each process would also make a context on the first GPU.

    Raises:
        UserError: the device is not there
        UsageError: several processes cannot train on it
    """
    device = pick_device(config, local_rank() if processes() > 1 else None)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def pick_device(config: TrainConfig, number: int | None = None) -> torch.device:
    """The configured device.

    Args:
        config: names it, or says "auto"
        number: of this process among several on a machine: of several GPUs it gets that one; None: there is one process

    Raises:
        UserError: it is not there
        UsageError: several processes cannot train on it
    """
    available: dict[str, Callable[[], bool]] = {
        "auto": lambda: True,
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if not lookup("device", config.device, available)():
        raise UserError(f"device {config.device} is not available here; give --train.device auto or cpu")
    device = default_device() if config.device == "auto" else torch.device(config.device)
    if number is None:
        return device
    if device.type == "cuda":
        return torch.device(
            "cuda", number % torch.cuda.device_count()
        )  # srun may show each process only its own
    if device.type == "cpu" or config.device == "auto":
        return torch.device("cpu")  # torch.distributed has a backend for CUDA and for CPUs
    raise UsageError(
        f"several processes cannot train on {device.type}, for which torch.distributed has no backend: start one "
        "process, or give --train.device cpu"
    )


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
