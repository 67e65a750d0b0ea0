"""What a run shows while it works: it emits events, and a display is any callable that takes them. Lines for logs.

Bars for a terminal are in `bars`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from unixkd.errors import shown
from unixkd.names import clock, percent, spoke
from unixkd.training.forecast import Forecast


@dataclass(frozen=True)
class Began:
    """A run reads its data and builds its networks."""

    run: str


@dataclass(frozen=True)
class Started:
    """A run trains from an epoch on, the first or where it was left."""

    run: str
    epochs: int
    steps_per_epoch: int
    first_epoch: int = 0


@dataclass(frozen=True)
class Stepped:
    """Some steps of an epoch are done; cost is the share of plain KD's so far (backward = 2 forwards)."""

    run: str
    step: int
    images_per_second: float
    cost: float | None


@dataclass(frozen=True)
class EpochDone:
    """An epoch is done; `record` is its line in metrics.jsonl."""

    run: str
    epochs: int
    record: dict[str, Any]
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Note:
    """Something the user should read; what is true of all runs of a comparison is shown once."""

    run: str
    text: str
    shared: bool = False


@dataclass(frozen=True)
class Finished:
    """A run has come to its end."""

    run: str


Event = Began | Started | Stepped | EpochDone | Note | Finished
Display = Callable[[Event], None]


def silent(event: Event) -> None:
    """Shows nothing."""


def unfailing(display: Display) -> Display:
    """The same display, whose first error is a warning and its end: no run depends on being watched.

    SystemExit is one of them, as rich makes it of a closed pipe.
    """
    failed = False

    def show(event: Event) -> None:
        nonlocal failed
        if failed:
            return
        try:
            display(event)
        except (Exception, SystemExit) as error:
            failed = True
            closed = isinstance(error, SystemExit)
            reason = "its output is closed" if closed else f"{type(error).__name__}: {error}"
            with contextlib.suppress(Exception):  # stderr may be gone as well
                sys.stderr.write(
                    f"unixkd: warning: what shows the run has failed ({reason}); it goes on unseen\n"
                )

    return show


def epoch_parts(event: EpochDone) -> list[str]:
    """What is said of an epoch."""
    record = event.record
    parts = [f"epoch {record['epoch']:>3}/{event.epochs}", f"loss {record['loss']:.4f}"]
    if record["accuracy"] is not None:
        parts.append(f"accuracy {percent(record['accuracy'])}")
    if record["agreement"] is not None:
        parts.append(f"agrees with teacher {percent(record['agreement'])}")
    if record["cost"] is not None:
        parts.append(f"cost so far {percent(record['cost']['backward_2x'])} of KD")
    return parts


def epoch_line(event: EpochDone, left: str | None = None) -> str:
    """One line about one epoch, with the time that is `left`: the run's own unless another one is said."""
    left = left or f"{clock(event.seconds_left)} left"
    return "  ".join([*epoch_parts(event), f"{event.images_per_second:,.0f} images/s, {left}"])


def follow(forecast: Forecast, event: Event, steps_per_epoch: dict[str, int]) -> None:
    """Tell a forecast what an event says of it; `steps_per_epoch` of each run that has started is kept up."""
    if isinstance(event, Began):
        forecast.begin(event.run)
    elif isinstance(event, Started):
        steps_per_epoch[event.run] = event.steps_per_epoch
        forecast.start(event.run, event.first_epoch)
    elif isinstance(event, Stepped):
        forecast.reach(event.run, event.step / steps_per_epoch[event.run])
    elif isinstance(event, EpochDone):
        forecast.reach(event.run, event.record["epoch"])
    elif isinstance(event, Finished):
        forecast.finish(event.run)


class LineDisplay:
    """A line per epoch and note, for logs and pipes.

    Args:
        console: where lines go, as long as they are
        forecast: of several runs, whose lines are named and are those of last epochs only; None: there is one run
    """

    def __init__(self, console: Console, forecast: Forecast | None = None) -> None:
        self.console, self.forecast = console, forecast
        self.steps: dict[str, int] = {}
        self.shared: set[str] = set()

    def __call__(self, event: Event) -> None:
        if self.forecast is not None:
            follow(self.forecast, event, self.steps)
        if isinstance(event, Note):
            self.note(event)
        elif isinstance(event, EpochDone):
            if self.forecast is None:
                self.print(epoch_line(event))
            elif event.record["epoch"] == event.epochs:
                self.print(epoch_line(event, all_left(self.forecast)), event.run)

    def note(self, event: Note) -> None:
        """Print a note; one that is true of all runs once."""
        if not event.shared:
            self.print(event.text, event.run)
        elif event.text not in self.shared:
            self.shared.add(event.text)
            self.print(event.text)

    def print(self, text: str, run: str = "") -> None:
        """Print a line, of several runs with the name of the one it is about."""
        prefix = f"{run}: " if run and self.forecast is not None else ""
        self.write(shown(prefix + text))
        spoke()

    def write(self, line: str) -> None:
        """Put a line on the console."""
        self.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


def all_left(forecast: Forecast) -> str | None:
    """How long all runs still take; None where it is not known."""
    seconds = forecast.seconds_left()
    return None if seconds is None else f"{clock(seconds)} left for all runs"
