"""`plan`: the pair and the data that are planned for, and what each method will cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import Namespace

from unixkd.cli.options import number_of_images, options_on_paper
from unixkd.cli.plan_cluster import plan_cluster
from unixkd.cli.plan_ranking import rank_strategies
from unixkd.cli.plan_timing import how_timed, planned_pair
from unixkd.cli.recipes import IMAGENET
from unixkd.cli.schedule import keeps_defaults, schedule
from unixkd.cli.screen import console, new_table, percents, say, say_pair
from unixkd.cli.sizes import KNOWN_DATA, Shape, at_teachers_size, teachers_size
from unixkd.cli.train import check_named, data_of_run
from unixkd.config import DataConfig, MethodConfig, ModelConfig
from unixkd.data.load import load_data
from unixkd.data.views import num_views
from unixkd.errors import UsageError, UserError
from unixkd.method.from_config import build_method
from unixkd.method.method import Method
from unixkd.method.unix import METHODS
from unixkd.models.card import PixelModel
from unixkd.models.folder import is_run_folder
from unixkd.models.loading import begins_trained, build_model, own_num_classes
from unixkd.names import IMAGENET_IMAGES, NONE
from unixkd.planning.catalogue import parse_target
from unixkd.planning.expected import Workload
from unixkd.planning.methods import MethodPlan, Plan, make_plan
from unixkd.training.checks import check_network
from unixkd.training.device import default_device


def plan(options: Namespace) -> None:
    """`unixkd plan`: every method's cost, a timed step, break-even; or a ranking; or an estimate for many GPUs."""
    check_named(teacher=options.teacher, student=options.student)
    target = parse_target(options.budget, options.match_kd)
    data = planned_data(options)
    shape = planned_shape(options, data)
    networks = planned_networks(options, shape)
    take_schedule(options, data, shape)
    if options_on_paper(options):
        plan_cluster(options, *networks, planned_methods(options.method), shape.images, shape.size)
        return
    pair = planned_pair(*networks, options.batch_size, shape.size, timed=options.rounds > 0)
    workload = workload_of(data, shape, options.batch_size, options.train.epochs, options.runs)
    if target is not None:
        rank_strategies(options, target, data, workload, pair)
        return
    say_pair(options, pair.ledger)
    result = make_plan(pair, planned_methods(options.method), workload, options.rounds)
    print_plan(result, how_timed(pair))


def take_schedule(options: Namespace, data: DataConfig, shape: Shape) -> None:
    """Epochs and batch that `distill` would choose, where they are not given."""
    begins = begins_trained(options.student)
    if options_on_paper(options) or keeps_defaults(options, data, begins):
        return
    chosen = schedule(shape.images, begins)
    for name, key in (("train.epochs", "train.epochs"), ("batch_size", "train.batch_size")):
        if name not in options.given:
            options[name] = chosen[key]


def planned_methods(config: MethodConfig) -> list[Method]:
    """The method named, or else all whose cost does not depend on what is stored."""
    if not config.name:
        return [method for make in METHODS.values() if not (method := make()).mixes_answers]
    method = build_method(config)
    if method.mixes_answers:
        raise UserError(
            f"what {method.name} costs depends on its stored answers: give --match-kd or --budget, which count them "
            "for all strategies"
        )
    return [method]


def planned_networks(options: Namespace, shape: Shape) -> tuple[PixelModel, PixelModel]:
    """Teacher, and student in train mode."""
    channels, means, device = shape.channels, [0.5] * shape.channels, default_device()

    def build(config: ModelConfig, role: Literal["teacher", "student"]) -> PixelModel:
        config = replace(config, pretrained=False)
        # Of a teacher only the shape counts here, so its weights may be missing.
        model = build_model(
            config,
            num_classes=shape.classes,
            in_channels=channels,
            mean=means,
            std=means,
            role="model" if role == "teacher" else role,
            option=role,
        )
        check_network(model, (channels, shape.size, shape.size), device, trained=False)
        return model.to(memory_format=torch.channels_last)

    return build(options.teacher, "teacher"), build(options.student, "student").train()


def workload_of(data: DataConfig, shape: Shape, batch_size: int, epochs: int, runs: int = 1) -> Workload:
    """The training that is planned."""
    limited = data.views is not None and (shape.views is None or data.views < shape.views)
    return Workload(
        shape.images,
        batch_size,
        epochs,
        runs,
        data.views if limited else shape.views,
        in_turn=limited,
        ahead=default_device().type != "cpu",
    )


def planned_data(options: Namespace) -> DataConfig:
    """The data named, or else the recipe's, or else those that the teacher was trained on, or else CIFAR-100."""
    if options.data.name:
        return at_teachers_size(options.data, options.teacher)
    if options.recipe == IMAGENET:
        return replace(
            options.data, name="folder:imagenet", size=options.data.size or teachers_size(options.teacher)
        )
    name = options.teacher.name
    data = data_of_run(Path(name), unread=KNOWN_DATA) if is_run(name) else DataConfig("cifar100")
    data = replace(data, size=options.data.size or data.size, limit=options.data.limit or data.limit)
    return at_teachers_size(data, options.teacher)


def is_run(name: str) -> bool:
    """Whether a teacher's name is a run folder, which knows its data."""
    return (Path(name) / "run.yaml").exists()


def planned_shape(options: Namespace, data: DataConfig) -> Shape:
    """The shape of the data, with `--images` of them; ImageNet's where no data are named."""
    number = None if options.images is None else number_of_images(options.images)
    of_recipe = options.recipe == IMAGENET
    named = options.data.name or (is_run(options.teacher.name) and not of_recipe)
    if not named and (number is not None or of_recipe):
        whole = data.limit or IMAGENET_IMAGES - round(data.holdout * IMAGENET_IMAGES)
        size = data.size or teachers_size(options.teacher) or 224
        return Shape(3, size, options.classes or 1000, number or whole, None)
    if options.classes is not None:
        raise UsageError(f"--classes is for images without data: {data.name} has its own")
    shape = data_shape(data, options.teacher)
    return shape if number is None else shape._replace(images=number)


def data_shape(config: DataConfig, teacher: ModelConfig) -> Shape:
    """The shape of data; without classes they have the teacher's. They are read only where it is not known."""
    known = KNOWN_DATA.get(config.name)
    if known is None:
        data = load_data(replace(config, views=None, mixes=None))
        classes, train = data.num_classes or classes_of(teacher, data.channels), data.train
        return Shape(data.channels, data.size, classes, len(train), train.num_views)
    size = config.size or known.size
    padding = round(size / 8) if config.crop_padding is None else config.crop_padding
    flip = config.name != "digits" if config.flip is None else config.flip
    images = config.limit or known.images - round(config.holdout * known.images)
    return known._replace(size=size, images=images, views=num_views(padding, flip))


def classes_of(teacher: ModelConfig, channels: int) -> int:
    """The classes that a teacher's weights have; 1000 where none are named."""
    weights = is_run_folder(teacher.name) or teacher.pretrained or teacher.weights is not None
    return own_num_classes(teacher, channels) if weights else 1000


def print_plan(result: Plan, how: str) -> None:
    """The plan as a table, with how its steps were timed and what to make of it."""
    table = new_table(
        *("method", "cost %\nback ×1", "cost %\nback ×2", "ms per\nstep", "time %\nof kd"),
        "pays above\nF_t/F_s of",
    )
    for row in result.methods:
        table.add_row(*plan_cells(row))
    console.print(table)
    say(
        "Costs are shares of plain KD's, with the backward pass counted as 1 or 2 forwards.",
        f"Times are steps on this machine with random pixels, interleaved with plain KD's: {how}.",
        "--match-kd or --budget 50% ranks strategies, those with stored answers and few views included.",
    )
    for warning in result.warnings():
        say(f"WARNING: {warning}", style="yellow")


def plan_cells(row: MethodPlan) -> list[str]:
    """One method's line of the table."""
    limits = row.break_even.values()
    if row.method.ramp:
        pays_above = NONE
    elif max(limits) == 0:
        pays_above = "any"
    elif min(limits) == float("inf"):
        pays_above = "never"
    else:
        pays_above = " / ".join(f"{ratio:.3g}" for ratio in limits)
    milliseconds = NONE if row.seconds is None else f"{1000 * row.seconds:.1f}"
    share = NONE if row.relative_seconds is None else f"{100 * row.relative_seconds:.0f}"
    return [row.method.name, *percents(row.relative), milliseconds, share, pays_above]
