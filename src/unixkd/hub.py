"""The Hugging Face Hub out of reach: its libraries then answer at once from what they have."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies

SECONDS = 3.0
"""To connect in."""


@contextlib.contextmanager
def not_waiting() -> Iterator[None]:
    """Within, libraries of the Hub read only what they have downloaded before, where it cannot be reached.

    They would try each file six times, with pauses of seconds.
    """
    from huggingface_hub import constants

    modules = filter(None, [constants, sys.modules.get("datasets.config")])  # the latter has a copy
    with contextlib.ExitStack() as stack:
        if not getproxies() and not is_reachable(constants.ENDPOINT):
            for module in modules:
                stack.callback(setattr, module, "HF_HUB_OFFLINE", module.HF_HUB_OFFLINE)
                module.HF_HUB_OFFLINE = True
        yield


def is_reachable(address: str) -> bool:
    """Whether a server can be connected to; what it says is not asked."""
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), SECONDS).close()
    except OSError:
        return False
    return True
