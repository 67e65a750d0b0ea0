"""How this process was started: alone, or by torchrun as one of several. Imports no torch."""

from __future__ import annotations

import os

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
    given = os.environ.get("RANK", "0")
    return int(given) if given.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else 0
