"""`plan`: what each method will cost, before training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import Namespace
from rich import box
from rich.table import Table

from unixkd.batch import Batch
from unixkd.build import default_device
from unixkd.build_methods import build_method
from unixkd.commands.choosing import choose, pair_line
from unixkd.commands.on_paper import plan_on_paper
from unixkd.commands.screen import console, say
from unixkd.commands.single import check_named, data_of_run
from unixkd.config import DataConfig, MethodConfig
from unixkd.data import load_data, num_views
from unixkd.errors import UsageError, UserError
from unixkd.forecast import Setting
from unixkd.methods import METHODS, Method
from unixkd.models import PixelModel, build_model
from unixkd.paper_options import asks_for_paper, parse_images
from unixkd.planner import MethodPlan, Plan, make_plan
from unixkd.recipes import IMAGENET
from unixkd.targets import parse_target


class Shape(NamedTuple):
    """What planning needs to know of data.

    Args:
        channels: 1 or 3
        size: side of the images in pixels
        classes: number of classes
        images: of the training set
        views: that an image has, however many are trained on; None: without end
    """

    channels: int
    size: int
    classes: int
    images: int
    views: int | None


KNOWN_DATA = {
    "digits": Shape(1, 8, 10, 1438, 9),
    "cifar10": Shape(3, 32, 10, 50000, 162),
    "cifar100": Shape(3, 32, 100, 50000, 162),
}
"""So nothing is downloaded for planning."""
IMAGENET_DATA = Shape(3, 224, 1000, 1_281_167, None)
"""Of the recipe that names no data: wherever they are kept, they are these."""


def plan(options: Namespace) -> None:
    """`unixkd plan`: every method's cost, a timed step, break-even; a run on paper; or the way to a target."""
    check_named(teacher=options.teacher, student=options.student)
    target = parse_target(options.budget, options.match_kd)
    data = planned_data(options)
    if asks_for_paper(options):
        shape = shape_on_paper(options, data)
        teacher, student = planned_networks(options, shape)
        methods = planned_methods(options.method)
        plan_on_paper(options, teacher, student, methods, shape.images, shape.size)
        return
    shape = planned_shape(data) if options.data.name or options.recipe != IMAGENET else imagenet_shape(data)
    teacher, student, batch = planned_step(options, shape)
    if target is not None:
        choose(options, target, data, setting_of(options, data, shape, batch), teacher, student, batch)
        return
    result = make_plan(
        teacher,
        student,
        planned_methods(options.method),
        batch,
        epoch_images=shape.images,
        epochs=options.train.epochs,
        rounds=options.rounds,
    )
    print_plan(result, options.teacher.name, options.student.name)


def planned_methods(config: MethodConfig) -> list[Method]:
    """The method named, or else all whose cost does not depend on what is stored.

    Raises:
        UserError: the one named mixes stored answers
    """
    if not config.name:
        return [method for make in METHODS.values() if not (method := make()).mixes_answers]
    method = build_method(config)
    if method.mixes_answers:
        raise UserError(
            f"what {method.name} costs depends on its stored answers: give --match-kd or --budget, which count them "
            "for all ways to distil"
        )
    return [method]


def planned_networks(options: Namespace, shape: Shape) -> tuple[PixelModel, PixelModel]:
    """Teacher, and student in train mode."""
    means, device = [0.5] * shape.channels, default_device()
    teacher, student = (
        build_model(
            replace(config, pretrained=False),
            num_classes=shape.classes,
            in_channels=shape.channels,
            mean=means,
            std=means,
        ).to(device)
        for config in (options.teacher, options.student)
    )
    teacher.to(memory_format=torch.channels_last)
    student.to(memory_format=torch.channels_last)
    return teacher, student.train()


def planned_step(options: Namespace, shape: Shape) -> tuple[PixelModel, PixelModel, Batch]:
    """The networks, and a batch of random pixels to time their steps on."""
    (teacher, student), device = planned_networks(options, shape), default_device()
    pixels = torch.rand(options.batch_size, shape.channels, shape.size, shape.size, device=device)
    labels = torch.randint(shape.classes, (options.batch_size,), device=device)
    return teacher, student, Batch(pixels.to(memory_format=torch.channels_last), labels)


def setting_of(options: Namespace, data: DataConfig, shape: Shape, batch: Batch) -> Setting:
    """What ways to distil are planned for."""
    if options.data.mixes is not None:
        raise UsageError("plan ranks fixed mixes beside the other ways by itself: leave --data.mixes out")
    limited = data.views is not None and (shape.views is None or data.views < shape.views)
    return Setting(
        shape.images,
        options.batch_size,
        options.train.epochs,
        options.runs,
        data.views if limited else shape.views,
        in_turn=limited,
        ahead=batch.images.device.type != "cpu",
    )


def planned_data(options: Namespace) -> DataConfig:
    """The data named, or else the recipe's, or else those that the teacher was trained on, or else CIFAR-100."""
    if options.data.name:
        return options.data
    if options.recipe == IMAGENET:
        return replace(options.data, name="folder:imagenet")
    name = options.teacher.name
    data = data_of_run(Path(name)) if is_run(name) else DataConfig("cifar100")
    return replace(data, size=options.data.size or data.size, limit=options.data.limit or data.limit)


def is_run(name: str) -> bool:
    """Whether a teacher's name is a run folder, which knows its data."""
    return (Path(name) / "run.yaml").exists()


def planned_shape(config: DataConfig) -> Shape:
    """What is to be known of the data, read only where it is not known."""
    known = KNOWN_DATA.get(config.name)
    if known is None:
        data = load_data(replace(config, views=None, mixes=None))
        return Shape(
            data.channels, data.size, data.num_classes or 1000, len(data.train), data.train.num_views
        )
    size = config.size or known.size
    padding = round(size / 8) if config.crop_padding is None else config.crop_padding
    flip = config.name != "digits" if config.flip is None else config.flip
    images = config.limit or known.images - round(config.holdout * known.images)
    return known._replace(size=size, images=images, views=num_views(padding, flip))


def shape_on_paper(options: Namespace, data: DataConfig) -> Shape:
    """The data planned for, with the number of images that is given; ImageNet's shape where no data are named."""
    if options.images is None:
        return planned_shape(data)
    images = parse_images(options.images)
    if options.data.name or is_run(options.teacher.name):
        if options.classes is not None:
            raise UsageError(f"--classes is for images without data: {data.name} has its own")
        return planned_shape(data)._replace(images=images)
    return Shape(3, options.data.size or 224, options.classes or 1000, images, options.data.views)


def imagenet_shape(config: DataConfig) -> Shape:
    """ImageNet-1k's, for as many of its images as are trained on; nothing is read."""
    held_out = round(config.holdout * IMAGENET_DATA.images)
    return IMAGENET_DATA._replace(
        size=config.size or IMAGENET_DATA.size, images=config.limit or IMAGENET_DATA.images - held_out
    )


def print_plan(result: Plan, teacher: str, student: str) -> None:
    """The plan as a table, with what to make of it."""
    say(pair_line((result.teacher_flops, result.student_flops), teacher, student))
    table = Table(
        *(
            "method",
            "cost %\nback ×1",
            "cost %\nback ×2",
            "ms per\nstep",
            "time %\nof kd",
            "pays above\nF_t/F_s of",
        ),
        box=box.SIMPLE_HEAD,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result.methods:
        table.add_row(*plan_cells(row))
    console.print(table)
    say(
        "Costs are shares of plain KD's, with the backward pass counted as 1 or 2 forwards.\n"
        "Times are steps on this machine with random pixels, interleaved with plain KD's.\n"
        "--match-kd or --budget 50% ranks ways to distil, those with stored answers and few views included."
    )
    for warning in result.warnings():
        say(f"WARNING: {warning}", style="yellow")


def plan_cells(row: MethodPlan) -> list[str]:
    """One method's line of the table."""
    limits = row.break_even.values()
    always, never = max(limits) == 0, min(limits) == float("inf")
    ratios = (
        "–"
        if row.method.ramp
        else "any"
        if always
        else "never"
        if never
        else " / ".join(f"{r:.3g}" for r in limits)
    )
    return [
        row.method.name,
        f"{100 * row.relative['backward_1x']:.1f}",
        f"{100 * row.relative['backward_2x']:.1f}",
        "–" if row.seconds is None else f"{1000 * row.seconds:.1f}",
        "–" if row.relative_seconds is None else f"{100 * row.relative_seconds:.0f}",
        ratios,
    ]
