"""Optimisers by name, and learning rates over a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from unixkd.config import TrainConfig
from unixkd.errors import lookup, unknown_name
from unixkd.method.method import cosine
from unixkd.training.distributed.sharding import is_sharded_role

ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25e4
"""Share of the run that rises; first and last learning rate over the peak (torch's defaults)."""


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of one step, 0 ≤ step < epochs · steps_per_epoch.

    Linear warm-up multiplies every schedule; cosine ends at 0 after the last step.

    >>> config = TrainConfig(epochs=4, lr=1.0, schedule="multistep", milestones=[0.5], gamma=0.1)
    >>> [learning_rate(config, step, steps_per_epoch=1) for step in range(4)]
    [1.0, 1.0, 0.1, 0.1]
    """
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    factor = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return config.lr * factor * _shape(config, step, total, warmup)


def _shape(config: TrainConfig, step: int, total: int, warmup: int) -> float:
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "multistep":
        # Compared in steps, rounded: 150 of 240 epochs is not exactly 0.625 of the steps in floats.
        return float(config.gamma ** sum(step >= round(point * total) for point in config.milestones))
    if config.schedule == "cosine":
        return cosine(1.0, 0.0, max(0, step - warmup) / max(1, total - warmup))
    if config.schedule == "onecycle":
        top = ONE_CYCLE_RISE * total - 1
        if step <= top:
            return cosine(ONE_CYCLE_START, 1.0, step / top)
        return cosine(1.0, ONE_CYCLE_END, (step - top) / (total - 1 - top))
    raise unknown_name("schedule", config.schedule, ("constant", "multistep", "cosine", "onecycle"))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda c, **common: torch.optim.SGD(momentum=c.momentum, nesterov=c.nesterov, **common),
    "adamw": lambda c, **common: torch.optim.AdamW(capturable=isinstance(common["lr"], Tensor), **common),
}


def build_optimizer(
    config: TrainConfig, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The named optimiser over all parameters; its learning rate is a tensor where a graph may read it."""
    lr: float | Tensor = config.lr
    # torch's fused SGD knows no sharded tensors
    fused = config.fused and not (config.optimizer == "sgd" and is_sharded_role(config, "student"))
    if device.type == "cuda" and fused:
        lr = torch.tensor(config.lr, device=device)
    return lookup("optimizer", config.optimizer, OPTIMIZERS)(
        config, params=parameters, lr=lr, weight_decay=config.weight_decay, fused=fused
    )
