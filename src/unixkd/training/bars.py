"""Runs at work on a terminal: a bar each, as wide as the terminal has room for, and what is being waited for."""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from unixkd import names
from unixkd.errors import shown
from unixkd.names import clock, percent
from unixkd.training import stopping
from unixkd.training.display import (
    EpochDone,
    Event,
    Finished,
    LineDisplay,
    Note,
    Started,
    Stepped,
    epoch_parts,
    follow,
)
from unixkd.training.forecast import Forecast

GAP = "  "
LEAST_NAME, LEAST_BAR, MOST_BAR = 8, 8, 24
"""Columns: a longer name is cut where there is no room, and a bar is left out."""
WAITED = 1.0
"""Seconds after which the phase at work is shown."""
PARTS = ("times", "share", "rate", "accuracy", "cost")
"""What is shown of a run beside its name, the most important first; what has no room is left out whole."""

USUAL = {"times": len("0:00, 0:00 left"), "share": len("100 %"), "rate": len("1,000 images/s")}
"""Columns that parts have at least, so that bars keep their length."""


@dataclass
class Row:
    """A bar and what stands beside it.

    Args:
        begun: on the display's clock
        rate: images per second, or in the bar of all runs how many are finished
        total: steps of the run, or what else is counted
        first: of them, those done by an earlier command
        ended: how it came to its end: "", "stopped", "failed"
    """

    name: str
    begun: float
    total: float
    first: float = 0.0
    completed: float = 0.0
    rate: str = ""
    accuracy: str = ""
    cost: str = ""
    took: float | None = None
    ended: str = ""

    @property
    def part_done(self) -> float:
        """In [0, 1]."""
        return min(1.0, self.completed / self.total) if self.total else 1.0

    def parts(self, now: float, left: float | None) -> dict[str, str]:
        """The texts beside the bar; left: seconds until its end, where they are known."""
        elapsed = self.took if self.took is not None else now - self.begun
        if self.ended:
            times = f"{self.ended} after {clock(elapsed)}"
        elif self.part_done == 1 and self.took is not None:
            times = f"{clock(elapsed)}, done"
        else:
            times = f"{clock(elapsed)}, {'–' if left is None else clock(left)} left"
        share = f"{int(100 * self.part_done)} %"
        return {
            "times": times, "share": share, "rate": self.rate, "accuracy": self.accuracy, "cost": self.cost,
        }  # fmt: skip


class BarDisplay(LineDisplay):
    """A live bar per run; epochs and notes are printed above it, epochs not where several runs share the screen.

    Args:
        console: a terminal
        forecast: of several runs; None: there is one run
        now: a clock, in seconds
    """

    def __init__(
        self, console: Console, forecast: Forecast | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(console, forecast)
        self.now = now
        self.alone = Forecast({}, now=now)
        self.all = None if forecast is None else Row("all runs", now(), len(forecast.runs))
        self.rows: dict[str, Row] = {}
        self.live = Live(
            self, console=console, refresh_per_second=4, redirect_stderr=sys.stderr.isatty()
        )  # a file that standard error goes to gets what belongs there
        self.open = ExitStack()
        self.open.enter_context(names.shown_live())
        self.live.start()

    def __call__(self, event: Event) -> None:
        if self.forecast is None and isinstance(event, Started):
            self.alone.expect(event.run, event.epochs)
        follow(self.times, event, self.steps)
        if isinstance(event, Started):
            self.start(event)
        elif isinstance(event, Stepped):
            row = self.rows[event.run]
            row.completed, row.rate = event.step, rate(event.images_per_second)
            self.set_cost(row, event.cost)
        elif isinstance(event, EpochDone):
            self.end_epoch(event)
        elif isinstance(event, Note):
            self.note(event)
        elif isinstance(event, Finished):
            self.finish(event.run)

    @property
    def times(self) -> Forecast:
        """What knows how long runs take."""
        return self.alone if self.forecast is None else self.forecast

    def start(self, event: Started) -> None:
        """A bar for a run."""
        first = event.first_epoch * event.steps_per_epoch
        total = event.epochs * event.steps_per_epoch
        self.rows[event.run] = Row(shown(event.run), self.now(), total, first, first)

    def end_epoch(self, event: EpochDone) -> None:
        """A run stands at an epoch's end, with what was found there."""
        row, cost = self.rows[event.run], event.record["cost"]
        row.completed = event.record["epoch"] * self.steps[event.run]  # or fewer, where the method chose
        row.rate = rate(event.images_per_second)
        if event.record["accuracy"] is not None:
            row.accuracy = f"acc {percent(event.record['accuracy'])}"
        self.set_cost(row, None if cost is None else cost["backward_2x"])
        if self.forecast is None:
            for line in wrapped(epoch_parts(event), self.console.width):
                self.print(line)
        self.live.refresh()

    def set_cost(self, row: Row, cost: float | None) -> None:
        """Show a cost; where none is known, what was shown goes."""
        row.cost = "" if cost is None else f"cost {100 * cost:.1f} % of KD"

    def finish(self, run: str) -> None:
        """A run is finished; of several its bar goes."""
        if self.forecast is not None:
            self.rows.pop(run, None)
        elif run in self.rows:
            row = self.rows[run]
            row.completed, row.took = row.total, self.now() - row.begun
        self.live.refresh()

    def write(self, line: str) -> None:
        """Put a line above the bars, broken between words, and nowhere between a figure and its unit."""
        for part in broken(line, self.console.width):
            super().write(part)

    def close(self, ended: str = "") -> None:
        """Leave the terminal as it was, below a last picture of where runs stand; ended: how those at work ended."""
        for row in (*self.rows.values(), *filter(None, [self.all])):
            if row.took is None:
                row.took, row.ended = self.now() - row.begun, ended
        self.open.close()  # no phase any more
        self.live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now, waiting = self.now(), self.waiting()
        rows = [(row, row.parts(now, self.times.left_of(run))) for run, row in self.rows.items()]
        if self.all is not None and self.forecast is not None:
            self.all.completed, number = self.forecast.share * self.all.total, self.forecast.finished
            self.all.rate = f"{number} of {len(self.forecast.runs)} done"
            rows.insert(0, (self.all, self.all.parts(now, self.forecast.seconds_left())))
        yield from lines_of(rows, options.max_width)
        if waiting:
            yield Text(set_cell_size(waiting, min(cell_len(waiting), options.max_width)), no_wrap=True)

    def waiting(self) -> str:
        """What is being waited for, beside the steps that the bars show."""
        if not names.is_live():
            return ""
        if stopping.asked():
            return "stopping after this step; Ctrl-C once more stops at once"
        there = names.current()
        if there is None or time.monotonic() - there.began < WAITED:
            return ""
        if there.counted and self.rows and all(row.rate for row in self.rows.values()):  # the bar moves
            return ""
        return f"{shown(there.text)} … {clock(time.monotonic() - there.began)}"


def rate(images_per_second: float) -> str:
    """Images per second, with a digit after the point where there are few."""
    digits = 0 if images_per_second >= 9.95 else 1
    return f"{images_per_second:,.{digits}f} images/s"


def broken(text: str, width: int) -> list[str]:
    """A text in lines of a width; a figure stays with its unit, and what has no space in it is whole.

    >>> broken("accuracy 45.67 % at 12 images/s", 15)
    ['accuracy', '45.67 % at', '12 images/s']
    """
    joined = re.sub(r"(?<=\d) (?=%|(?:[kMGT]?B|m?s|min|h|images/s|left)\b)", "\u00a0", text)
    lines = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def wrapped(parts: Iterable[str], width: int) -> list[str]:
    """Parts joined to lines of a width, none of them broken; lines but the first are indented.

    >>> wrapped(["epoch 1/2", "loss 1.2", "accuracy 45.67 %"], 20)
    ['epoch 1/2  loss 1.2', '  accuracy 45.67 %']
    """
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1] + GAP + part) <= width:
            lines[-1] += GAP + part
        else:
            lines.append(GAP + part if lines else part)
    return lines


def lines_of(rows: Sequence[tuple[Row, dict[str, str]]], width: int) -> list[Table]:
    """One table of all rows in columns: the parts that have room, then the bar, then as much of names as is left."""
    if not rows:
        return []
    sizes = {part: max(cell_len(parts[part]) for _, parts in rows) for part in PARTS}
    sizes |= {part: max(size, USUAL.get(part, 0)) for part, size in sizes.items() if size}
    names = max(cell_len(row.name) for row, _ in rows)
    room, taken = width - min(names, LEAST_NAME), set[str]()
    bar = 0
    for part in PARTS:
        if sizes[part] and room >= sizes[part] + len(GAP):
            taken.add(part)
            room -= sizes[part] + len(GAP)
        if part == "rate" and room >= LEAST_BAR + len(GAP):  # before what the lines above the bar say too
            bar = LEAST_BAR
            room -= LEAST_BAR + len(GAP)
    name = min(names, min(names, LEAST_NAME) + room)
    bar = min(MOST_BAR, bar + room - (name - min(names, LEAST_NAME))) if bar else 0
    table = Table.grid(padding=(0, len(GAP), 0, 0))
    shown_parts = [part for part in ("share", "accuracy", "rate", "cost", "times") if part in taken]
    for size in (name, *([bar] if bar else []), *(sizes[part] for part in shown_parts)):
        table.add_column(width=size, no_wrap=True)
    for row, parts in rows:
        title = row.name if cell_len(row.name) <= name else set_cell_size(row.name, name - 1) + "…"
        cells: list[Text | ProgressBar] = [Text(title)]
        if bar:
            cells.append(ProgressBar(max(row.total, 1), row.completed, width=bar))
        cells += [Text(parts[part], justify="left" if part == "times" else "right") for part in shown_parts]
        table.add_row(*cells)
    return [table]
