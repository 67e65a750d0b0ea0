"""`plan` on paper, as tables: what a run on many GPUs would take, with what each figure rests on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch
from jsonargparse import Namespace
from rich import box
from rich.table import Table

from unixkd.cli.screen import console, pair_line, say
from unixkd.errors import UserError, first_line
from unixkd.method.batch import Batch
from unixkd.method.ledger import Ledger
from unixkd.method.method import Method
from unixkd.method.unix import kd
from unixkd.models.card import PixelModel
from unixkd.planning.cluster import (
    BETWEEN,
    WITHIN,
    ClusterEstimate,
    ClusterPlan,
    asked_share,
    estimate,
    waits_for_sending,
)
from unixkd.planning.timing import time_steps
from unixkd.teacher.format import Contents, format_bytes
from unixkd.training.memory import ran_out

TIMED_ROWS = 32
"""Images that are timed at once on a CPU, where more take as much longer."""
VIEWS = (1, 4, 16, 64)
"""Stored views of each image that are shown where no number is given; those that a run's epochs show."""


def plan_on_paper(
    options: Namespace,
    teacher: PixelModel,
    student: PixelModel,
    methods: Sequence[Method],
    images: int,
    size: int,
) -> None:
    """Print each method's run, the store of answers by its views, and what all this rests on.

    Args:
        options: of `plan`
        teacher: the teacher
        student: the student, in train mode
        methods: to plan for
        images: of the training set
        size: side of the images in pixels
    """
    plan = plan_of(options, student, images)
    ledger = Ledger.of(student, teacher, (student.card.in_channels, size, size))
    compute = compute_seconds(options, teacher, student, [kd(), *methods], plan, size)
    rate = None if options.tflops is None else 1e12 * options.tflops
    plain, *runs = (
        estimate(method, plan, ledger, compute=compute.get(method.name), rate=rate)
        for method in (kd(), *methods)
    )
    classes = teacher.card.num_classes
    say(pair_line((ledger.teacher_flops, ledger.student_flops), options.teacher.name, options.student.name))
    say(about(options, plan, size, classes))
    console.print(run_table(runs, plan, "GPU" if on_gpus(options, student) else "CPU"))
    views = [options.data.views] if options.data.views else VIEWS
    stored = {v: estimate(kd(), plan, ledger, asked=asked_share(plan, v)) for v in views if v <= plan.epochs}
    if stored:
        say("Plain KD on stored answers to so many views of each image:")
        console.print(store_table(stored, plain, plan, classes))
    for line in foundations(options, student, plan, plain):
        say(line)
    if waits_for_sending(plan, plain):
        say("WARNING: a step sends for longer than it computes", style="yellow")


def plan_of(options: Namespace, student: PixelModel, images: int) -> ClusterPlan:
    """What is planned, from the options and the student's weights."""
    gpus, nodes = options.gpus or 1, options.nodes or 1
    assumed = BETWEEN if nodes > 1 else WITHIN
    return ClusterPlan(
        images,
        options.batch_size,
        options.train.epochs,
        gpus * nodes,
        sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad),
        assumed if options.bandwidth is None else 1e9 * options.bandwidth,
        options.runs,
    )


def compute_seconds(
    options: Namespace,
    teacher: PixelModel,
    student: PixelModel,
    methods: Sequence[Method],
    plan: ClusterPlan,
    size: int,
) -> Mapping[str, float]:
    """Seconds of a process's step by method, timed here on random pixels; nothing where nothing is to be timed."""
    if options.tflops is not None or not options.rounds:
        return {}
    device = next(student.parameters()).device
    rows = min(plan.rows, TIMED_ROWS) if device.type == "cpu" else plan.rows
    pixels = torch.rand(rows, student.card.in_channels, size, size, device=device)
    labels = torch.randint(teacher.card.num_classes, (rows,), device=device)
    batch = Batch(pixels.to(memory_format=torch.channels_last), labels)
    try:
        seconds = time_steps(teacher, student, methods, batch, options.rounds)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError(
            f"out of memory with {rows} images at once ({first_line(error)}): lower --batch_size, or plan for more "
            "processes"
        ) from error
    return {name: statistics.median(found) * plan.rows / rows for name, found in seconds.items()}


def on_gpus(options: Namespace, student: PixelModel) -> bool:
    """Whether the seconds are a GPU's."""
    return options.tflops is not None or next(student.parameters()).device.type != "cpu"


def about(options: Namespace, plan: ClusterPlan, size: int, classes: int) -> str:
    """What is planned, in two lines."""
    sent = f", sent in {short(1000 * plan.sending)} ms" if plan.processes > 1 else ""
    nodes = f"{options.nodes:,} × {options.gpus or 1:,} = " if (options.nodes or 1) > 1 else ""
    return (
        f"on paper: {plan.epochs:,} epochs of {plan.images:,} images of {size} pixels in {classes:,} classes\n"
        f"{nodes}{plan.processes:,} process{'es' * (plan.processes > 1)}, batches of {plan.batch_size:,}, "
        f"{plan.rows:,} images each; {format_bytes(plan.gradients)} of gradients a step{sent}"
    )


def foundations(
    options: Namespace, student: PixelModel, plan: ClusterPlan, plain: ClusterEstimate
) -> list[str]:
    """What the figures rest on: what was measured, what was given, what is assumed, what is left out."""
    lines = []
    if options.tflops is not None:
        lines.append(
            f"Given: {options.tflops:g} TFLOPs per second of a GPU, a backward counted as 2 forwards."
        )
    elif plain.step is None:
        lines.append(
            "Nothing was timed (--rounds 0): with --rounds, or --tflops of a GPU, there are hours too."
        )
    else:
        rate = plain.flops["backward_2x"] / plain.steps / plan.processes / (plain.step - plan.sending) / 1e12
        lines.append(f"Measured here: a process's forwards and backward; {rate:.3g} TFLOPs per second.")
        if not on_gpus(options, student):
            lines.append(
                "GPUs are not measured on this machine: plan on one, or give what it reaches as --tflops."
            )
    if plan.processes > 1:
        word = "Assumed" if options.bandwidth is None else "Given"
        lines.append(
            f"{word}: {plan.bandwidth / 1e9:g} GB/s between processes; gradients go after the backward."
        )
    waiting = ["waiting for the slowest process"] * (plan.processes > 1)
    return [*lines, f"Left out: {', '.join(['the optimiser', 'evaluation', 'loading images', *waiting])}."]


def run_table(runs: Sequence[ClusterEstimate], plan: ClusterPlan, worker: str) -> Table:
    """Images, FLOPs and hours of each run, hours of a worker: GPU or process."""
    heads = ("scored", "asked", "trained", "FLOPs\n×1", "FLOPs\n×2", "ms a\nstep", "hours")
    table = new_table("run", *heads, f"{worker}\nhours")
    for run in runs:
        images = (run.images[name] for name in ("scored", "teacher_forwarded", "trained"))
        row = [run.method.name, *(prefixed(number) for number in (*images, *run.flops.values()))]
        if run.step is None or run.hours is None:
            table.add_row(*row, *["–"] * 3)
        else:
            values = (1000 * run.step, run.hours, run.hours * plan.processes)
            table.add_row(*row, *map(short, values))
    return table


def store_table(
    stored: Mapping[int, ClusterEstimate], plain: ClusterEstimate, plan: ClusterPlan, classes: int
) -> Table:
    """What a store of answers takes and saves, by the views in it."""
    table = new_table("views", "fp16 on disk", "asked", "FLOPs ×2\n% of kd")
    for views, run in stored.items():
        table.add_row(
            f"{views:,}",
            format_bytes(stored_bytes(plan.images, views, classes)),
            prefixed(run.images["teacher_forwarded"]),
            f"{100 * run.flops['backward_2x'] / plain.flops['backward_2x']:.1f}",
        )
    return table


def stored_bytes(images: int, views: int, classes: int) -> int:
    """Of a store in fp16, checksums included.

    >>> stored_bytes(images=1_281_167, views=1, classes=1000)  # 2,004 bytes each
    2567458668
    """
    return sum(Contents({}, images, views, classes, "fp16").sizes.values())


def new_table(first: str, *columns: str) -> Table:
    """An empty table of numbers, but for the first column."""
    table = Table(first, *columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for position, column in enumerate(table.columns):
        column.no_wrap = True
        column.justify = "right" if position else "left"
    return table


def short(number: float) -> str:
    """Three digits, and all those before the point; no more than four after it.

    >>> short(0.01234), short(12.34), short(12345.6), short(0.00001)
    ('0.0123', '12.3', '12,346', '<0.0001')
    """
    if 0 < number < 1e-4:
        return "<0.0001"
    return f"{number:,.0f}" if number >= 100 else f"{round(number, 4):.3g}"


def prefixed(number: float) -> str:
    """Three digits and a prefix.

    >>> prefixed(115_305_030), prefixed(2.5e18), prefixed(12), prefixed(0)
    ('115M', '2.5E', '12', '0')
    """
    for prefix, scale in reversed(list(zip("kMGTPEZY", (10.0 ** (3 * n) for n in range(1, 9)), strict=True))):
        if number >= 0.9995 * scale:
            return f"{number / scale:.3g}{prefix}"
    return f"{number:.3g}"
