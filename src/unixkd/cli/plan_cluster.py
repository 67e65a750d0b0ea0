"""`plan` for many GPUs or a large training set: images, FLOPs, hours and stored answers, and what these rest on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jsonargparse import Namespace
from rich.table import Table

from unixkd.cli.plan_timing import planned_pair
from unixkd.cli.screen import console, new_table, say, say_pair
from unixkd.errors import UserError, first_line
from unixkd.method.method import Method
from unixkd.method.unix import kd
from unixkd.models.card import PixelModel
from unixkd.names import NONE, count, format_bytes, three_digits
from unixkd.planning.cluster import BETWEEN, WITHIN, ClusterEstimate, ClusterPlan, asked_share, estimate
from unixkd.planning.timing import Pair, step_of, time_steps
from unixkd.teacher.format import Contents
from unixkd.training.memory import ran_out

TIMED_ROWS = 32
"""Images that are timed at once on a CPU; more are taken to take proportionally longer."""
VIEWS = (1, 4, 16, 64)
"""Stored views of each image that are shown by default, as far as a run's epochs show them."""


def plan_cluster(
    options: Namespace,
    teacher: PixelModel,
    student: PixelModel,
    methods: Sequence[Method],
    images: int,
    size: int,
) -> None:
    """Print each method's run, the store of answers by its views, and what all this rests on."""
    plan, methods = cluster_plan(options, student, images), [kd(), *methods]
    on_cpu = next(student.parameters()).device.type == "cpu"
    rounds = 0 if options.tflops else options.rounds
    pair = planned_pair(teacher, student, plan.rows, size, timed=rounds > 0, most=TIMED_ROWS)
    ledger, compute = pair.ledger, compute_seconds(pair, methods, plan, rounds)
    rate = 1e12 * options.tflops if options.tflops else None
    timed = zip(methods, compute, strict=True)
    plain, *runs = (estimate(method, plan, ledger, compute=s, rate=rate) for method, s in timed)
    gpu = bool(options.tflops) or not on_cpu
    classes = teacher.card.num_classes
    say_pair(options, ledger)
    say(*about(options, plan, size, classes).splitlines())
    console.print(run_table(runs, plan, "GPU" if gpu else "CPU"))
    views = [options.data.views] if options.data.views else VIEWS
    stored = {v: estimate(kd(), plan, ledger, asked=asked_share(plan, v)) for v in views if v <= plan.epochs}
    if stored:
        say("Plain KD on stored answers to some views of each image:")
        console.print(store_table(stored, plain, plan, classes))
    for line in foundations(options, plan, plain, gpu):
        say(line)
    if plain.step is not None and plan.sending > plain.step / 2:
        say("WARNING: a step sends for longer than it computes", style="yellow")


def cluster_plan(options: Namespace, student: PixelModel, images: int) -> ClusterPlan:
    """What is planned, from the options and the student's weights."""
    gpus, nodes = options.gpus or 1, options.nodes or 1
    assumed = BETWEEN if nodes > 1 else WITHIN
    return ClusterPlan(
        images,
        options.batch_size,
        options.train.epochs,
        options.runs,
        processes=gpus * nodes,
        gradients=sum(p.numel() * p.element_size() for p in student.parameters() if p.requires_grad),
        bandwidth=assumed if options.bandwidth is None else 1e9 * options.bandwidth,
    )


def compute_seconds(
    pair: Pair, methods: Sequence[Method], plan: ClusterPlan, rounds: int
) -> list[float | None]:
    """Seconds of a process's step by method, timed on the pair's images; None where nothing is to be timed."""
    if not rounds:
        return [None] * len(methods)
    steps, rows = [step_of(method.at(0.5), pair.size) for method in methods], len(pair.batch)
    try:
        seconds = time_steps(replace(pair, scale=1.0), steps, rounds)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError(
            f"out of memory with {rows} images at once ({first_line(error)}): lower --batch_size, or plan for more "
            "processes"
        ) from error
    return [statistics.median(seconds[step]) * plan.rows / rows for step in steps]


def about(options: Namespace, plan: ClusterPlan, size: int, classes: int) -> str:
    """What is planned, in two lines."""
    sent = f", sent in {three_digits(1000 * plan.sending)} ms" if plan.processes > 1 else ""
    nodes = f"{options.nodes:,} × {options.gpus or 1:,} = " if (options.nodes or 1) > 1 else ""
    return (
        f"on paper: {plan.epochs:,} epochs of {plan.images:,} images of {size} pixels in {classes:,} classes\n"
        f"{nodes}{plan.processes:,} process{'es' * (plan.processes > 1)}, batches of {plan.batch_size:,}, "
        f"{plan.rows:,} images each; {format_bytes(plan.gradients)} of gradients a step{sent}"
    )


def foundations(options: Namespace, plan: ClusterPlan, plain: ClusterEstimate, gpu: bool) -> list[str]:
    """What the figures rest on: measurements, options, assumptions, and what is left out."""
    if options.tflops:
        lines = [f"Given: {options.tflops:g} TFLOPs per second of a GPU, a backward counted as 2 forwards."]
    elif plain.step is None:
        lines = ["Nothing was timed (--rounds 0): with --rounds, or --tflops of a GPU, there are hours too."]
    else:
        rate = plain.flops["backward_2x"] / plain.steps / plan.processes / (plain.step - plan.sending) / 1e12
        lines = [f"Measured here: a process's forwards and backward; {rate:.3g} TFLOPs per second."]
        if not gpu:
            hint = "plan on one, or give what it reaches as --tflops"
            lines.append(f"GPUs are not measured on this machine: {hint}.")
    left_out = ["the optimiser", "evaluation", "loading images"]
    if plan.processes > 1:
        speed = f"{plan.bandwidth / 1e9:g} GB/s between processes"
        word = "Given" if options.bandwidth else "Assumed"
        lines.append(f"{word}: {speed}; gradients go after the backward.")
        left_out.append("waiting for the slowest process")
    return [*lines, f"Left out: {', '.join(left_out)}."]


def run_table(runs: Sequence[ClusterEstimate], plan: ClusterPlan, worker: str) -> Table:
    """Images, FLOPs and hours of each run, hours of a worker: GPU or CPU."""
    heads = ("scored", "asked", "trained", "FLOPs\n×1", "FLOPs\n×2", "ms a\nstep", "hours")
    table = new_table("run", *heads, f"{worker}\nhours")
    for run in runs:
        images = (run.images[name] for name in ("scored", "teacher_forwarded", "trained"))
        times = [NONE] * 3
        if run.step is not None and run.hours is not None:
            values = (1000 * run.step, run.hours, run.hours * plan.processes)
            times = [three_digits(value) for value in values]
        table.add_row(run.method.name, *map(count, (*images, *run.flops.values())), *times)
    return table


def store_table(
    stored: Mapping[int, ClusterEstimate], plain: ClusterEstimate, plan: ClusterPlan, classes: int
) -> Table:
    """What a store of answers takes and saves, by the views in it."""
    table = new_table("views", "fp16 on disk", "asked", "FLOPs ×2\n% of kd")
    for views, run in stored.items():
        sizes = Contents({}, plan.images, views, classes, "fp16").sizes  # logits, and their checksums
        table.add_row(
            f"{views:,}",
            format_bytes(sum(sizes.values())),
            count(run.images["teacher_forwarded"]),
            f"{100 * run.flops['backward_2x'] / plain.flops['backward_2x']:.1f}",
        )
    return table
