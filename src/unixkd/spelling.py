"""Values as words of the command line."""

from __future__ import annotations


def spelled(value: object) -> str:
    """A value as the command line reads it.

    >>> spelled([0.5, 0.25]), spelled(False), spelled(8)
    ('[0.5,0.25]', 'false', '8')
    """
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
