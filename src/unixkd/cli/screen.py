"""Where commands write, and how they show a run at work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.table import Table

from unixkd.cli.recipes import PAIRS
from unixkd.training.display import BarDisplay, Display, LineDisplay
from unixkd.training.distributed.launch import rank

console = Console()


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup, no wrapping, so that it can be read by programs too."""
    if rank() == 0:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def showing(runs: int = 1) -> Iterator[Display]:
    """A live display on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield LineDisplay(console, name_runs=runs > 1)
        return
    bars = BarDisplay(console, runs=runs)
    try:
        yield bars
    finally:
        bars.close()


def new_table(*headers: str, left: Collection[int] = (0,)) -> Table:
    """An empty table of numbers, which are aligned to the right.

    Args:
        headers: of the columns
        left: columns that are aligned to the left
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for position, header in enumerate(headers):
        table.add_column(header, justify="left" if position in left else "right", no_wrap=True)
    return table


def pair_line(flops: tuple[int, int], teacher: str, student: str) -> str:
    """Both networks, what a forward of each costs, and their ratio.

    Args:
        flops: of the teacher's and the student's forward
        teacher: its name
        student: its name
    """
    published = {(p.teacher, p.student): p.ratio for p in PAIRS}.get((teacher, student))
    beside = f" (published: {published})" if published else ""
    return (
        f"{teacher} → {student}: one forward costs {flops[0] / 1e6:,.1f} and "
        f"{flops[1] / 1e6:,.1f} MFLOPs per image, F_t/F_s = {flops[0] / flops[1]:.2f}{beside}"
    )
