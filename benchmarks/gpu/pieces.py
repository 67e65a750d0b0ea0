"""Training in pieces: runs follow one another, or take turns, until the time is over; none loses what it has saved."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from unixkd.errors import UserError, first_line
from unixkd.training.display import Note
from unixkd.training.results import write_results
from unixkd.training.run import end_epoch, epoch_steps
from unixkd.training.state import Run

Begin = Callable[[], Run]


@dataclass(frozen=True)
class Task:
    """A run to be begun.

    Args:
        begin: makes it, new or where it stopped
        ready: whether it can begin
        ended: called when it has stopped or come to its end
    """

    begin: Begin
    ready: Callable[[], bool] = lambda: True
    ended: Callable[[], None] = lambda: None


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


def steps_within(pace: Pace, begin: Begin) -> Generator[None, None, bool]:
    """The steps of a run that stops in time, one after the other; gives back whether it came to its end.

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
            yield
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


class Going:
    """A run under way; where several are, on a stream of its own, so that the device works on all of them.

    Args:
        task: the run
        pace: how long it may go on
        alone: whether it has the device to itself
    """

    def __init__(self, task: Task, pace: Pace, alone: bool) -> None:
        self.task, self.pace, self.stream = task, pace, None
        self.steps = steps_within(pace, task.begin)
        if torch.cuda.is_available() and not alone:
            self.stream = torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())

    def step(self) -> bool | None:
        """Take a step; None while the run goes on, then whether it came to its end. A failure is noted."""
        try:
            with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
                next(self.steps)
            return None
        except StopIteration as end:
            self.task.ended()
            return bool(end.value)
        except UserError as error:
            self.pace.failures.append(str(error))
        except Exception as error:  # of torch or CUDA: the others may be able to go on
            traceback.print_exc()
            self.pace.failures.append(f"{type(error).__name__}: {first_line(error)}")
        return False


def run_all(tasks: list[Task], pace: Pace, at_once: int = 1) -> list[bool]:
    """Which of these runs came to their end; after a failure the others go on.

    Args:
        tasks: in the order in which they begin, as far as they are ready
        pace: how long they may go on
        at_once: runs that take turns, a step each
    """
    ended, going = [False] * len(tasks), dict[int, Going]()
    waiting = list(range(len(tasks)))
    while True:
        while len(going) < at_once:
            number = next((each for each in waiting if tasks[each].ready()), None)
            if number is None:
                break
            waiting.remove(number)
            going[number] = Going(tasks[number], pace, alone=at_once == 1)
        if not going:
            return ended
        for number, each in list(going.items()):
            if (done := each.step()) is not None:
                ended[number] = done
                del going[number]
