"""Configuration to objects: the one visible table of every name the command line knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from unixkd.build_methods import build_method, named
from unixkd.checks import check_data, check_sizes, check_small_batches, check_synchronised, check_train
from unixkd.config import LossConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.data import Data, load_data
from unixkd.errors import UserError
from unixkd.feature_losses import AttentionTransfer, FeatureLoss, SimilarityPreserving
from unixkd.losses import DIST, DKD, KD, CrossEntropy, Loss
from unixkd.methods import Method
from unixkd.models import PixelModel, build_model
from unixkd.models.classes import own_num_classes
from unixkd.objective import Objective, Term
from unixkd.sharding import spreads

LOSSES: dict[str, Callable[[LossConfig], Loss]] = {
    "kd": lambda c: KD(c.temperature),
    "dkd": lambda c: DKD(c.temperature, c.dkd_alpha, c.dkd_beta),
    "dist": lambda c: DIST(c.temperature),
    "at": lambda c: AttentionTransfer(tuple(c.student_layers), tuple(c.teacher_layers)),
    "sp": lambda c: SimilarityPreserving(tuple(c.student_layers), tuple(c.teacher_layers)),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda c, **common: torch.optim.SGD(momentum=c.momentum, nesterov=c.nesterov, **common),
    "adamw": lambda c, **common: torch.optim.AdamW(capturable=isinstance(common["lr"], Tensor), **common),
}


def build_objective(config: LossConfig, method: Method, label_smoothing: float = 0.0) -> Objective:
    """The losses with a weight other than 0; cross-entropy alone for a method without a teacher."""
    if not method.teacher:
        return [Term("ce", CrossEntropy(label_smoothing))]
    if not config.temperature > 0:
        raise UserError(f"loss.temperature must be above 0, got {config.temperature}")
    terms = [
        Term(name, make(config), weight)
        for name, make in LOSSES.items()
        if (weight := getattr(config, name)) != 0
    ]
    if config.ce != 0:
        terms.append(Term("ce", CrossEntropy(label_smoothing), config.ce))
    if not terms:
        raise UserError(f"every loss has weight 0; give one of {', '.join([*LOSSES, 'ce'])} a weight")
    return terms


@dataclass(frozen=True)
class RunParts:
    """Everything a training run works with, checked to fit together."""

    data: Data
    student: PixelModel
    teacher: PixelModel | None
    method: Method
    objective: Objective


def build_run(config: RunConfig, device: torch.device) -> RunParts:
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
    return RunParts(data, student, teacher, method, objective)


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


def build_optimizer(
    config: TrainConfig, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The named optimiser over all parameters; its learning rate is a tensor where a graph may read it."""
    lr: float | Tensor = config.lr
    # torch's fused SGD knows no sharded tensors
    fused = config.fused and not (config.optimizer == "sgd" and spreads(config, "student"))
    if device.type == "cuda" and fused:
        lr = torch.tensor(config.lr, device=device)
    return named("optimizer", config.optimizer, OPTIMIZERS)(
        config, params=parameters, lr=lr, weight_decay=config.weight_decay, fused=fused
    )


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
