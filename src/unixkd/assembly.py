"""A run's objects put together: distiller, optimiser, average and stepper out of parts and configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unixkd.bins import score_bins
from unixkd.build import RunParts, build_optimizer
from unixkd.config import RunConfig
from unixkd.cost import Ledger
from unixkd.distiller import Distiller
from unixkd.engine import Engine
from unixkd.errors import UserError
from unixkd.feature_losses import FeatureLoss
from unixkd.flops import flops_by_size
from unixkd.history import History
from unixkd.methods import pure_rows
from unixkd.models import PixelModel
from unixkd.parallel import World
from unixkd.precision import DTYPES, recall, settle
from unixkd.sharding import shard, skeleton, spreads
from unixkd.shares import check_kept, own_batch_size
from unixkd.stepper import Stepper
from unixkd.tally import Tally
from unixkd.teacher.opening import decided_precision, open_answers
from unixkd.teacher.store import AnswerStore


def decide(
    config: RunConfig,
    parts: RunParts,
    device: torch.device,
    saved: Mapping[str, str],
    note: Callable[[str], None],
) -> RunConfig:
    """The configuration with nothing left for this machine to decide; what a probe found is shown.

    Args:
        config: what is wanted
        parts: built from it
        device: where they run
        saved: what an earlier run decided, by field of `train`
        note: shows the user a line
    """
    split, size = parts.data.train, config.train.batch_size
    train, notes = settle(
        recall(config.train, {**decided_precision(config.answers.path), **saved}),
        parts.student,
        parts.teacher,
        lambda: next(split.train_batches(0, torch.arange(size), size)).pixels.to(device),
        device,
    )
    for line in notes:
        note(line)
    return replace(config, train=train)


def open_ledger(config: RunConfig, parts: RunParts) -> Ledger:
    """An empty ledger of the networks, which are measured here: before they are sharded."""
    ledger = Ledger.of(parts.student, parts.teacher, parts.data.image_shape)
    if not spreads(config.train, "student"):
        return ledger
    # A sharded network cannot be copied, to measure it on smaller images when they come.
    return replace(ledger, student_at=flops_by_size(skeleton(parts.student), parts.data.channels))


def spread(config: RunConfig, parts: RunParts, device: torch.device, world: World) -> nn.Module:
    """The student as the processes train it: wrapped, or itself sharded, as the teacher is where it is to be."""
    if parts.teacher is not None and spreads(config.train, "teacher"):
        shard(parts.teacher.requires_grad_(False), world, device)
    if not spreads(config.train, "student"):
        return world.wrapped(parts.student, device)
    shard(parts.student, world, device)
    return parts.student


def make_distiller(
    config: RunConfig,
    parts: RunParts,
    note: Callable[[str], None],
    student: nn.Module,
    ledger: Ledger,
    world: World,
) -> Distiller:
    """Student, teacher, method and losses, with an open ledger and the store of answers.

    Args:
        config: with both precisions decided
        parts: built from it
        note: shows the user a line
        student: as `spread` gives it
        ledger: as `open_ledger` gives it
        world: the processes
    """
    train = config.train
    if config.answers.max_faulty < 0:
        raise UserError(f"answers.max_faulty must be at least 0, got {config.answers.max_faulty}")
    return Distiller(
        student,
        parts.teacher,
        parts.method,
        parts.objective,
        batch_size=own_batch_size(train.batch_size, world),
        seed=train.seed,
        rank=world.rank,
        ledger=ledger,
        store=open_store(config, parts, config.answers.path, note),
        lender=open_store(config, parts, config.answers.lender, note),
        student_dtype=DTYPES[train.precision],
        teacher_dtype=DTYPES[train.teacher_precision],
        marks_faulty=True,
    )


def open_store(
    config: RunConfig, parts: RunParts, path: str | None, note: Callable[[str], None]
) -> AnswerStore | None:
    """A store of the teacher's answers, where there is to be one and a step can use it."""
    train = config.train
    if path is None or parts.teacher is None or not any(term.loss.needs_teacher for term in parts.objective):
        return None
    if any(isinstance(term.loss, FeatureLoss) for term in parts.objective):
        raise UserError("stored answers hold logits only: at and sp compare features, give no --answers.path")
    methods = [parts.method.at(epoch / train.epochs) for epoch in range(train.epochs)]
    if not any(pure_rows(method, train.batch_size) for method in methods):
        note(f"{parts.method.name} mixes every image it keeps: stored answers are of no use, none are kept")
        return None
    return open_answers(
        Path(path).expanduser(),
        config.answers,
        config.loss.temperature,
        parts.teacher,
        train.teacher_precision,
        parts.data.train,
        parts.data.fingerprint,
        note,
    )


def make_stepper(
    config: RunConfig,
    parts: RunParts,
    distiller: Distiller,
    device: torch.device,
    note: Callable[[str], None],
    world: World,
) -> Stepper:
    """The optimiser, the sums and what takes the steps."""
    train, answers = config.train, config.answers
    across = train.selection == "global" and world.size > 1
    for epoch in range(train.epochs):
        check_kept(distiller.method.at(epoch / train.epochs).keep, train.batch_size, world, across=across)
    engine = Engine(
        distiller,
        build_optimizer(train, parts.student.parameters(), device),
        Tally(
            torch.zeros(len(parts.data.train), dtype=torch.int32, device=device),
            score_bins(distiller.method, parts.student.card.num_classes),
        ),
        train.clip_norm,
        moving_average(parts.student, train.ema_decay),
        train.channels_last,
        History(len(parts.data.train), device) if distiller.method.remembers else None,
        world,
        train.micro_batch,
        across,
    )
    ahead = answers.fill == "epoch" or (answers.fill == "auto" and device.type != "cpu")
    return Stepper(engine, parts.data.train, train, device, ahead, note)


def moving_average(student: PixelModel, decay: float | None) -> AveragedModel | None:
    """A running average of the student's weights and buffers, where a decay is given."""
    if decay is None:
        return None
    return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
