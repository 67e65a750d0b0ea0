"""Learning rate as a pure function of the step, so that nothing has to be saved to resume."""

from __future__ import annotations

import math

from unixkd.config import TrainConfig
from unixkd.errors import unknown_name

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


def cosine(start: float, end: float, progress: float) -> float:
    """From start to end along half a cosine, progress in [0, 1].

    >>> cosine(1.0, 0.0, 0.5)
    0.5
    """
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
