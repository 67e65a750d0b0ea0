"""Run folders in, a table in the terminal and a self-contained HTML page out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from unixkd.report.records import Command, Run

__all__ = ["report"]


def report(
    folders: Sequence[Path],
    html: Path | None,
    console: Console,
    reproduce: Callable[[Sequence[Run]], Sequence[Command]] = lambda runs: (),
) -> None:
    """Print the results of some runs as a table and write them as a page.

    Args:
        folders: run folders, or folders that hold run folders somewhere below
        html: the page to write, or None for the table alone
        console: where the table is printed; its width decides the columns
        reproduce: the commands that make runs again, for the page

    Raises:
        UserError: no finished run is found, a run's file is unreadable, matplotlib is missing for a page
    """
    from unixkd.errors import shown
    from unixkd.names import phase, plural
    from unixkd.report.page import write_page
    from unixkd.report.runs import find_runs, left_out
    from unixkd.report.table import render_table

    with phase("reading run folders"):
        runs, notes = find_runs(folders), left_out(folders)
    console.print(render_table(runs, width=console.width))
    for note in notes:
        console.print(shown(note), markup=False, emoji=False, soft_wrap=True)
    if html is not None:
        names = ", ".join(folder.resolve().name for folder in folders)
        title = f"Distillation report: {names}"
        with phase(f"drawing the report of {plural(len(runs), 'run')}"):
            write_page(runs, html, title, notes, reproduce(runs))
        console.print(shown(f"Report written to {html}"), markup=False, emoji=False, soft_wrap=True)
