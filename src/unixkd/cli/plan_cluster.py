"""`plan` on paper, as tables: what a run on many GPUs would take, with what each figure rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jsonargparse import Namespace
from rich import box
from rich.table import Table

from unixkd.cli.screen import console, pair_line, say
from unixkd.errors import UserError
from unixkd.method.ledger import Ledger
from unixkd.method.method import Method
from unixkd.method.unix import kd
from unixkd.models.card import PixelModel
from unixkd.planning.cluster import (
    BACKWARD,
    Paper,
    PaperRun,
    Part,
    asked_share,
    from_flops,
    needed_parts,
    predict,
)
from unixkd.planning.links import BETWEEN, WITHIN, Cluster, Link, Traffic
from unixkd.planning.timing import part_seconds
from unixkd.teacher.format import Contents, format_bytes
from unixkd.training.memory import first_line, keep_freed_memory, ran_out

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
    """Print each method's step and run, the store of answers by its views, and what all this rests on.

    Args:
        options: of `plan`
        teacher: the teacher
        student: the student, in train mode
        methods: to plan for
        images: of the training set
        size: side of the images in pixels
    """
    paper = paper_of(options, student, images, size)
    ledger = Ledger.of(student, teacher, (student.card.in_channels, size, size))
    parts = needed_parts([kd(), *methods], paper, (size, size))
    seconds = seconds_of(options, teacher, student, parts, ledger, paper)
    runs = [predict(method, paper, ledger, seconds) for method in methods]
    plain = predict(kd(), paper, ledger, seconds)
    say(pair_line((ledger.teacher_flops, ledger.student_flops), options.teacher.name, options.student.name))
    say(about(paper, size, teacher.card.num_classes))
    if seconds is not None:
        console.print(step_table(runs))
    worker = "GPU" if options.tflops or device_of(student).type != "cpu" else "process"
    console.print(run_table(runs, paper, worker, options.hourly_price))
    views = [options.data.views] if options.data.views else VIEWS
    stored = {
        v: predict(kd(), paper, ledger, seconds, asked_share(paper, v)) for v in views if v <= paper.epochs
    }
    if stored:
        classes = teacher.card.num_classes
        say(f"Plain KD on stored answers to so many views of each image{writing(plain, paper, classes)}:")
        console.print(store_table(stored, plain, paper, classes))
    for line in [*sources(options, student, paper, plain), *foundations(options, paper)]:
        say(line)
    for warning in bottlenecks(plain):
        say(f"WARNING: {warning}", style="yellow")


def paper_of(options: Namespace, student: PixelModel, images: int, size: int) -> Paper:
    """What is planned, from the options and the student's weights."""
    within, between = (
        assumed if given is None else Link(1e9 * given, assumed.latency)
        for given, assumed in ((options.bandwidth, WITHIN), (options.node_bandwidth, BETWEEN))
    )
    buffers = list(student.buffers())
    traffic = Traffic(
        gradients=sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad),
        buffers=sum(b.numel() * b.element_size() for b in buffers),
        buffer_types=len({b.dtype for b in buffers}),
        image=4 * student.card.in_channels * size**2,
        selection=options.train.selection or "local",
    )
    return Paper(
        images,
        options.batch_size,
        options.train.epochs,
        Cluster(options.gpus or 1, options.nodes or 1, within, between),
        traffic,
        options.loading,
        options.runs,
    )


def seconds_of(
    options: Namespace,
    teacher: PixelModel,
    student: PixelModel,
    parts: Sequence[Part],
    ledger: Ledger,
    paper: Paper,
) -> dict[Part, float] | None:
    """Of the parts: from a GPU's rate where that is given, else timed here; None: nothing is to be timed."""
    if options.tflops is not None:
        return from_flops(parts, ledger, 1e12 * options.tflops)
    if not options.rounds:
        return None
    assert ledger.image_size is not None
    on_cpu = device_of(student).type == "cpu"
    dtype = torch.bfloat16 if options.precision == "bf16" else None
    most = TIMED_ROWS if on_cpu else None
    keep_freed_memory(on_cpu)  # as training does
    try:
        return part_seconds(
            teacher, student, parts, ledger.image_size, options.rounds, most_rows=most, dtype=dtype
        )
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError(
            f"out of memory with {paper.rows} images at once ({first_line(error)}): lower --batch_size, or plan for "
            "more processes"
        ) from error
    finally:
        keep_freed_memory(False)


def device_of(student: PixelModel) -> torch.device:
    """Where steps are timed."""
    return next(student.parameters()).device


def about(paper: Paper, size: int, classes: int) -> str:
    """What is planned, in two lines."""
    cluster = paper.cluster
    nodes = f"{cluster.nodes:,} × {cluster.gpus:,} = " if cluster.nodes > 1 else ""
    return (
        f"on paper: {paper.epochs:,} epochs of {paper.images:,} images of {size} pixels in {classes:,} classes\n"
        f"{nodes}{cluster.processes:,} process{'es' * (cluster.processes > 1)}, batches of {paper.batch_size:,}, "
        f"{paper.rows:,} images each; {format_bytes(paper.traffic.gradients)} of gradients a step, "
        f"{paper.traffic.selection} selection"
    )


def sources(options: Namespace, student: PixelModel, paper: Paper, plain: PaperRun) -> list[str]:
    """Where seconds come from, and what rate that is."""
    if plain.step is None:
        return ["Nothing was timed (--rounds 0): with --rounds, or --tflops of a GPU, there are hours too."]
    if options.tflops is not None:
        return []
    device = device_of(student)
    rate = plain.flops["backward_2x"] / plain.steps / paper.cluster.processes / plain.step.compute / 1e12
    where = f"a CPU (threads: {torch.get_num_threads()})" if device.type == "cpu" else name_of(device)
    part = device.type == "cpu" and paper.rows > TIMED_ROWS
    rows = f"{TIMED_ROWS} of {paper.rows} images, taken to be linear" if part else f"{paper.rows} images"
    lines = [
        f"Measured here, on {where}, {options.precision or 'fp32'}: a process's forwards, backward and update on "
        f"{rows}; {rate:.3g} TFLOPs per second."
    ]
    if device.type == "cpu":
        lines.append(
            "GPUs are not measured on this machine: plan on one, or give what it reaches as --tflops."
        )
    return lines


def name_of(device: torch.device) -> str:
    """An accelerator's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def bottlenecks(plain: PaperRun) -> list[str]:
    """What a step of plain KD waits for longer than it computes."""
    step = plain.step
    if step is None:
        return []
    if step.loading > step.compute + step.sending:
        return ["a step waits for images: its loaders take longer than all the rest"]
    return ["a step sends for longer than it computes"] if step.sending > step.compute else []


def foundations(options: Namespace, paper: Paper) -> list[str]:
    """What else the figures rest on: what was given, what is assumed, what is left out."""
    given: list[str] = []
    assumed: list[str] = []
    if options.tflops is not None:
        given.append(f"{options.tflops:g} TFLOPs per second of a GPU, a backward counted as 2 forwards")
    links = [("bandwidth", "within a node", paper.cluster.within, paper.cluster.gpus > 1)]
    links.append(("node_bandwidth", "between nodes", paper.cluster.between, paper.cluster.nodes > 1))
    for name, where, link, used in links:
        if used:
            told = assumed if getattr(options, name) is None else given
            told.append(f"{link.bandwidth / 1e9:g} GB/s {where}")
    if paper.cluster.processes > 1:
        assumed.append(f"{1e6 * paper.cluster.link.latency:g} µs a message")
        assumed.append(f"a backward is {BACKWARD:.0%} of forward and backward")
    if paper.loading is not None:
        given.append(f"loaders that deliver {paper.loading:,.5g} images per second and process")
    if options.hourly_price is not None:
        given.append(f"{options.hourly_price:g} for an hour of a process")
    lines = [f"{word}: {'; '.join(told)}." for word, told in (("Given", given), ("Assumed", assumed)) if told]
    if paper.cluster.processes > 1:
        lines.append("At least: gradients are sent all through the backward; at most: after it.")
    left_out = ["evaluation", *["waiting for the slowest process"] * (paper.cluster.processes > 1)]
    left_out += ["loading images (--loading)"] * (paper.loading is None)
    return [*lines, f"Left out: {', '.join(left_out)}. Hours are those at most."]


def step_table(runs: Sequence[PaperRun]) -> Table:
    """Milliseconds of a step by its parts."""
    table = new_table(
        *("ms of a step", "score", "teacher", "train", "update", "send"),
        *("at\nleast", "at\nmost", "busy\n%"),
    )
    for run in runs:
        step = run.step
        assert step is not None
        values = (step.scoring, step.teacher, step.training, step.optimizer, step.sending)
        table.add_row(
            run.method.name,
            *(short(1000 * value) for value in (*values, step.fastest, step.slowest)),
            f"{100 * step.compute / step.slowest:.0f}",
        )
    return table


def run_table(runs: Sequence[PaperRun], paper: Paper, worker: str, price: float | None) -> Table:
    """Images, FLOPs, and hours at most of a run.

    Args:
        runs: a line each
        paper: what is planned
        worker: what an hour is of: GPU or process
        price: of such an hour
    """
    table = new_table(
        *("run", "scored", "asked", "trained", "FLOPs\n×1", "FLOPs\n×2", "hours", f"{worker}-\nhours"),
        *(["cost"] if price is not None else []),
    )
    for run in runs:
        images = (run.images[name] for name in ("scored", "teacher_forwarded", "trained"))
        row = [run.method.name, *(prefixed(number) for number in (*images, *run.flops.values()))]
        hours = None if run.seconds is None else run.seconds[1] / 3600
        each: list[float] = [1, paper.cluster.processes]
        each += [] if price is None else [price * paper.cluster.processes]
        table.add_row(*row, *("–" if hours is None else short(hours * factor) for factor in each))
    return table


def store_table(stored: Mapping[int, PaperRun], plain: PaperRun, paper: Paper, classes: int) -> Table:
    """What a store of answers takes and saves.

    Args:
        stored: plain KD with a store, by the views in it
        plain: plain KD without
        paper: what is planned
        classes: logits of an answer
    """
    table = new_table("views", "fp16 on disk", "asked", "FLOPs ×2\n% of kd", "hours")
    for views, run in stored.items():
        table.add_row(
            f"{views:,}",
            format_bytes(stored_bytes(paper.images, views, classes)),
            prefixed(run.images["teacher_forwarded"]),
            f"{100 * run.flops['backward_2x'] / plain.flops['backward_2x']:.1f}",
            "–" if run.seconds is None else short(run.seconds[1] / 3600),
        )
    return table


def writing(plain: PaperRun, paper: Paper, classes: int) -> str:
    """How fast a store is written while an epoch fills it with a view of each image; the same is read later on."""
    if plain.seconds is None:
        return ""
    least = plain.seconds[0] / paper.epochs
    rate = format_bytes(round(stored_bytes(paper.images, 1, classes) / least))
    return f", up to {rate} per second written at first, read later on"


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
    """Three digits, and all those before the point.

    >>> short(0.01234), short(12.34), short(12345.6)
    ('0.0123', '12.3', '12,346')
    """
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def prefixed(number: float) -> str:
    """Three digits and a prefix.

    >>> prefixed(115_305_030), prefixed(2.5e18), prefixed(12), prefixed(0)
    ('115M', '2.5E', '12', '0')
    """
    for prefix, scale in reversed(list(zip("kMGTPEZY", (10.0 ** (3 * n) for n in range(1, 9)), strict=True))):
        if number >= 0.9995 * scale:
            return f"{number / scale:.3g}{prefix}"
    return f"{number:.3g}"
