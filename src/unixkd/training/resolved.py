"""A run's configuration with nothing left open: what it names is built, what a machine decides is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from unixkd.config import ModelConfig, RunConfig, TrainConfig, check_ranges
from unixkd.data.load import Data, load_data
from unixkd.errors import UserError
from unixkd.method.from_config import build_method, build_objective
from unixkd.method.losses import FeatureLoss
from unixkd.method.method import Method
from unixkd.method.objective import Objective
from unixkd.models.card import PixelModel
from unixkd.models.loading import build_model, class_names_of, own_num_classes
from unixkd.models.user_code import code_fingerprint
from unixkd.names import is_code, local_path, phase
from unixkd.planning.catalogue import Strategy
from unixkd.planning.expected import Workload, expected_images
from unixkd.planning.strategies import teacher_forwards
from unixkd.planning.timing import timed_rows
from unixkd.teacher.folder import read_key
from unixkd.training.checks import (
    check_data,
    check_network,
    check_sizes,
    check_small_batches,
    check_synchronised,
    check_train,
)
from unixkd.training.distributed.sharding import is_sharded_role
from unixkd.training.distributed.world import ALONE, World
from unixkd.training.fingerprint import teacher_fingerprint
from unixkd.training.frozen_teacher import FORMS, TeacherForms
from unixkd.training.precision import DTYPES, remembered, settle, settle_threads
from unixkd.training.stored_views import with_views
from unixkd.training.used import uses_answers

PROBED = 4
"""Images that a probe takes at least."""


@dataclass(frozen=True)
class Resolved:
    """A configuration and everything it names, checked to fit together.

    Args:
        config: with precisions, threads and the teacher's form decided (by `resolve`)
        teacher: None for training on labels alone
        fingerprint: of the teacher, and of the student's code, by what a user calls them
        form: the teacher in the form in which it is asked (by `resolve`); None: as it is
    """

    config: RunConfig
    device: torch.device
    data: Data
    student: PixelModel
    teacher: PixelModel | None
    method: Method
    objective: Objective
    fingerprint: Mapping[str, str]
    form: PixelModel | None = None

    @property
    def asked(self) -> PixelModel | None:
        """The network that answers for the teacher."""
        return self.teacher if self.form is None else self.form


def resolve(
    config: RunConfig,
    device: torch.device,
    folder: Path | None,
    note: Callable[[str], None],
    world: World = ALONE,
) -> Resolved:
    """Build what a configuration names and decide what it leaves open; every process has to call it.

    What an earlier run in `folder` has decided stays; what a probe finds is noted.

    Raises:
        UserError: something is missing or does not fit
    """
    config = remembered(config, folder)
    built = world.leader_first(lambda: build_run(config, device, note))
    with torch.random.fork_rng(
        devices=[]
    ):  # a probe may draw, of dropout say, and how often depends on the clock
        config = world.once(lambda: decide(built, note, world.size))
        if isinstance(config.train.threads, int):
            torch.set_num_threads(config.train.threads)
        return with_form(replace(built, config=config), note, world)


def decide(built: Resolved, note: Callable[[str], None], processes: int = 1) -> RunConfig:
    """The configuration with each "auto" precision, and the threads, that are left as a probe on a few images says."""
    train = built.config.train
    rows = timed_rows(train.batch_size, built.data.image_shape[1:], least=PROBED)
    images = cache(partial(first_images, built, rows))
    train = settle(train, built.student, built.teacher, images, built.device, note)
    train = settle_threads(train, built.student, built.teacher, images, built.device, note, processes)
    return replace(built.config, train=train)


@phase("decoding the first images")
def first_images(built: Resolved, rows: int) -> Tensor:
    """So many training images `[N, C, H, W]`, the same at each start of a run."""
    return next(built.data.train.train_batches(0, torch.arange(rows), rows)).pixels.to(built.device)


def with_form(built: Resolved, note: Callable[[str], None], world: World) -> Resolved:
    """The run with its teacher in the configured form; "auto" is decided, on a CPU by a probe in the leader."""
    config, train, teacher = built.config, built.config.train, built.teacher
    wanted = train.frozen_teacher
    if wanted == "auto" and (teacher is None or not is_probed(built)):
        wanted = "eager"
    if teacher is not None and wanted != "eager":
        layout = torch.channels_last if train.channels_last else torch.contiguous_format
        dtype, images = DTYPES[train.teacher_precision], partial(first_images, built, train.batch_size)
        forms = TeacherForms(teacher, dtype, layout, images, note if world.leads else lambda _: None)
        if wanted == "auto":
            rows = rows_asked(config, built.method, built.data) / world.size
            pixels = math.prod(built.data.image_shape[1:])
            with phase("trying which form of the teacher is fastest"):
                wanted = world.once(lambda: forms.choose(rows, pixels))
        with phase(f"preparing the teacher, {wanted}"):
            wanted = world.leader_first(lambda: forms.get(wanted))
        built = replace(built, form=forms.made[wanted])
    return replace(built, config=replace(config, train=replace(train, frozen_teacher=wanted)))


def check_form(train: TrainConfig, objective: Objective, device: torch.device) -> None:
    """Raise where the teacher cannot be had in the form that is asked for."""
    why = None
    if reads_features(objective):
        why = "at and sp read features inside the teacher"
    elif is_sharded_role(train, "teacher"):
        why = "the teacher is sharded over processes"
    elif train.frozen_teacher == "compiled" and device.type != "cpu":
        why = f"it is compiled on a CPU only, not on {device.type}"
    if why and train.frozen_teacher in FORMS[1:]:
        raise UserError(f"{why}: leave --train.frozen_teacher {train.frozen_teacher} out")


def is_probed(built: Resolved) -> bool:
    """Whether other forms of the teacher may be tried; on a GPU none has been."""
    train = built.config.train
    asked = any(term.loss.needs_teacher for term in built.objective)
    whole = not (train.compile or is_sharded_role(train, "teacher") or reads_features(built.objective))
    return asked and whole and built.device.type == "cpu"


def reads_features(objective: Objective) -> bool:
    """Whether a loss compares features inside the networks."""
    return any(isinstance(term.loss, FeatureLoss) for term in objective)


def rows_asked(config: RunConfig, method: Method, data: Data) -> float:
    """Images on which a run's teacher is expected to be run, all processes together; a store that is there is full."""
    split, size, epochs = data.train, config.train.batch_size, config.train.epochs
    workload = Workload(len(split), size, epochs, views=split.num_views, in_turn=split.in_turn)
    rows = expected_images(method, workload.sizes, epochs)["teacher_forwarded"]
    if config.answers.path is None or split.num_views is None:
        return rows
    strategy = Strategy(method.name, config.method, stored=True, mixed=split.mixes is not None)
    forwards = teacher_forwards(strategy, workload)
    asked = 0.0 if read_key(local_path(config.answers.path)) else forwards.asked
    return rows - (forwards.needed - asked) * len(split)


def build_run(
    config: RunConfig, device: torch.device, note: Callable[[str], None] = lambda _: None
) -> Resolved:
    """Data, networks, method and losses of a run; every mismatch is found here, before training.

    Images in memory, batches of others and networks are put on the device, networks in channels_last unless configured;
    those that are to be sharded stay on the CPU.

    Raises:
        UserError: something is missing or does not fit
    """
    method, objective = read_method(config, device)
    data = load_data(config.data, class_names_of(config.teacher))
    if uses_answers(config, method, objective):
        config, data = with_views(config, data, note)
    return build_on(config, device, data, method, objective)


def read_method(config: RunConfig, device: torch.device) -> tuple[Method, Objective]:
    """Method and losses of a run, once its options go together; no image is read."""
    check_train(config.train)
    check_synchronised(config.train, device)
    check_ranges(config)
    method = build_method(config.method)
    objective = build_objective(config.loss, method, config.train.label_smoothing)
    if config.teacher is None and method.teacher:
        raise UserError(f"method {method.name} needs a teacher")
    if config.train.compile and reads_features(objective):
        raise UserError("at and sp read features inside the networks, which --train.compile does not allow")
    check_form(config.train, objective, device)
    if method.mixes_answers and config.answers.path is None:
        raise UserError(
            f"method {method.name} mixes stored answers: give --answers.path, where to store them"
        )
    return method, objective


def build_on(
    config: RunConfig, device: torch.device, data: Data, method: Method, objective: Objective
) -> Resolved:
    """A run on these data, as `build_run` makes it."""
    check_data(config, data, method, objective)
    teacher = None if config.teacher is None else build_network(config.teacher, data, "teacher")
    student = build_student(config, data, teacher)
    with phase("trying the networks on two images"):
        try_networks(config, device, data, method, student, teacher)
    return placed(config, device, data, student, teacher, method, objective)


def try_networks(
    config: RunConfig,
    device: torch.device,
    data: Data,
    method: Method,
    student: PixelModel,
    teacher: PixelModel | None,
) -> None:
    """Raise where a network cannot be used on the data's images as the run does."""
    cpu, shape, train = torch.device("cpu"), data.image_shape, config.train
    if teacher is not None:
        check_network(teacher, shape, cpu if is_sharded_role(train, "teacher") else device, trained=False)
    check_network(student, shape, cpu if is_sharded_role(train, "student") else device, trained=True)
    check_small_batches(config, data, method, student)
    check_sizes(config, data, method, student)


def placed(
    config: RunConfig,
    device: torch.device,
    data: Data,
    student: PixelModel,
    teacher: PixelModel | None,
    method: Method,
    objective: Objective,
) -> Resolved:
    """The run with its images and networks where they are used."""
    test = None if data.test is None else data.test.to(device)
    data = replace(data, train=data.train.to(device), test=test)
    fingerprint = fingerprint_of(student, teacher)  # now: later a network may be sharded
    if teacher is not None:
        place(teacher, config.train, device, "teacher")
    place(student, config.train, device, "student")
    return Resolved(config, device, data, student, teacher, method, objective, fingerprint)


def fingerprint_of(student: PixelModel, teacher: PixelModel | None) -> dict[str, str]:
    """What a run may not go on without: its teacher as it is, and the student's code."""
    parts = {} if teacher is None else teacher_fingerprint(teacher)
    code = {"the student's code": code_fingerprint(student.card.name)} if is_code(student.card.name) else {}
    return {f"the teacher's {name}": value for name, value in parts.items()} | code


def place(
    network: nn.Module, train: TrainConfig, device: torch.device, role: Literal["student", "teacher"]
) -> None:
    """Put a network where it runs and compile it; one to be sharded stays on the CPU, as it may not fit whole."""
    if not is_sharded_role(train, role):
        network.to(device)
        if train.channels_last:
            network.to(memory_format=torch.channels_last)
    if train.compile:
        import torch._dynamo.config as dynamo  # takes a second: here only

        # Training, scoring, evaluation and an epoch's end have more kinds of batches than the 8 after which dynamo
        # would go on uncompiled, without a word.
        dynamo.recompile_limit = dynamo.accumulated_recompile_limit
        network.compile(dynamic=False)


def build_network(
    config: ModelConfig,
    data: Data,
    role: Literal["teacher", "student", "model"],
    option: str | None = None,
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
        option=option,
    )


def build_student(config: RunConfig, data: Data, teacher: PixelModel | None) -> PixelModel:
    """The student, with initial weights that depend on the seed alone; unlabelled, it takes the teacher's classes."""
    if data.num_classes is None and teacher is not None:
        data = replace(data, num_classes=teacher.card.num_classes, class_names=teacher.card.class_names)
    torch.manual_seed(config.train.seed)
    return build_network(config.student, data, "student", None if config.teacher else "model")
