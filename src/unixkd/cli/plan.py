"""`plan`: what each method will cost, before training; with a target, strategies ranked, and a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import Namespace
from rich import box
from rich.table import Table

from unixkd.cli.options import asks_for_paper, parse_images
from unixkd.cli.plan_cluster import plan_on_paper
from unixkd.cli.recipes import IMAGENET
from unixkd.cli.screen import console, pair_line, say
from unixkd.cli.train import check_named, data_of_run
from unixkd.config import DataConfig, MethodConfig, TrainConfig
from unixkd.data.load import load_data
from unixkd.data.views import num_views
from unixkd.errors import UsageError, UserError
from unixkd.method.batch import Batch
from unixkd.method.from_config import build_method
from unixkd.method.ledger import forward_flops
from unixkd.method.method import Method
from unixkd.method.unix import METHODS
from unixkd.models.card import PixelModel
from unixkd.models.loading import build_model
from unixkd.names import IMAGENET_IMAGES, spelled
from unixkd.planning.catalogue import Budget, Evidence, Group, MatchKD, Strategy, parse_target, ways
from unixkd.planning.methods import MethodPlan, Plan, make_plan
from unixkd.planning.strategies import Forecast, Setting, make_forecasts
from unixkd.teacher.format import Contents
from unixkd.training.resolved import default_device


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


IMAGENET_DATA = Shape(3, 224, 1000, IMAGENET_IMAGES, None)
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


def choose(
    options: Namespace,
    target: Budget | MatchKD,
    data: DataConfig,
    setting: Setting,
    teacher: PixelModel,
    student: PixelModel,
    batch: Batch,
) -> None:
    """Rank the ways, say what each relies on, print the command of the first that reaches the target."""
    known = ways(setting.images)
    forecasts = {
        each.way.name: each
        for each in make_forecasts(known, teacher, student, batch, setting, options.rounds)
    }
    shape = (batch.pixels.shape[1], batch.pixels.shape[2], batch.pixels.shape[3])
    flops = (forward_flops(teacher, shape), forward_flops(student, shape))
    say(pair_line(flops, options.teacher.name, options.student.name))
    say(about(setting))
    cost = {name: each.relative["backward_2x"] for name, each in forecasts.items()}
    groups = target.groups([each.way for each in forecasts.values()], cost)
    console.print(ranking(groups, forecasts))
    for line in notes(known, forecasts, setting.images):
        say(line)
    best = next((group.ways[0] for group in groups if group.eligible), None)
    if best is None:
        say(f"\nNo way is within the budget; the cheapest is {groups[0].ways[0].name}.", style="yellow")
        return
    say(f"\nThe first: {best.name}{', of unknown accuracy' if best.matches is None else ''}.")
    for line in needs(best, setting, teacher.card.num_classes):
        say(line)
    say("  " + shlex.join(command_words(options, best, data, setting)))


def about(setting: Setting) -> str:
    """What is planned, in a line."""
    runs = "1 run" if setting.runs == 1 else f"the mean of {setting.runs} runs that share stored answers"
    views = "views without end" if setting.views is None else f"{setting.views:,} views each"
    return f"{setting.epochs:,} epochs of {setting.images:,} images with {views}, {runs}"


def ranking(groups: list[Group], forecasts: dict[str, Forecast]) -> Table:
    """The ways as a table, those that miss the target dimmed and without a rank."""
    table = Table(
        "",
        "way",
        *("cost\n×1 %", "cost\n×2 %", "s per\nrun", "time %\nof kd"),
        "against kd,\npoints",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for position, column in enumerate(table.columns):
        column.no_wrap = True
        column.justify = "left" if position in (1, 6) else "right"
    rank = 0
    for group in groups:
        style = None if group.eligible else "dim"
        table.add_section()
        table.add_row("", f"[italic]{group.heading}[/italic]", style=style)
        for way in group.ways:
            rank += group.eligible
            table.add_row(str(rank) if group.eligible else "–", *cells(forecasts[way.name]), style=style)
    return table


def cells(forecast: Forecast) -> list[str]:
    """A way's line of the table without its rank."""
    seconds, share = forecast.seconds, forecast.relative_seconds
    return [
        forecast.way.name,
        f"{100 * forecast.relative['backward_1x']:.1f}",
        f"{100 * forecast.relative['backward_2x']:.1f}",
        "–" if seconds is None else f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}",
        "–" if share is None else f"{100 * share:.0f}",
        shown(forecast.way),
    ]


def shown(way: Strategy) -> str:
    """What is known of a way's accuracy, in few words."""
    if way.exact:
        return "the same run" if way.stored else "itself"
    found = way.evidence
    return "not measured" if found is None else points(found)


def points(found: Evidence) -> str:
    """A measured difference, its spread and the number of seeds.

    >>> points(Evidence(difference=-0.1, sd=0.25, n=5, images=500, where="…"))
    '-0.10 ± 0.25 (5)'
    """
    return f"{found.difference:+.2f} ± {found.sd:.2f} ({found.n})"


def notes(known: list[Strategy], forecasts: dict[str, Forecast], images: int) -> list[str]:
    """What is to be said of the table, for a training set of so many images."""
    lines = [
        "Costs are shares of plain KD's, with the backward pass counted as 1 or 2 forwards; ×2 counts here."
    ]
    if any(each.seconds is not None for each in forecasts.values()):
        lines.append(
            "Times are forwards and backwards of random pixels, timed here in turns with plain KD's."
        )
    shown_ways = [each.way for each in forecasts.values()]
    lines += [f"{way.name} was measured on {way.evidence.where}." for way in shown_ways if way.evidence]
    lines += [
        f"{way.name} was measured with {way.elsewhere.images:,} images only ({points(way.elsewhere)}, "
        f"{way.elsewhere.where}): that says nothing of {images:,}."
        for way in shown_ways
        if way.elsewhere
    ]
    if any(way.matches is None for way in shown_ways):
        lines.append("Not measured: whether it is as accurate is not known; compare it with plain KD.")
    missing = [way.name for way in known if way.name not in forecasts]
    if missing:
        lines.append(f"Left out as views have no end: {', '.join(missing)}; --data.views limits them.")
    width = max(len(way.name) for way in shown_ways)
    lines.append("\nTo be as accurate as plain KD, each relies on")
    return lines + [f"  {way.name:<{width}}  {way.relies_on}" for way in shown_ways if way.relies_on]


def needs(way: Strategy, setting: Setting, classes: int) -> list[str]:
    """What a way that stores answers needs of the disk, and how further runs make use of it."""
    lines = []
    if way.stored:
        views = way.views(setting.epochs, setting.views) or setting.views
        assert views is not None
        lines.append(f"Its answers take {Contents({}, setting.images, views, classes, 'fp16')}.")
    if setting.runs > 1:
        lines.append("Further runs are the same command, each with a --seed of its own:")
    return lines


ANSWERS = "answers"
"""Folder of the stored answers in a printed command."""


def command_words(options: Namespace, way: Strategy, data: DataConfig, setting: Setting) -> list[str]:
    """The words of `unixkd distill ...` that run a way as planned.

    Args:
        options: of `plan`
        way: the way
        data: planned for
        setting: planned for
    """
    epochs, views = way.epochs(setting.epochs), way.views(setting.epochs, setting.views)
    if views is not None:
        data = replace(data, mixes=views) if way.mixed else replace(data, views=views)
    words = ["unixkd", "distill"]
    if options.recipe:
        words += ["--recipe", options.recipe]
    for group, config in (
        ("teacher", options.teacher),
        ("student", options.student),
        ("method", way.method),
        ("data", data),
    ):
        words += [f"--{group}", config.name, *changed(group, config)]
    if way.stored:
        words += ["--answers.path", ANSWERS]
    words += ["--epochs", str(epochs)]
    if epochs != setting.epochs:
        words += ["--reference_epochs", str(setting.epochs)]
    if setting.batch_size != TrainConfig.batch_size:
        words += ["--train.batch_size", str(setting.batch_size)]
    return words


def changed(group: str, config: object) -> Iterator[str]:
    """The words that set a configuration's fields, its name apart, to what is not their default."""
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if field.name != "name" and value != field.default:
            yield from (f"--{group}.{field.name}", spelled(value))
