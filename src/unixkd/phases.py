"""What is being waited for: work that may take a while is a phase, and who watches is told of it after some silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PATIENCE = 2.5
"""Seconds without a line after which the phase at work is announced."""
LEAST = 0.25
"""Seconds that it has been at work by then: what is over in a moment is not what was waited for."""
TICK = 0.25


@dataclass(frozen=True, eq=False)
class Phase:
    """Something that is going on.

    Args:
        text: what it is, to be read on
        once: it comes again and again, and is announced the first time
        counted: steps are counted in it, and a bar shows them
        began: when, by `time.monotonic`
    """

    text: str
    once: bool = False
    counted: bool = False
    began: float = field(default_factory=lambda: time.monotonic())


class _State:
    """Of this process: its phases, the innermost last; when a line was last shown; how many live displays there are."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.spoke = time.monotonic()
        self.live = 0


_state = _State()


@contextmanager
def phase(text: str, *, once: bool = False, counted: bool = False) -> Iterator[None]:
    """Within, a piece of work that may take a while: phases lie in one another, and the innermost is what goes on.

    >>> with phase("reading digits"):
    ...     current().text
    'reading digits'
    """
    entered = Phase(text, once, counted)
    _state.phases.append(entered)
    try:
        yield
    finally:
        _state.phases.remove(entered)


def current() -> Phase | None:
    """What is going on."""
    return _state.phases[-1] if _state.phases else None


def spoke() -> None:
    """Note that a line has been shown: what is announced next is what lasts from here on."""
    _state.spoke = time.monotonic()


@contextmanager
def shown_live() -> Iterator[None]:
    """Within, a display shows the current phase by itself, and nothing is announced."""
    _state.live += 1
    try:
        yield
    finally:
        _state.live -= 1
        spoke()


def is_live() -> bool:
    """Whether a live display has the screen: nothing else may write on it."""
    return _state.live > 0


@dataclass
class Announcer:
    """Tells of phases that last, each once.

    Args:
        tell: shows a text
    """

    tell: Callable[[str], None]
    last: Phase | None = None
    told: set[str] = field(default_factory=set)

    def look(self, now: float) -> None:
        """Tell what goes on at a time, if it has been silent for long and that is news."""
        there = current()
        if there is None or there is self.last or (there.once and there.text in self.told) or is_live():
            return
        if now - _state.spoke >= PATIENCE and now - there.began >= LEAST:
            self.last = there
            self.told.add(there.text)
            _state.spoke = now
            self.tell(there.text)


@contextmanager
def announced(tell: Callable[[str], None]) -> Iterator[None]:
    """Within, phases that last are told, from a thread of its own."""
    ended, announcer = threading.Event(), Announcer(tell)
    spoke()

    def watch() -> None:
        while not ended.wait(TICK):
            announcer.look(time.monotonic())

    thread = threading.Thread(target=watch, name="unixkd-phases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
