"""`plan`: what each method will cost, before training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import Namespace
from rich import box
from rich.table import Table

from unixkd.batch import Batch
from unixkd.build import default_device
from unixkd.build_methods import build_method
from unixkd.commands.screen import console, say
from unixkd.commands.single import check_named, data_of_run
from unixkd.config import DataConfig, MethodConfig
from unixkd.data import load_data
from unixkd.methods import METHODS
from unixkd.models import build_model
from unixkd.planner import MethodPlan, Plan, make_plan
from unixkd.recipes import PAIRS

KNOWN_DATA = {"digits": (1, 8, 10, 1438), "cifar10": (3, 32, 10, 50000), "cifar100": (3, 32, 100, 50000)}
"""Channels, size, classes, training images: planning needs no more, so nothing is downloaded for it."""


def plan(options: Namespace) -> None:
    """`unixkd plan`: F_t/F_s, every method's cost, a timed step, break-even, warnings."""
    check_named(teacher=options.teacher, student=options.student)
    channels, size, classes, images = planned_shape(planned_data(options))
    means, device = [0.5] * channels, default_device()
    teacher, student = (
        build_model(config, num_classes=classes, in_channels=channels, mean=means, std=means).to(device)
        for config in (options.teacher, options.student)
    )
    teacher.to(memory_format=torch.channels_last)
    student.to(memory_format=torch.channels_last)
    configs = [options.method] if options.method.name else [MethodConfig(name) for name in METHODS]
    methods = [build_method(config) for config in configs]
    pixels = torch.rand(options.batch_size, channels, size, size, device=device)
    labels = torch.randint(classes, (options.batch_size,), device=device)
    batch = Batch(pixels.to(memory_format=torch.channels_last), labels)
    result = make_plan(teacher, student.train(), methods, batch, epoch_images=images, rounds=options.rounds)
    print_plan(result, options.teacher.name, options.student.name)


def planned_data(options: Namespace) -> DataConfig:
    """The data named, or else those that the teacher was trained on, or else CIFAR-100."""
    if options.data.name:
        return options.data
    folder = Path(options.teacher.name)
    data = data_of_run(folder) if (folder / "run.yaml").exists() else DataConfig("cifar100")
    return replace(data, size=options.data.size or data.size, limit=options.data.limit or data.limit)


def planned_shape(config: DataConfig) -> tuple[int, int, int, int]:
    """Channels, size, classes and training images of the data, read only where they are not known."""
    if config.name in KNOWN_DATA:
        channels, size, classes, images = KNOWN_DATA[config.name]
        return channels, config.size or size, classes, config.limit or images
    data = load_data(config)
    return data.channels, data.size, data.num_classes or 1000, len(data.train)


def print_plan(result: Plan, teacher: str, student: str) -> None:
    """The plan as a table, with what to make of it."""
    published = {(p.teacher, p.student): p.ratio for p in PAIRS}.get((teacher, student))
    beside = f" (published: {published})" if published else ""
    say(
        f"{teacher} → {student}: one forward costs {result.teacher_flops / 1e6:,.1f} and "
        f"{result.student_flops / 1e6:,.1f} MFLOPs per image, F_t/F_s = {result.ratio:.2f}{beside}"
    )
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
        "Times are steps on this machine with random pixels, interleaved with plain KD's."
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
