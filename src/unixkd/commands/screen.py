"""Where commands write, and how they show a run at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from unixkd.display import BarDisplay, Display, LineDisplay
from unixkd.launched import rank

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
