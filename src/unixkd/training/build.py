"""From a resolved configuration to what takes a run's steps: ledger, distiller, optimiser, engine, stepper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from unixkd.data.disk import DiskSplit
from unixkd.data.sampling import check_kept, own_batch_size
from unixkd.data.split import MemorySplit
from unixkd.distiller import Distiller
from unixkd.method.epoch_choice import History
from unixkd.method.flops import flops_by_size
from unixkd.method.ledger import Ledger
from unixkd.names import phase
from unixkd.training.answers import open_store
from unixkd.training.average import MovingAverage
from unixkd.training.distributed.sharding import is_sharded_role, shard, skeleton
from unixkd.training.distributed.world import World
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats, score_bins
from unixkd.training.evaluation import synchronise
from unixkd.training.loss_scale import LossScale
from unixkd.training.optimizer import build_optimizer
from unixkd.training.precision import DTYPES
from unixkd.training.resolved import Resolved
from unixkd.training.stepper import Stepper


def build_stepper(run: Resolved, note: Callable[[str], None], world: World) -> Stepper:
    """Everything that takes a step; every process has to call it."""
    if run.config.train.sync_batchnorm:
        synchronise(run.student, world)
    ledger = open_ledger(run)
    student = shard_or_wrap(run, world)
    distiller = world.leader_first(lambda: make_distiller(run, student, ledger, note, world))
    split, teacher = run.data.train, distiller.teacher
    if isinstance(split, DiskSplit) and teacher is not None and teacher.store is not None:
        split = replace(split, known=teacher.store.images)
    fill = run.config.answers.fill
    return Stepper(
        make_engine(run, distiller, world),
        split,
        run.config.train,
        run.device,
        fill == "epoch" or (fill == "auto" and run.device.type != "cpu"),
        note,
        as_decoded=fill == "auto" and not isinstance(split, MemorySplit),  # which would decode them twice
    )


@phase("counting the FLOPs of a forward")
def open_ledger(run: Resolved) -> Ledger:
    """An empty ledger of the networks, which are measured here: before they are sharded."""
    ledger = Ledger.of(run.student, run.teacher, run.data.image_shape)
    if not is_sharded_role(run.config.train, "student"):
        return ledger
    # A sharded network cannot be copied, to measure it on smaller images when they come.
    return replace(ledger, student_at=flops_by_size(skeleton(run.student), run.data.channels))


def shard_or_wrap(run: Resolved, world: World) -> nn.Module:
    """The student ready for several processes: wrapped in DDP, or sharded in place, as the teacher may be."""
    train = run.config.train
    if run.teacher is not None and is_sharded_role(train, "teacher"):
        shard(run.teacher.requires_grad_(False), world, run.device)
    if not is_sharded_role(train, "student"):
        return world.wrapped(run.student, run.device)
    shard(run.student, world, run.device)
    return run.student


def make_distiller(
    run: Resolved, student: nn.Module, ledger: Ledger, note: Callable[[str], None], world: World
) -> Distiller:
    """Student (as `shard_or_wrap` gives it), teacher, method and losses, with ledger and store of answers."""
    train, path = run.config.train, run.config.answers.path
    return Distiller(
        student,
        run.asked,
        run.method,
        run.objective,
        batch_size=own_batch_size(train.batch_size, world),
        seed=train.seed,
        rank=world.rank,
        ledger=ledger,
        store=None if path is None else open_store(run, path, note),
        student_dtype=DTYPES[train.precision],
        teacher_dtype=DTYPES[train.teacher_precision],
        marks_faulty=True,
    )


def make_engine(run: Resolved, distiller: Distiller, world: World) -> Engine:
    """The distiller with its optimiser, statistics and history.

    Raises:
        UserError: some process would keep no row of a batch
    """
    train, images, device = run.config.train, len(run.data.train), run.device
    for epoch in range(train.epochs):
        check_kept(distiller.method.at(epoch / train.epochs).keep, train.batch_size, world)
    average = None if train.ema_decay is None else MovingAverage(run.student, train.ema_decay)
    return Engine(
        distiller,
        build_optimizer(train, run.student.parameters(), device),
        EpochStats(
            torch.zeros(images, dtype=torch.int32, device=device),
            score_bins(distiller.method, run.student.card.num_classes),
        ),
        train.clip_norm,
        average,
        train.channels_last,
        History(images, device) if distiller.method.remembers else None,
        world,
        train.micro_batch,
        LossScale(device) if train.precision == "fp16" else None,
    )
