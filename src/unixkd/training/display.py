"""What a run shows while it works: it emits events, and a display is any callable that takes them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unixkd.errors import shown
from unixkd.names import percent


@dataclass(frozen=True)
class Started:
    """A run begins (or goes on) at an epoch."""

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


Event = Started | Stepped | EpochDone | Note | Finished
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


def epoch_line(event: EpochDone) -> str:
    """One line about one epoch."""
    record = event.record
    parts = [f"epoch {record['epoch']:>3}/{event.epochs}", f"loss {record['loss']:.4f}"]
    if record["accuracy"] is not None:
        parts.append(f"accuracy {percent(record['accuracy'])}")
    if record["agreement"] is not None:
        parts.append(f"agrees with teacher {percent(record['agreement'])}")
    if record["cost"] is not None:
        parts.append(f"cost so far {percent(record['cost']['backward_2x'])} of KD")
    minutes, seconds = divmod(round(event.seconds_left), 60)
    parts.append(f"{event.images_per_second:,.0f} images/s, {minutes}:{seconds:02d} left")
    return "  ".join(parts)


class LineDisplay:
    """A line per epoch and note, for logs and pipes; of several runs only each one's last epoch."""

    soft_wrap = True
    """Leave lines as long as they are."""

    def __init__(self, console: Console, *, name_runs: bool = False) -> None:
        self.console, self.name_runs = console, name_runs
        self.shared: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.note(event)
        elif isinstance(event, EpochDone) and (not self.name_runs or event.record["epoch"] == event.epochs):
            self.print(epoch_line(event), event.run)

    def note(self, event: Note) -> None:
        """Print a note; one that is true of all runs once."""
        if not event.shared:
            self.print(event.text, event.run)
        elif event.text not in self.shared:
            self.shared.add(event.text)
            self.print(event.text)

    def print(self, text: str, run: str = "") -> None:
        """Print a line, of several runs with the name of the one it is about."""
        prefix = f"{run}: " if run and self.name_runs else ""
        self.console.print(
            shown(prefix + text), markup=False, highlight=False, emoji=False, soft_wrap=self.soft_wrap
        )


class BarDisplay(LineDisplay):
    """A live bar per run; epochs and notes are printed above it unless several runs share the screen."""

    soft_wrap = False

    def __init__(self, console: Console, *, runs: int = 1) -> None:
        super().__init__(console, name_runs=runs > 1)
        self.runs = runs
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )
        self.total = None
        if runs > 1:
            self.total = self.progress.add_task("all runs", total=runs, text=f"0 of {runs} done")
        self.done = 0
        self.tasks: dict[str, TaskID] = {}
        self.starts: dict[str, Started] = {}
        self.accuracy: dict[str, str] = {}
        self.progress.start()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            steps = event.epochs * event.steps_per_epoch
            self.tasks[event.run] = self.progress.add_task(
                shown(event.run), total=steps, completed=event.first_epoch * event.steps_per_epoch, text=""
            )
            self.starts[event.run] = event
        elif isinstance(event, Stepped):
            cost = "" if event.cost is None else f"  cost {event.cost:6.1%} of KD"
            text = f"{self.accuracy.get(event.run, '')}{event.images_per_second:7,.0f} images/s{cost}"
            self.progress.update(self.tasks[event.run], completed=event.step, text=text)
        elif isinstance(event, EpochDone):
            if event.record["accuracy"] is not None:
                self.accuracy[event.run] = f"acc {percent(event.record['accuracy'])} "
            steps = event.record["epoch"] * self.starts[event.run].steps_per_epoch  # or fewer, where it chose
            self.progress.update(self.tasks[event.run], completed=steps)
            if not self.name_runs:
                self.print(epoch_line(event))
        elif isinstance(event, Note):
            self.note(event)
        elif self.total is not None:  # one of several runs is done: its bar goes
            self.done += 1
            text = f"{self.done} of {self.runs} done"
            self.progress.update(self.total, completed=self.done, text=text)
            if event.run in self.tasks:
                self.progress.remove_task(self.tasks.pop(event.run))

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()
