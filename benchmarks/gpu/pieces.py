"""Training in pieces: runs follow one another until the time is over; the last stops where nothing of it is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from unixkd.errors import UserError
from unixkd.training.display import Note
from unixkd.training.results import write_results
from unixkd.training.run import end_epoch, epoch_steps
from unixkd.training.state import Run

Begin = Callable[[], Run]


class Pace:
    """Says how long runs may go on. What they do up to a checkpoint is taken to last as long as it last did.

    Args:
        seconds: until all has to end
        clock: in seconds
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.deadline = clock, clock() + seconds
        self.interval = 0.0
        self.stopped = False
        self.failures: list[str] = []

    def left(self) -> float:
        """Seconds."""
        return self.deadline - self.clock()

    def over(self) -> bool:
        """Whether every run has to stop where it stands."""
        return self.stopped or self.left() <= 0

    def reaches_checkpoint(self) -> bool:
        """Whether a run that goes on, or begins, is likely to reach its next checkpoint."""
        return not self.stopped and self.left() > self.interval

    def stop(self, number: int, _frame: object) -> None:
        """On a signal: every run stops after its step; a second signal ends the process at once."""
        self.stopped = True
        signal.signal(number, signal.SIG_DFL)

    def listen(self) -> None:
        """Stop at Ctrl-C and SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)


def within(pace: Pace, begin: Begin) -> bool:
    """A run that stops in time; True where it came to its end.

    It is stopped after a checkpoint that the next one would not follow in time, and loses nothing. Where that
    was misjudged, or at a signal, it loses the epochs since its last one.
    """
    if not pace.reaches_checkpoint():
        return False
    since = pace.clock()
    run = begin()
    saved = run.epoch
    while run.epoch < run.config.train.epochs:
        for _ in epoch_steps(run):
            if pace.over():
                return stop(run, saved)
        end_epoch(run)
        if run.epoch % run.config.train.checkpoint_every == 0:
            pace.interval, since, saved = pace.clock() - since, pace.clock(), run.epoch
            if run.epoch < run.config.train.epochs and not pace.reaches_checkpoint():
                return stop(run, saved)
    write_results(run)
    return True


def stop(run: Run, saved: int) -> bool:
    """Say where a run was stopped."""
    lost = f", {run.epoch - saved} epochs and a part of one are lost"
    epochs = f"{saved} of {run.config.train.epochs} epochs"
    run.display(Note(run.name, f"stopped after {epochs}{lost if run.epoch > saved else ''}"))
    return False


def run_all(begin: list[Begin], pace: Pace) -> list[bool]:
    """Which of these runs came to their end, one after the other; after a failure the others go on."""
    ended = []
    for each in begin:
        try:
            ended.append(within(pace, each))
        except UserError as error:
            pace.failures.append(str(error))
            ended.append(False)
    return ended
