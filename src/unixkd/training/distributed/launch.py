"""How this process was started: alone, or by torchrun as one of several. Imports no torch."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from unixkd.errors import UserError


class LeaderError(UserError):
    """What the leading process has told the user already."""


def processes() -> int:
    """How many were started together.

    Raises:
        UserError: WORLD_SIZE is no number
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"the environment variable WORLD_SIZE is {given!r}, which is no number of processes")
    return int(given)


def rank() -> int:
    """This process's number among them; 0 leads, and alone speaks for all."""
    own = os.environ.get("RANK", "0")
    return int(own) if own.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else 0


def end(code: int) -> NoReturn:
    """End the process with an exit code, one of several without Python's last clean-up.

    That takes the interpreter away from under torch's threads: one that still holds a message's tensor then aborts
    the process (https://github.com/pytorch/pytorch/pull/179291), and with it a run that is done.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
