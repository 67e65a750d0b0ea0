"""The public names and their signatures, so that none changes unnoticed.

Where one is meant to change, `python tests/test_public_api.py` writes them anew, and CHANGELOG.md says so.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import unixkd

KNOWN = Path(__file__).parent / "oracles" / "public_api.txt"


def signatures() -> Iterator[str]:
    """A line for every public name, and for every public method of its own."""
    for name in unixkd.__all__:
        value = getattr(unixkd, name)
        is_error = inspect.isclass(value) and issubclass(value, Exception)
        yield name if is_error else f"{name}{signature(value)}"
        if inspect.isclass(value):
            for member, method in sorted(vars(value).items()):
                function = getattr(method, "__func__", method)
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{member}{signature(function)}"


def signature(value: Callable[..., object]) -> str:
    """Without addresses, and without the quotes that not every Python writes."""
    return re.sub(r"['\"]| at 0x\w+", "", str(inspect.signature(value)))


def test_names_and_signatures_are_the_known_ones():
    assert list(signatures()) == KNOWN.read_text().splitlines()


def test_the_names_are_few_and_all_are_there():
    assert 20 <= len(unixkd.__all__) <= 28
    assert sorted(unixkd.__all__) == unixkd.__all__ == dir(unixkd)


if __name__ == "__main__":
    KNOWN.write_text("\n".join(signatures()) + "\n")
