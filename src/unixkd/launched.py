"""How this process was started: alone, or by torchrun as one of several. Imports no torch."""

from __future__ import annotations

import os

from unixkd.errors import UserError


class LeaderError(UserError):
    """What the leading process has told the user already."""


def processes() -> int:
    """How many were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them; 0 leads, and alone speaks for all."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0
