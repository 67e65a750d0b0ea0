"""Tables of a plan on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from unixkd.on_paper import Paper, PaperRun
from unixkd.teacher.contents import Contents, format_bytes


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
