"""JSON and YAML that may come from anybody: one reader with limits; whatever is wrong is a `UserError` of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from unixkd.errors import UserError

MAX_BYTES = {"JSON": 32 << 20, "YAML": 32 << 10}
"""Bytes of a file; a second's work for the parsers. A run.yaml has 3 kB, an epoch's line of metrics.jsonl 2 kB."""
MAX_DEPTH, MAX_NODES, MAX_DIGITS = 32, 20_000, 40
"""Levels of nesting; values of a YAML file with each alias replaced by what it stands for; digits of an integer."""


class _Loader(yaml.SafeLoader):
    """Dates are text: `2001-99-99` is none, and no option takes one."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= MAX_DEPTH:  # the scanner takes seconds for thousands of brackets
            raise ValueError(f"it is nested in more than {MAX_DEPTH} levels")
        super().fetch_flow_collection_start(token)


def read_text(path: Path, kind: str = "JSON", *, named: bool = False) -> str:
    """The text of a file of JSON or YAML; where the user has named it, it may be a pipe.

    Raises:
        UserError: it cannot be read, is no text or too long
    """
    try:
        if path.exists() and not path.is_file() and not named:
            raise OSError("it is no file")  # a pipe would be waited for, a device may have no end
        with path.open("rb") as file:
            content = file.read(MAX_BYTES[kind] + 1)
        if len(content) > MAX_BYTES[kind]:
            raise OSError(f"it has more than {MAX_BYTES[kind]:,} bytes")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
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
