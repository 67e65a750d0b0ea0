"""Where commands write, and how they show a run at work."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from jsonargparse import Namespace
from rich import box
from rich.console import Console
from rich.table import Table

from unixkd.cli.recipes import PAIRS
from unixkd.errors import shown
from unixkd.method.ledger import Ledger
from unixkd.names import spoke
from unixkd.training.bars import BarDisplay, broken
from unixkd.training.display import Display, LineDisplay
from unixkd.training.distributed.launch import rank
from unixkd.training.forecast import Forecast

console = Console(markup=False, highlight=False, emoji=False)  # names are not interpreted, in tables either


def say(*lines: str, style: str | None = None) -> None:
    """Print lines as they are: no markup, no wrapping, so that they can be read by programs too."""
    if rank() == 0:
        for line in lines:
            console.print(shown(line), style=style, soft_wrap=True)
        spoke()


def say_prose(text: str) -> None:
    """Print a sentence, on a terminal in lines as wide as it is, no figure of it cut."""
    say(*(broken(text, console.width) if console.is_terminal else [text]))


def progress(text: str) -> None:
    """Tell on standard error what is going on."""
    if rank() == 0:
        Console(stderr=True, markup=False, highlight=False, emoji=False).print(shown(text), soft_wrap=True)
        spoke()


@contextmanager
def showing(epochs: Mapping[str, int] | None = None, workers: int = 1) -> Iterator[Display]:
    """A live display on a terminal, plain lines elsewhere; of several runs, the epochs of each by its name."""
    forecast = Forecast(epochs, workers) if epochs is not None and len(epochs) > 1 else None
    if not console.is_terminal or rank() != 0:
        yield LineDisplay(console, forecast)
        return
    bars = BarDisplay(console, forecast)
    ended = "failed"
    try:
        yield bars
        ended = ""
    except KeyboardInterrupt:
        ended = "stopped"
        raise
    finally:
        bars.close(ended)


def new_table(*headers: str, left: Collection[int] = (0,)) -> Table:
    """An empty table of numbers, which are aligned to the right; `left`: the columns aligned to the left."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for position, header in enumerate(headers):
        table.add_column(header, justify="left" if position in left else "right", no_wrap=True)
    return table


def percents(relative: Mapping[str, float]) -> list[str]:
    """The cells of a cost over plain KD's, by convention."""
    return [f"{100 * cost:.1f}" for cost in relative.values()]


def say_pair(options: Namespace, ledger: Ledger) -> None:
    """Print both networks of `plan`, what a forward of each costs, and their ratio."""
    names, flops = (options.teacher.name, options.student.name), ledger.known_flops()
    published = next((f" (published: {p.ratio})" for p in PAIRS if (p.teacher, p.student) == names), "")
    say(
        f"{names[0]} → {names[1]}: one forward costs {flops[1] / 1e6:,.1f} and "
        f"{flops[0] / 1e6:,.1f} MFLOPs per image, F_t/F_s = {flops[1] / flops[0]:.2f}{published}"
    )
