"""Training in pieces: several runs take turns until the time is over, each stops where nothing of it is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext

import torch

from unixkd.errors import UserError
from unixkd.training.compare import take_turns
from unixkd.training.display import Note
from unixkd.training.results import write_results
from unixkd.training.run import Trainer

Begin = Callable[[], Trainer]


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


def within(pace: Pace, begin: Begin) -> Generator[None, None, bool]:
    """A run that pauses after every step and stops in time; True where it came to its end.

    It is stopped after a checkpoint that the next one would not follow in time, and loses nothing. Where that
    was misjudged, or at a signal, it loses the epochs since its last one.
    """
    if not pace.reaches_checkpoint():
        return False
    since = pace.clock()
    trainer = begin()
    saved = trainer.epoch
    for _ in trainer.fit():
        if trainer.epoch > saved and trainer.epoch % trainer.config.train.checkpoint_every == 0:
            pace.interval, since, saved = pace.clock() - since, pace.clock(), trainer.epoch
            if not pace.reaches_checkpoint():
                return stop(trainer, saved)
        if pace.over():
            return stop(trainer, saved)
        yield
    write_results(trainer)
    return True


def unless_it_fails(run: Generator[None, None, bool], pace: Pace) -> Generator[None, None, bool]:
    """The run, whose failure is remembered: in borrowed time the others go on."""
    try:
        return (yield from run)
    except UserError as error:
        pace.failures.append(str(error))
        return False


def stop(trainer: Trainer, saved: int) -> bool:
    """Say where a run was stopped."""
    lost = f", {trainer.epoch - saved} epochs and a part of one are lost"
    epochs = f"{saved} of {trainer.config.train.epochs} epochs"
    trainer.display(Note(trainer.name, f"stopped after {epochs}{lost if trainer.epoch > saved else ''}"))
    return False


def run_in_turns(begin: list[Begin], pace: Pace, at_once: int, device: torch.device) -> list[bool]:
    """Which of these runs came to their end."""

    def lane() -> AbstractContextManager[object]:
        return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()

    runs = [lambda start=each: unless_it_fails(within(pace, start), pace) for each in begin]
    return take_turns(runs, at_once, lane)
