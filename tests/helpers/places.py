"""Where the tests of `tests/gpu` run: on a CUDA device, or on the CPU with stand-ins for what only CUDA has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tape import NoWaiting, Tape, with_rate_as_tensor
from unixkd.config import TrainConfig
from unixkd.method import step
from unixkd.training import build
from unixkd.training.cuda_graph import Recorder, refuse_waiting
from unixkd.training.optimizer import build_optimizer
from unixkd.training.stepper import Stepper

KINDS = (
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
    "cpu",
)


class Place:
    """A device and how a step is captured there.

    Args:
        kind: cuda or cpu
    """

    def __init__(self, kind: str) -> None:
        self.kind, self.device = kind, torch.device(kind)

    @property
    def is_cuda(self) -> bool:
        """Whether nothing is stood in for."""
        return self.kind == "cuda"

    def recorder(self) -> Recorder | None:
        """For a `Stepper`: None is the CUDA graph."""
        return None if self.is_cuda else Tape(NoWaiting)

    def optimizer(self, train: TrainConfig, parameters: Any) -> torch.optim.Optimizer:
        """Its learning rate is a tensor, so that a captured step can read it."""
        made = build_optimizer(train, parameters, self.device)
        return made if self.is_cuda else with_rate_as_tensor(made)

    def refuse_waiting(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, it is an error to wait for the device."""
        return refuse_waiting() if self.is_cuda else NoWaiting()

    def stream(self) -> object:
        """The one at work; a CPU has none."""
        return torch.cuda.current_stream() if self.is_cuda else None

    def finish(self) -> None:
        """Wait for all that was launched, and give back memory that nobody needs."""
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """As torch's on a GPU, where it does not look at the labels."""
    return labels.new_zeros(*labels.shape, classes).scatter_(-1, labels[..., None], 1)


@contextlib.contextmanager
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, trainers on the CPU capture their steps as on a GPU, on a tape."""

    def build_capturable(config: TrainConfig, *rest: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(config, *rest)
        return with_rate_as_tensor(optimizer) if config.fused else optimizer

    monkeypatch.setattr(build, "build_optimizer", build_capturable)
    monkeypatch.setattr(build, "Stepper", partial(Stepper, record=Tape(NoWaiting)))
    monkeypatch.setattr(step, "check_finite", lambda scores: None)  # looks at scores on a CPU only
    monkeypatch.setattr(F, "one_hot", one_hot)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Tape.recording)
    yield
    torch.set_flush_denormal(False)  # the process is as it was
