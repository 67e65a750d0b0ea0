"""Errors a user can cause, worded so that the message alone says what to do."""

from __future__ import annotations

import difflib
import logging
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in what was asked for or in the data; the command line prints it and exits with 1."""

    exit_code = 1


class UsageError(UserError):
    """A mistake on the command line itself: an unknown name, option or type; exits with 2."""

    exit_code = 2


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """An error for a misspelt name that offers the nearest valid ones.

    >>> print(unknown_name("model", "vgg9", ["vgg8", "wrn_16_2"]))
    unknown model 'vgg9'; did you mean 'vgg8'?
    """
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if near:
        return UsageError(f"unknown {kind} '{name}'; did you mean {' or '.join(map(repr, near))}?")
    return UsageError(f"unknown {kind} '{name}'; known: {', '.join(choices)}")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of that name; an error that offers the nearest ones where there is none.

    >>> lookup("digit", "two", {"one": 1, "two": 2})
    2
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


def check_share(name: str, share: float, whole: str, *, zero: bool = True) -> None:
    """Raise where a share of something is out of range.

    >>> check_share("keep", 0.0, "the batch", zero=False)
    Traceback (most recent call last):
    unixkd.errors.UserError: keep is a share of the batch and must lie in (0, 1], got 0
    """
    if not 0 <= share <= 1 or (share == 0 and not zero):
        raise UserError(
            f"{name} is a share of {whole} and must lie in {'[' if zero else '('}0, 1], got {share:g}"
        )


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """An error for an optional dependency that is not installed.

    >>> print(missing_extra("timm", "timm", "timm models"))
    timm models need the package 'timm': pip install 'unixkd[timm]'
    """
    return UserError(f"{purpose} need the package '{package}': pip install 'unixkd[{extra}]'")


_KEPT = "\u200c\u200d"
"""Not printable to Python, but needed to write Persian and Indic words and some emoji."""


def shown(text: object) -> str:
    """A text as one line for people: what is no printable character is written as an escape sequence.

    Names are data: a line break or a terminal's escape sequence in one must not pass for what the program says.

    >>> print(shown("cat\\n\\x1b[31mÄ\\udcff"))
    cat\\n\\x1b[31mÄ\\udcff
    """
    return "".join(
        c if c.isprintable() or c in _KEPT or unicodedata.category(c) == "Zs" else _escape(c)
        for c in str(text)
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


class _Shown(logging.Formatter):
    """Shows our own messages as `shown` does, those of others as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        if record.name.partition(".")[0] == "unixkd":
            record.message = shown(record.message)
        return super().formatMessage(record)


def show_logged_names() -> None:
    """Have warnings shown as `shown` does, where nobody has set up logging."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Shown())


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or its type where it has none.

    >>> first_line(OSError("\\nno such file\\na hint")), first_line(MemoryError())
    ('no such file', 'MemoryError')
    """
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)
