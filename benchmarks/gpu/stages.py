"""A queue of commands with a time limit: each in a process of its own, its output in a log, its figures in a file.

What a stage found is in `queue.json`, so that the same queue goes on where it stopped; a stage that fails does not stop
the next ones. A command's last line of JSON is its figures; it exits with 0 if it is finished, 75 if something is left.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

STOPPED = 75
GRACE = 30.0
"""Seconds that a stage has to stop when it is asked to, before it is killed."""
START = 20.0
"""Seconds that a stage takes until it looks at its clock, and after its last look."""
MINUTES = "{minutes}"
"""Stands in a command for the minutes that it is given."""
WIDTH = 80
Figures = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A command of the queue.

    Args:
        name: also of its log and its figures
        command: where `{minutes}` is in it, it stops by itself
        minutes: that it may take; one without `{minutes}` is expected to take them
        least: minutes without which it is not begun (default: all of them)
        summary: of its figures, in a few words
        missing: what it needs and is not here
        keep: what of its figures are this stage's
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    least: float | None = None
    summary: Callable[[Figures], str] = lambda figures: ""
    missing: str = ""
    keep: Callable[[Figures], Figures] = lambda figures: figures

    @property
    def limited(self) -> bool:
        """Whether it is told how long it may take."""
        return any(MINUTES in word for word in self.command)


@dataclass
class Outcome:
    """What came of a stage.

    Args:
        state: done, failed or left (not begun, or not finished)
        command: as it is written in its stage
        seconds: of its last run
        text: its figures in a few words, or the first line of what went wrong, or why it is left
        log: its output
        figures: the last line of JSON
    """

    state: str
    command: list[str]
    seconds: float = 0.0
    text: str = ""
    log: str = ""
    figures: Figures = field(default_factory=dict)


class Child(Protocol):
    """A command at work, as `subprocess.Popen` is one."""

    pid: int
    returncode: Any

    def wait(self, timeout: float) -> int:
        """The exit code; raises `subprocess.TimeoutExpired` where the command goes on."""

    def terminate(self) -> None:
        """Ask it to stop."""


Start = Callable[[Sequence[str], BinaryIO, Mapping[str, str]], Child]


def start_process(words: Sequence[str], log: BinaryIO, environment: Mapping[str, str]) -> Child:
    """A session of its own: Ctrl-C reaches it through `Queue.stop`, and what it started can be ended with it."""
    return subprocess.Popen(
        words, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


class Queue:
    """Runs stages as far as the time goes.

    Args:
        out: folder of `queue.json`, the logs and the figures
        seconds: until all has to end
        environment: of the commands
        clock: in seconds
        start: starts a command in a session of its own; is given its words, its log and the environment
    """

    def __init__(
        self,
        out: Path,
        seconds: float,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        start: Start = start_process,
    ) -> None:
        self.out, self.environment, self.clock, self.start = out, dict(environment), clock, start
        self.deadline = clock() + seconds
        self.stopped = False
        self.child: Child | None = None
        self.file = out / "queue.json"
        (out / "logs").mkdir(parents=True, exist_ok=True)
        found = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.outcomes = {name: Outcome(**outcome) for name, outcome in found.items()}

    def listen(self) -> None:
        """On SIGTERM and Ctrl-C the stage at work is asked to stop, and no other one begins; twice ends all at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)

    def stop(self, number: int, _frame: object) -> None:
        """Stop as soon as the stage at work has."""
        self.stopped = True
        signal.signal(number, signal.SIG_DFL)
        if self.child is not None:
            self.child.terminate()

    def work(self, stages: Sequence[Stage], show: Callable[[str], None] = print) -> dict[str, Outcome]:
        """Run what is not done; the outcome of every stage, by name."""
        for stage in stages:
            outcome = self.outcomes.get(stage.name)
            if outcome is not None and outcome.state == "done" and outcome.command == list(stage.command):
                continue
            if (reason := self.why_not(stage, outcome)) is None:
                show(f"{stage.name}: {' '.join(stage.command)}")
                self.outcomes[stage.name] = self.run(stage)
            else:
                self.outcomes[stage.name] = Outcome("left", list(stage.command), text=reason)
            self.save()
            if reason is None:
                show(table(stages, self.outcomes))
        return {stage.name: self.outcomes[stage.name] for stage in stages}

    def why_not(self, stage: Stage, before: Outcome | None) -> str | None:
        """Why a stage is not begun, or None."""
        least = 60 * (stage.minutes if stage.least is None else stage.least)
        if before is not None and not stage.limited and before.command == list(stage.command):
            least = max(least, before.seconds)
        if self.stopped:
            return "stopped before it began"
        if stage.missing:
            return stage.missing
        if self.left() < least:
            return f"{max(0, self.left()) / 60:.1f} minutes were left, it wants {least / 60:.1f}"
        return None

    def left(self) -> float:
        """Seconds."""
        return self.deadline - self.clock()

    def run(self, stage: Stage) -> Outcome:
        """Run a stage's command to its end, or until its time is over."""
        log = self.out / "logs" / f"{stage.name}.log"
        seconds = self.left()
        if stage.limited:
            seconds = max(0.0, min(60 * stage.minutes, seconds - START))
        words = [word.replace(MINUTES, f"{seconds / 60:.3f}") for word in stage.command]
        begun = self.clock()
        with log.open("wb") as output:
            self.child = self.start(words, output, self.environment)
            in_time = self.wait(seconds + (GRACE if stage.limited else 0))
        code = self.child.returncode
        self.child = None
        text = log.read_text(errors="replace")
        figures = stage.keep(last_json(text))
        (self.out / f"{stage.name}.json").write_text(json.dumps(figures, indent=2) + "\n")
        words, found = list(stage.command), summarised(stage, figures)
        outcome = Outcome("done", words, self.clock() - begun, found or last_line(text), str(log), figures)
        if code == STOPPED or (code and (self.stopped or not in_time)):
            outcome.state = "left"
            outcome.text = found or ("stopped" if in_time else "its time was over")
        elif code:
            outcome.state = "failed"
            outcome.text = first_error(text, figures) or f"exit code {code}"
        return outcome

    def wait(self, seconds: float) -> bool:
        """Wait for the command; whether it ended by itself in so many seconds. What it started ends with it."""
        assert self.child is not None
        patience, in_time = seconds, True
        for number in (signal.SIGTERM, signal.SIGKILL, None):
            try:
                self.poll(patience)
                break
            except subprocess.TimeoutExpired:
                patience, in_time = GRACE, False
                if number is not None:
                    os.killpg(self.child.pid, number)
        return in_time

    def poll(self, seconds: float) -> None:
        """Wait for the command; after a signal to this process, `GRACE` seconds at most.

        Raises:
            subprocess.TimeoutExpired: it goes on
        """
        assert self.child is not None
        until = time.monotonic() + seconds
        while True:
            try:
                self.child.wait(max(0.0, min(0.5, until - time.monotonic())))
                return
            except subprocess.TimeoutExpired:
                if self.stopped:
                    until = min(until, time.monotonic() + GRACE)
                if time.monotonic() >= until:
                    raise

    def save(self) -> None:
        """Write what is known of every stage, whole or not at all."""
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps({n: asdict(o) for n, o in self.outcomes.items()}, indent=2) + "\n")
        temporary.replace(self.file)


def summarised(stage: Stage, figures: Figures) -> str:
    """A stage's figures in a few words; none where it left no figures, or other ones than it should."""
    try:
        return stage.summary(figures) if figures else ""
    except (KeyError, TypeError, IndexError, ValueError):
        return "its figures are not as expected"


def last_json(text: str) -> Figures:
    """The last line that is a JSON object, or nothing."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else {}
    return {}


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def first_error(text: str, figures: Figures) -> str:
    """The first line of what went wrong: in the figures, of a test, an exception, or whatever speaks of an error.

    >>> first_error("Traceback (most recent call last):\\n  File 'x'\\nValueError: no\\n", {})
    'ValueError: no'
    """
    for failure in (*figures.get("failures", ()), *errors_in(figures)):
        return str(failure).partition("\n")[0]
    for pattern in (r"^E +(.+)$", r"^((?:\w+\.)*\w*(?:Error|Exception)\b.*)$", r"^(.*\berror\b.*)$"):
        if (match := re.search(pattern, text, re.MULTILINE | re.IGNORECASE)) is not None:
            return match[1].strip()
    if figures.get("passed") is False:
        return f"missed its target: {figures.get('target')}"
    return last_line(text)


def errors_in(figures: Figures) -> list[str]:
    """Every `error` in figures, however deep."""
    found = []
    for name, value in figures.items():
        if isinstance(value, dict):
            found += errors_in(value)
        elif name == "error":
            found.append(str(value))
    return found


def table(stages: Sequence[Stage], outcomes: Mapping[str, Outcome]) -> str:
    """All stages, a line each; below one that failed its log."""
    lines = [f"{'stage':<14}{'state':<9}{'minutes':>8}  found"]
    for stage in stages:
        outcome = outcomes.get(stage.name, Outcome("waits", []))
        minutes = f"{outcome.seconds / 60:.1f}" if outcome.seconds else ""
        lines.append(f"{stage.name:<14}{outcome.state:<9}{minutes:>8}  {outcome.text}"[:WIDTH].rstrip())
        if outcome.state == "failed":
            lines += [f"  {outcome.text}"] * (len(outcome.text) > WIDTH - 33) + [f"  log: {outcome.log}"]
    return "\n".join(["", *lines, ""])


def exit_code(outcomes: Mapping[str, Outcome]) -> int:
    """1 where a stage failed, else 75 where one is left."""
    states = {outcome.state for outcome in outcomes.values()}
    return 1 if "failed" in states else STOPPED if states != {"done"} else 0


NO_LIMIT = math.inf
"""Minutes of a stage that takes all that is left."""
