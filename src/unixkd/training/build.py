"""From the configuration to a run's objects: data, networks, method, losses, distiller, optimiser, stepper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from unixkd.config import ModelConfig, RunConfig, TrainConfig
from unixkd.data.load import Data, load_data
from unixkd.data.sampling import check_kept, own_batch_size
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.epoch_choice import History
from unixkd.method.from_config import build_method, build_objective, named
from unixkd.method.ledger import Ledger, flops_by_size
from unixkd.method.losses import (
    FeatureLoss,
)
from unixkd.method.method import Method, pure_rows
from unixkd.method.objective import Objective
from unixkd.models.card import PixelModel
from unixkd.models.loading import build_model, own_num_classes
from unixkd.teacher.store import AnswerStore
from unixkd.training.answers import decided_precision, open_answers
from unixkd.training.checks import (
    check_data,
    check_sizes,
    check_small_batches,
    check_synchronised,
    check_train,
)
from unixkd.training.distributed.sharding import shard, skeleton, spreads
from unixkd.training.distributed.world import World
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats, score_bins
from unixkd.training.optimizer import build_optimizer, moving_average
from unixkd.training.precision import DTYPES, recall, settle
from unixkd.training.stepper import Stepper


@dataclass(frozen=True)
class RunComponents:
    """Everything a training run works with, checked to fit together."""

    data: Data
    student: PixelModel
    teacher: PixelModel | None
    method: Method
    objective: Objective


def build_run(config: RunConfig, device: torch.device) -> RunComponents:
    """Data, networks, method and losses of a run; every mismatch is found here, before training.

    Images in memory, batches of others and networks are put on the device, networks in channels_last unless configured;
    those that are to be sharded stay on the CPU.

    Raises:
        UserError: something is missing or does not fit
    """
    check_train(config.train)
    check_synchronised(config.train, device)
    if config.reference_epochs is not None and config.reference_epochs < 1:
        raise UserError(f"reference_epochs must be at least 1, got {config.reference_epochs}")
    method = build_method(config.method)
    objective = build_objective(config.loss, method, config.train.label_smoothing)
    if config.teacher is None and method.teacher:
        raise UserError(f"method {method.name} needs a teacher")
    if config.train.compile and any(isinstance(term.loss, FeatureLoss) for term in objective):
        raise UserError("at and sp read features inside the networks, which --train.compile does not allow")
    if method.mixes_answers and config.answers.path is None:
        raise UserError(
            f"method {method.name} mixes stored answers: give --answers.path, where to store them"
        )
    data = load_data(config.data)
    check_data(config, data, method, objective)
    teacher = None if config.teacher is None else build_network(config.teacher, data, "teacher")
    student = build_student(config, data, teacher)
    check_small_batches(config, data, method, student)
    check_sizes(config, data, method, student)
    test = None if data.test is None else data.test.to(device)
    data = replace(data, train=data.train.to(device), test=test)
    for network in (teacher, student):
        if network is not None:
            if not spreads(
                config.train, "student" if network is student else "teacher"
            ):  # else it may not fit
                network.to(device)
                if config.train.channels_last:
                    network.to(memory_format=torch.channels_last)
            if config.train.compile:
                compile_network(network)
    return RunComponents(data, student, teacher, method, objective)


def compile_network(network: nn.Module) -> None:
    """Compile a network for every size of batch it meets.

    Teacher and student are compiled as one forward, whose batches in training, scoring, evaluation and at an
    epoch's end are more than the 8 kinds after which dynamo would go on uncompiled, without a word.
    """
    import torch._dynamo.config as dynamo  # takes a second: here only

    dynamo.recompile_limit = dynamo.accumulated_recompile_limit
    network.compile(dynamic=False)


def build_network(
    config: ModelConfig, data: Data, role: Literal["teacher", "student", "model"]
) -> PixelModel:
    """A network for the data's classes; for data without classes, with as many as its weights have."""
    num_classes = own_num_classes(config, data.channels) if data.num_classes is None else data.num_classes
    return build_model(
        config,
        num_classes=num_classes,
        in_channels=data.channels,
        mean=data.mean,
        std=data.std,
        class_names=data.class_names,
        role=role,
    )


def build_student(config: RunConfig, data: Data, teacher: PixelModel | None) -> PixelModel:
    """The student, with initial weights that depend on the seed alone; unlabelled, it takes the teacher's classes."""
    if data.num_classes is None and teacher is not None:
        data = replace(data, num_classes=teacher.card.num_classes, class_names=teacher.card.class_names)
    torch.manual_seed(config.train.seed)
    return build_network(config.student, data, "student")


def pick_device(config: TrainConfig, number: int | None = None) -> torch.device:
    """The configured device; of several GPUs the one with this number.

    Raises:
        UserError: it is not there
    """
    available: dict[str, Callable[[], bool]] = {
        "auto": lambda: True,
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if not named("device", config.device, available)():
        raise UserError(f"device {config.device} is not available here; give --train.device auto or cpu")
    device = default_device() if config.device == "auto" else torch.device(config.device)
    if device.type != "cuda" or number is None:
        return device
    return torch.device("cuda", number % torch.cuda.device_count())  # srun may show each process only its own


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def decide(
    config: RunConfig,
    parts: RunComponents,
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


def open_ledger(config: RunConfig, parts: RunComponents) -> Ledger:
    """An empty ledger of the networks, which are measured here: before they are sharded."""
    ledger = Ledger.of(parts.student, parts.teacher, parts.data.image_shape)
    if not spreads(config.train, "student"):
        return ledger
    # A sharded network cannot be copied, to measure it on smaller images when they come.
    return replace(ledger, student_at=flops_by_size(skeleton(parts.student), parts.data.channels))


def spread(config: RunConfig, parts: RunComponents, device: torch.device, world: World) -> nn.Module:
    """The student as the processes train it: wrapped, or itself sharded, as the teacher is where it is to be."""
    if parts.teacher is not None and spreads(config.train, "teacher"):
        shard(parts.teacher.requires_grad_(False), world, device)
    if not spreads(config.train, "student"):
        return world.wrapped(parts.student, device)
    shard(parts.student, world, device)
    return parts.student


def make_distiller(
    config: RunConfig,
    parts: RunComponents,
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
        student_dtype=DTYPES[train.precision],
        teacher_dtype=DTYPES[train.teacher_precision],
        marks_faulty=True,
    )


def open_store(
    config: RunConfig, parts: RunComponents, path: str | None, note: Callable[[str], None]
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
    parts: RunComponents,
    distiller: Distiller,
    device: torch.device,
    note: Callable[[str], None],
    world: World,
) -> Stepper:
    """The optimiser, the sums and what takes the steps."""
    train, answers = config.train, config.answers
    for epoch in range(train.epochs):
        check_kept(distiller.method.at(epoch / train.epochs).keep, train.batch_size, world)
    engine = Engine(
        distiller,
        build_optimizer(train, parts.student.parameters(), device),
        EpochStats(
            torch.zeros(len(parts.data.train), dtype=torch.int32, device=device),
            score_bins(distiller.method, parts.student.card.num_classes),
        ),
        train.clip_norm,
        moving_average(parts.student, train.ema_decay),
        train.channels_last,
        History(len(parts.data.train), device) if distiller.method.remembers else None,
        world,
        train.micro_batch,
    )
    ahead = answers.fill == "epoch" or (answers.fill == "auto" and device.type != "cpu")
    return Stepper(engine, parts.data.train, train, device, ahead, note)
