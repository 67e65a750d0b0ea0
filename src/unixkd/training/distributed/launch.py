"""How this process was started: alone, or by torchrun as one of several. Imports no torch."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from unixkd.errors import UserError


class LeaderError(UserError):
    """An error that the first process has shown already."""


def processes() -> int:
    """Number of processes that were started together.

    Raises:
        UserError: WORLD_SIZE is no number
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise UserError(f"the environment variable WORLD_SIZE is {size!r}, which is no number of processes")
    return int(size)


def rank() -> int:
    """Number of this process; process 0 leads, and alone prints."""
    number = os.environ.get("RANK", "0")
    return int(number) if number.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else 0


def local_rank() -> int:
    """Number of this process among those on its machine."""
    number = os.environ.get("LOCAL_RANK", "0")
    return int(number) if number.isdecimal() else 0


def end(code: int) -> NoReturn:
    """End the process with an exit code; where it is one of several, without finalising the interpreter.

    Finalising it while one of torch's threads still holds a message's tensor aborts the process, and with it a run
    that is done (https://github.com/pytorch/pytorch/pull/179291).
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
