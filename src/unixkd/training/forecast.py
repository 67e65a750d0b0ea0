"""How long several runs will take together, by those that have begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean


@dataclass
class Progress:
    """How far a run is; times are seconds on the forecast's clock.

    Args:
        epochs: of the whole run
        first: epochs that were trained before
        done: epochs that are trained, with those of before and the share of the one at work
        begun: when it was begun; None: not yet, or by an earlier command
        started: when its first epoch was; None: not yet
        seen: when `done` was heard of
        finished: when it was finished, or that it was before
    """

    epochs: float
    first: float = 0.0
    done: float = 0.0
    begun: float | None = None
    started: float | None = None
    seen: float = 0.0
    finished: float | bool = False

    @property
    def per_epoch(self) -> float | None:
        """Seconds of an epoch, evaluation included; None where none is known."""
        trained = self.done - self.first
        return None if self.started is None or trained <= 0 else (self.seen - self.started) / trained

    @property
    def around(self) -> float | None:
        """Seconds before the first epoch and after the last one; None where it has not come to its end."""
        if self.begun is None or self.started is None or self.finished is False:
            return None
        return float(self.finished) - self.begun - (self.seen - self.started)


class Forecast:
    """Seconds until all runs of a comparison are finished.

    A run that has not begun is taken to need for an epoch what those of the same method do, else what others do. A
    run's name is METHOD-seedS.

    Args:
        epochs: of each run, by its name
        workers: runs that go on at a time
        now: a clock, in seconds
    """

    def __init__(
        self, epochs: Mapping[str, float], workers: int = 1, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.runs = {name: Progress(number) for name, number in epochs.items()}
        self.workers, self.now = max(1, workers), now

    def expect(self, run: str, epochs: float) -> None:
        """A run of so many epochs is one of them."""
        self.runs[run] = Progress(epochs)

    def begin(self, run: str) -> None:
        """A run reads its data."""
        if run in self.runs:
            self.runs[run].begun = self.now()

    def start(self, run: str, first: float) -> None:
        """A run is at its first epoch, after those it had trained before."""
        if run in self.runs:
            progress = self.runs[run]
            progress.first = progress.done = first
            progress.started = progress.seen = self.now()

    def reach(self, run: str, done: float) -> None:
        """A run has trained so many epochs."""
        if run in self.runs:
            self.runs[run].done, self.runs[run].seen = done, self.now()

    def finish(self, run: str) -> None:
        """A run is finished, now or by an earlier command."""
        if run in self.runs:
            progress = self.runs[run]
            progress.finished = True if progress.begun is None else self.now()

    @property
    def finished(self) -> int:
        """Runs that are finished."""
        return sum(progress.finished is not False for progress in self.runs.values())

    @property
    def share(self) -> float:
        """Share of all epochs of all runs that are trained, in [0, 1]."""
        done = sum(p.epochs if p.finished is not False else p.done for p in self.runs.values())
        return done / max(1, sum(progress.epochs for progress in self.runs.values()))

    def seconds_left(self) -> float | None:
        """Until the last run is finished; None where no epoch has been timed yet."""
        if mean(each.per_epoch for each in self.runs.values()) is None:
            return None
        left = [self._left(name) for name, run in self.runs.items() if run.finished is False]
        return max(*left, sum(left) / self.workers, 0.0) if left else 0.0

    def left_of(self, run: str) -> float | None:
        """Seconds that one run still takes; None where it is not known."""
        there = self.runs.get(run)
        return None if there is None or there.per_epoch is None else self._left(run)

    def _left(self, name: str) -> float:
        """Seconds that one run still takes."""
        run, everyone = self.runs[name], self.runs.values()
        method = name.rpartition("-seed")[0]
        alike = [p for other, p in self.runs.items() if other.rpartition("-seed")[0] == method]
        rate = run.per_epoch or mean(p.per_epoch for p in alike) or mean(p.per_epoch for p in everyone) or 0.0
        left = (run.epochs - run.done) * rate
        if run.started is not None:
            return max(0.0, left - (self.now() - run.seen))
        return left + (mean(p.around for p in everyone) or 0.0)


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
