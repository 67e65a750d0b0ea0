"""Stopping on request: the first SIGTERM or Ctrl-C asks runs to stop and save, a second ends the process at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from unixkd.names import is_live

EXIT_CODE = 75
"""Of a process that was stopped on request and can be resumed (EX_TEMPFAIL of sysexits.h)."""

_state = {"listening": False, "asked": False}


class Stopped(KeyboardInterrupt):
    """A run was stopped on request and has saved where it stands."""


def asked() -> bool:
    """Whether runs are to stop at their next step."""
    return _state["asked"]


def ask() -> None:
    """Have runs stop at their next step, as SIGTERM does."""
    _state["asked"] = True


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C ask runs to stop instead of ending the process; handlers are put back at the end.

    In a thread that is not the main one, or within another such block, it changes nothing.
    """
    if _state["listening"] or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        listen(tuple(before), say=True)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.update(listening=False, asked=False)


def listen(signals: Sequence[signal.Signals], *, say: bool) -> None:
    """Take these signals as a request from now on, in a worker process for good; `say` tells the user so."""
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return  # a process forked from this one, which Ctrl-C reaches too
        if _state["asked"]:
            for worker in multiprocessing.active_children():
                worker.kill()
            if is_live():
                os.write(1, b"\x1b[?25h\n")  # the cursor, which a live display hides
            os._exit(EXIT_CODE)  # what is saved is whole at any moment
        _state["asked"] = True
        if say and not is_live():  # which shows it by itself; not by print, which may be at work already
            os.write(2, b"\nunixkd: stopping after this step; once more stops at once\n")

    for number in signals:
        signal.signal(number, handle)
    _state["listening"] = True
