"""`plan` on paper: what a run on many GPUs would take, as tables, with what each figure rests on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jsonargparse import Namespace

from unixkd.allocator import keep_freed_memory
from unixkd.commands.choosing import pair_line
from unixkd.commands.paper_tables import run_table, step_table, store_table, writing
from unixkd.commands.screen import console, say
from unixkd.communication import BETWEEN, WITHIN, Cluster, Link, Traffic
from unixkd.cost import Ledger
from unixkd.errors import UserError
from unixkd.memory import first_line, ran_out
from unixkd.methods import Method, kd
from unixkd.models import PixelModel
from unixkd.on_paper import Paper, PaperRun, asked_share, needed_parts, predict
from unixkd.step_parts import BACKWARD, Part, from_flops
from unixkd.teacher.contents import format_bytes
from unixkd.timed_parts import part_seconds

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
