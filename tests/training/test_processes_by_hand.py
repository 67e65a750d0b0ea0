"""Two and four processes, each selecting from its own rows, against one that works all of it out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import by_hand
from several import together
from slow import images_of, labels_of
from unixkd.data.sampling import check_kept, split_among_processes
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.method import Method
from unixkd.method.unix import kd, unix
from unixkd.training.distributed.world import World
from unixkd.training.distributed.world import together as world_of
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats, score_bins
from unixkd.training.loss_scale import INITIAL, LossScale

BATCH, IMAGES, CLASSES, SEED = 24, 24 + 24 + 13, 5, 3
"""Two full batches, and one that 2 and 4 processes share out unevenly."""
ORDER = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(4))
METHODS: dict[str, Method] = {"kd": kd(), "unix": unix(), "odd": unix(keep=0.6)}


def net(seed: int) -> nn.Module:
    """A small network without BatchNorm, which would look at each process's rows."""
    torch.manual_seed(seed)
    head = nn.Linear(4 * 36, CLASSES)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), head)
    with torch.no_grad():
        head.weight.mul_(8)  # certain of some images: the last bits of a score decide nothing
    return made


def one(
    world: World, name: str, micro_batch: int | None = None, scale: LossScale | None = None, faulty: int = -1
) -> dict[str, Any]:
    """An epoch of a method in one of several processes; in the `faulty` step the last one has images that are NaN."""
    method, own = METHODS[name], BATCH // world.size
    student = net(1).to(memory_format=torch.channels_last)
    wrapped = world.wrapped(student, torch.device("cpu"))
    distiller = Distiller(wrapped, net(2), method, batch_size=own, seed=SEED, rank=world.rank)
    stats = EpochStats(torch.zeros(IMAGES, dtype=torch.int32), score_bins(method, CLASSES))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    engine = Engine(distiller, optimizer, stats, world=world, micro_batch=micro_batch, scale=scale)
    shares, kept, losses = split_among_processes(ORDER, BATCH, world), [], []
    for step in range(shares.steps):
        rows = shares.order[step * own : (step + 1) * own]
        images = images_of(IMAGES)[rows].contiguous(memory_format=torch.channels_last)
        if step == faulty and world.rank == world.size - 1:
            images = images * torch.nan
        batch = Batch(images, labels_of(IMAGES, CLASSES)[rows], rows)
        draws = make_draws(len(rows), seed=SEED, step=step, rank=world.rank)
        result = engine.step(batch, draws, 1.0 if step < shares.full else shares.last)
        kept.append(rows[result.mixed.position].tolist())
        losses.append(float(result.loss))
    return {"kept": kept, "loss": losses, "weights": [weight.tolist() for weight in student.parameters()]}


def work() -> dict[str, Any]:
    """All that a process finds out, as plain numbers."""
    with world_of() as world:
        found = {name: one(world, name) for name in METHODS} | {"in parts": one(world, "unix", micro_batch=2)}
        found["scaled"] = one(world, "kd", scale=LossScale(torch.device("cpu")))
        scale = LossScale(torch.device("cpu"))
        found["overflowing"] = one(world, "kd", scale=scale, faulty=1)
        found["skipped"] = (scale.skipped.item(), scale.scale.item())
        return found


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return together(request.param, work)


def by_one(size: int, name: str) -> by_hand.Trained:
    return by_hand.train(
        net(1),
        net(2),
        images_of(IMAGES),
        ORDER.tolist(),
        BATCH,
        size,
        lambda rows, step, rank: make_draws(rows, seed=SEED, step=step, rank=rank),
        keep=METHODS[name].keep,
        mixes=METHODS[name].curve is not None,
    )


def assert_weights(values: list[Any], student: nn.Module) -> None:
    for value, weight in zip(values, student.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(value), weight.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_they_compute_what_one_does_rank_by_rank(name, found):
    """Every step's rows and losses, the last and uneven one's too, and the weights at the end."""
    alone = by_one(len(found), name)
    for rank, each in enumerate(found):
        if name != "kd":  # which does not rank
            assert each[name]["kept"] == [[image for image, _ in step[rank]] for step in alone.kept]
        losses = [step[rank] for step in alone.losses]
        torch.testing.assert_close(each[name]["loss"], losses, rtol=1e-4, atol=1e-6)
        assert_weights(each[name]["weights"], alone.student)


def test_kd_is_that_of_one_process(found):
    for each in found:
        assert_weights(each["kd"]["weights"], by_one(1, "kd").student)


def test_in_parts_the_same_is_learnt(found):
    assert_weights(found[0]["in parts"]["weights"], by_one(len(found), "unix").student)


def test_too_few_rows_for_each():
    check_kept(0.34, 12, World(0, 2))  # 2 of 6
    with pytest.raises(UserError, match="fewer than 2"):
        check_kept(0.2, 12, World(0, 2))
    with pytest.raises(UserError, match="fewer than 2"):
        check_kept(0.3, 12, World(0, 4))


def test_a_scale_of_the_loss_changes_nothing(found):
    """A power of 2, in fp32."""
    assert all(each["scaled"] == each["kd"] for each in found)


def test_a_step_that_overflows_in_one_process_is_skipped_in_all(found):
    assert {each["skipped"] for each in found} == {(1, INITIAL / 2)}
    weights = [each["overflowing"]["weights"] for each in found]
    assert all(each == weights[0] for each in weights)
    assert all(math.isfinite(value) for value in torch.cat([torch.tensor(w).flatten() for w in weights[0]]))
    assert weights[0] != found[0]["kd"]["weights"]
