"""How fast a training step could be at best: its arithmetic at the chip's peak, its traffic at full bandwidth.

Arithmetic: convolutions and matrix products, a backward counted as two forwards. Traffic: a forward writes the
output of every convolution and linear layer once and reads it once, as all else could be fused into these; a
backward counts as two forwards here too. Each forward and each backward reads the weights; the optimiser reads
and writes weight, gradient and momentum. Nothing stays in a cache.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unixkd.method.flops import forward_flops
from unixkd.method.ledger import Ledger
from unixkd.method.method import StepCounts

BACKWARD = 2
"""Forwards that a backward is counted as."""
OPTIMIZER_BYTES = 2 * 3 * 4
"""Read and written for each weight by SGD with momentum, in float32."""


@dataclass(frozen=True)
class Chip:
    """What a GPU can do at most, by its maker's data sheet.

    Args:
        flops: dense FLOP/s by precision
        bandwidth: of its memory, in bytes/s
    """

    flops: Mapping[str, float]
    bandwidth: float


HOPPER = {"bf16": 989e12, "tf32": 495e12, "fp32": 67e12}
CHIPS = {
    "NVIDIA H100 80GB HBM3": Chip(HOPPER, 3.35e12),
    "NVIDIA H200": Chip(HOPPER, 4.8e12),
}
"""By the name that the driver gives; slower cards of the same family have other names."""


def layer_outputs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Numbers that convolutions and linear layers put out for one image `[C, H, W]`.

    >>> layer_outputs(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 5)), (3, 3, 3))
    7
    """
    clone, sizes = copy.deepcopy(model).cpu().eval(), []

    def add(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        sizes.append(output.numel())

    for layer in clone.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        clone(torch.zeros(1, *shape))
    return sum(sizes)


@dataclass(frozen=True)
class Work:
    """What one step has to do.

    Args:
        flops: of its forwards and its backward
        traffic: bytes to and from memory
    """

    flops: int
    traffic: int

    def floor(self, chip: Chip | None, precision: str) -> dict[str, float | None]:
        """Milliseconds that the arithmetic and the traffic take at best; None for an unknown chip."""
        arithmetic = traffic = None
        if chip is not None:
            arithmetic, traffic = (
                1e3 * self.flops / chip.flops[precision],
                1e3 * self.traffic / chip.bandwidth,
            )
        return {
            "flops": self.flops,
            "bytes": self.traffic,
            "arithmetic_ms": arithmetic,
            "traffic_ms": traffic,
            "floor_ms": None if arithmetic is None or traffic is None else max(arithmetic, traffic),
        }


@dataclass
class Network:
    """The sizes of a network on images `[C, H, W]`: FLOPs and layer outputs per image, weights."""

    module: nn.Module
    shape: tuple[int, int, int]
    flops: int = field(init=False)
    outputs: int = field(init=False)
    weights: int = field(init=False)

    def __post_init__(self) -> None:
        self.flops = forward_flops(self.module, self.shape)
        self.outputs = layer_outputs(self.module, self.shape)
        self.weights = sum(p.numel() for p in self.module.parameters())


def step_work(student: Network, teacher: Network, counts: StepCounts, value_bytes: int) -> Work:
    """The work of one step.

    Args:
        student: the network that is trained
        teacher: the network that is asked
        counts: images that go through each forward
        value_bytes: bytes of a number between layers, 2 or 4
    """
    ledger = Ledger(student.flops, teacher.flops)
    ledger.charge(counts)
    outputs = student.outputs * (counts.scored + (1 + BACKWARD) * counts.trained)
    outputs += teacher.outputs * counts.teacher_forwarded
    passes = 2 + bool(counts.scored)
    weights = 4 * (passes * student.weights + bool(counts.teacher_forwarded) * teacher.weights)
    traffic = 2 * value_bytes * outputs + weights + OPTIMIZER_BYTES * student.weights
    return Work(ledger.training_flops(BACKWARD), traffic)
