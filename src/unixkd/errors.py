"""What is wrong outside of the code becomes one line: a user's mistake, a bad or damaged file, a Hub out of reach."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import re
import socket
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in what was asked for or in the data; the command line prints it and exits with 1.

    Args:
        message: a line
        details: further lines
    """

    exit_code = 1

    def __init__(self, message: object = "", *details: str) -> None:
        super().__init__(message)
        self.details = details


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


# JSON and YAML that may come from anybody: one reader with limits.

MAX_BYTES = {"JSON": 32 << 20, "YAML": 32 << 10}
"""Bytes of a file; a second's work for the parsers. A run.yaml has 3 kB, an epoch's line of metrics.jsonl 2 kB."""
MAX_DEPTH, MAX_NODES, MAX_DIGITS = 32, 20_000, 40
"""Levels of nesting; values of a YAML file with each alias replaced by what it stands for; digits of an integer."""


class _Loader(yaml.SafeLoader):
    """Dates are text: `2001-99-99` is none, and no option takes one. So are `010` and `1:30`, no 8 and no 90."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":int"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len({*names}) < len(names):
            raise ValueError(f"{max(names, key=names.count)} is there twice")
        return super().construct_mapping(node, deep)

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= MAX_DEPTH:  # the scanner takes seconds for thousands of brackets
            raise ValueError(f"it is nested in more than {MAX_DEPTH} levels")
        super().fetch_flow_collection_start(token)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), [*"-+0123456789"]
)


def read_text(path: Path, kind: str = "JSON", *, named: bool = False) -> str:
    """The text of a file of JSON or YAML; where the user has named it, it may be a pipe.

    Raises:
        UserError: it cannot be read, is no text or too long
    """
    try:
        return read_bytes(path, kind, named=named).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' cannot be read: {error}") from None


def read_bytes(path: Path, kind: str = "JSON", *, named: bool = False) -> bytes:
    """As `read_text`, whatever the bytes are."""
    try:
        if path.exists() and not path.is_file() and not named:
            raise OSError("it is no file")  # a pipe would be waited for, a device may have no end
        with path.open("rb") as file:
            content = file.read(MAX_BYTES[kind] + 1)
        if len(content) > MAX_BYTES[kind]:
            raise OSError(f"it has more than {MAX_BYTES[kind]:,} bytes")
        return content
    except (OSError, ValueError) as error:  # a name may hold a null byte
        raise UserError(f"'{path}' cannot be read: {error}") from None


def parse_json(text: str, where: object, complaint: str = "cannot be read", **hooks: Any) -> dict[str, Any]:
    """The object that a JSON text holds; `where` and `complaint` begin the error's message, `hooks` are `json`'s."""
    try:
        values = json.loads(text, **hooks)
        _check_plain(values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} {complaint}: {_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no JSON object")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON file; a `UserError` where it cannot be read, or holds something else than an object."""
    return parse_json(read_text(path), f"'{path}'")


def parse_yaml(text: str, where: object, complaint: str = "cannot be read") -> Any:
    """The plain values of a YAML text: mappings by name, lists, texts, numbers; see `parse_json`."""
    loader = _Loader("")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _weight(node, {}) > MAX_NODES:
            raise ValueError(f"its aliases stand for more than {MAX_NODES:,} values")
        values = loader.construct_document(node)
        _check_plain(values)
        return values
    except Exception as error:  # constructors raise whatever Python's own types do
        raise UserError(f"{where} {complaint}: {_line(error)}") from None
    finally:
        loader.dispose()


def _weight(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values of a node where an alias counts as much as what it stands for."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # what an alias inside of its own anchor counts: it has no end
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = (one for child in children for one in (child if isinstance(child, tuple) else (child,)))
        known[id(node)] = 1 + sum(_weight(child, known) for child in inner)
    return known[id(node)]


def _check_plain(values: object) -> None:
    """Raise a ValueError where values are nested too deeply, no plain ones, too large, or have no text as name."""
    level: list[tuple[str, dict[Any, Any] | list[Any]]] = [("", [values])]
    for _ in range(MAX_DEPTH):
        below = []
        for name, values in level:
            if isinstance(values, list) and (not values or {*map(type, values)} <= {float, str}):
                continue
            if isinstance(values, list) and {*map(type, values)} == {int}:  # millions of them within a second
                values = [max(values), min(values)]
            for key, value in values.items() if isinstance(values, dict) else ((name, one) for one in values):
                if not isinstance(key, str):
                    raise ValueError(f"{str(key)[:MAX_DIGITS]} is no name of an option: write it in quotes")
                if isinstance(value, dict | list):
                    below.append((key, value))
                elif isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
                    raise ValueError(f"a number of more than {MAX_DIGITS} digits is out of range: {key}")
                elif value is not None and not isinstance(value, str | float | int):
                    raise ValueError(
                        f"{key} is a {type(value).__name__}, no text or number: write it in quotes"
                    )
        level = below
    if level:
        raise ValueError(f"it is nested in more than {MAX_DEPTH} levels")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return "a number of thousands of digits is out of range" if "integer string conversion" in text else text


# Files that were damaged or edited, links, places where nothing can be written.

CHECKSUMS = "checksums.json"
"""SHA-256 of a folder's files by their names, written after them; folders of earlier versions have none."""


def refuse_links(*places: Path) -> None:
    """Raise a `UserError` where one is a link: nothing is written through it to where nobody asked for."""
    for place in places:
        if place.is_symlink():
            raise UserError(
                f"'{place}' is a link, and a run writes through none: put what it points to here instead, or the whole "
                "folder there, with a link to that"
            )


@contextlib.contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Within, an error of the system becomes a `UserError` that names the place."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error}") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of a file, and its size in bytes."""
    return f"{sha256(path)} {path.stat().st_size}"


def matches(path: Path, known: object) -> bool:
    """Whether a file has this checksum; one of another size is not read. Earlier versions wrote no size."""
    digest, _, size = str(known).partition(" ")
    return size in ("", str(path.stat().st_size)) and sha256(path) == digest


def is_unchanged(path: Path) -> bool | None:
    """Whether a file is as it was when its folder was sealed; None where it is missing or has no checksum."""
    sums = path.with_name(CHECKSUMS)
    known = read_json(sums).get(path.name) if sums.is_file() and path.is_file() else None
    return None if known is None else matches(path, known)


def check_unchanged(path: Path) -> None:
    """Raise a `UserError` where a file is not as it was when its folder was sealed."""
    if is_unchanged(path) is False:
        raise UserError(
            f"'{path}' is damaged or was edited: its checksum is not the one in {CHECKSUMS} beside it. Restore the "
            f"file; if the change was meant, remove {CHECKSUMS}"
        )


# The Hugging Face Hub out of reach: its libraries then answer at once from what they have.

CONNECT_SECONDS = 3.0
"""To connect in."""


@contextlib.contextmanager
def not_waiting() -> Iterator[None]:
    """Within, libraries of the Hub read only what they have downloaded before, where it cannot be reached.

    They would try each file six times, with pauses of seconds.
    """
    from urllib.request import getproxies  # takes a while to import

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
    from urllib.parse import urlsplit

    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
