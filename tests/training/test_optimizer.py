"""Learning rates against torch's own schedulers, stepped once per step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.optim import lr_scheduler

from unixkd.config import TrainConfig
from unixkd.errors import UsageError
from unixkd.method.method import cosine
from unixkd.training.optimizer import learning_rate

EPOCHS, PER_EPOCH = 12, 5
TOTAL = EPOCHS * PER_EPOCH


def ours(config: TrainConfig) -> list[float]:
    return [learning_rate(config, step, PER_EPOCH) for step in range(config.epochs * PER_EPOCH)]


def of_torch(lr: float, make) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < TOTAL:
            scheduler.step()
    return rates


SCHEDULES = {
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [25, 35, 50], gamma=0.2),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=TOTAL),
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_those_of_torch(name):
    config = TrainConfig(
        epochs=EPOCHS, lr=0.3, schedule=name, milestones=[25 / 60, 35 / 60, 50 / 60], gamma=0.2
    )
    assert ours(config) == pytest.approx(of_torch(0.3, SCHEDULES[name]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 10])
def test_one_cycle_of_very_short_runs(total):
    config = TrainConfig(epochs=total, lr=0.3, schedule="onecycle")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=total)
    for step in range(total):
        assert learning_rate(config, step, 1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < total:
            scheduler.step()


@pytest.mark.parametrize("per_epoch", [1, 7, 782])
def test_the_published_milestones_fall_on_their_epochs(per_epoch):
    """240 epochs, ×0.1 at 150, 180 and 210; 782 steps an epoch with CIFAR-100 and batches of 64."""
    config = TrainConfig(
        epochs=240, lr=0.05, schedule="multistep", milestones=[150 / 240, 180 / 240, 210 / 240]
    )
    for number, milestone in enumerate((150, 180, 210)):
        last_before = learning_rate(config, milestone * per_epoch - 1, per_epoch)
        first = learning_rate(config, milestone * per_epoch, per_epoch)
        assert last_before == pytest.approx(0.05 * 0.1**number)
        assert first == pytest.approx(0.05 * 0.1 ** (number + 1))


def test_cosine_ends_at_0_after_the_last_step():
    config = TrainConfig(epochs=EPOCHS, lr=1.0, schedule="cosine")
    rates = ours(config)
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.001
    assert learning_rate(config, TOTAL, PER_EPOCH) == 0.0
    assert [cosine(3.0, 1.0, p) for p in (0.0, 0.5, 1.0)] == [3.0, 2.0, 1.0]


def test_warm_up_rises_in_equal_steps_to_the_peak():
    config = TrainConfig(epochs=EPOCHS, lr=0.5, schedule="constant", warmup_epochs=2.0)
    rates = ours(config)
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert set(rates[10:]) == {0.5}


def test_cosine_after_a_warm_up_runs_over_what_is_left():
    config = TrainConfig(epochs=EPOCHS, lr=0.5, schedule="cosine", warmup_epochs=2.0)
    rates = ours(config)
    assert rates[9] == rates[10] == 0.5
    rest = replace(config, epochs=EPOCHS - 2, warmup_epochs=0.0)
    assert rates[10:] == pytest.approx([learning_rate(rest, step, PER_EPOCH) for step in range(TOTAL - 10)])


def test_warm_up_of_part_of_an_epoch():
    config = TrainConfig(epochs=EPOCHS, lr=1.0, schedule="constant", warmup_epochs=0.4)
    assert ours(config)[:3] == [0.5, 1.0, 1.0]


def test_unknown_schedule():
    with pytest.raises(UsageError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        learning_rate(TrainConfig(schedule="cosin"), 0, 1)
