"""Values out of JSON files, checked; whatever is wrong is named with its file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from unixkd.errors import UserError


def read_text(file: Path) -> str:
    """A file's text."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def parse_json(text: str, where: str) -> dict[str, Any]:
    """The object that a JSON text holds."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is no readable JSON ({error}); repair it or remove the run") from error
    if not isinstance(data, dict):
        raise UserError(f"{where} holds no JSON object; repair it or remove the run")
    return data


def entry(data: Any, path: str, where: object, required: bool = True) -> Any:
    """What stands at a dotted path; None where nothing has to."""
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            if required:
                raise UserError(f"{where}: '{path}' is missing; repair it or remove the run")
            return None
        data = data[key]
    return data


def number(data: Any, path: str, where: object, required: bool = False) -> float | None:
    """A number, None where there is none or it is not finite."""
    value = entry(data, path, where, required)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: '{path}' must be a number or null, not {value!r}")
    return float(value) if math.isfinite(value) else None  # a diverged run writes NaN


def share(data: Any, path: str, where: object, required: bool = False) -> float | None:
    """A number in [0, 1], or None."""
    value = number(data, path, where, required)
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{where}: '{path}' must lie between 0 and 1, not {value:g}")
    return value


def whole(data: Any, path: str, where: object) -> int:
    """A whole number from 0."""
    value = entry(data, path, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where}: '{path}' must be a whole number from 0, not {value!r}")
    return value


def whole_or_none(data: Any, path: str, where: object) -> int | None:
    """A whole number from 0, or None."""
    return None if entry(data, path, where, required=False) is None else whole(data, path, where)


def string(data: Any, path: str, where: object) -> str:
    """A text that is not empty."""
    value = entry(data, path, where)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: '{path}' must be a text, not {value!r}")
    return value


def mapping(data: dict[str, Any], key: str) -> dict[str, Any]:
    """An object; empty where there is none."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def counts(data: Any, path: str, where: object) -> tuple[int, ...]:
    """A list of whole numbers from 0."""
    values = entry(data, path, where)
    if not isinstance(values, list) or not all(type(one) is int and one >= 0 for one in values):
        raise UserError(f"{where}: '{path}' must be a list of whole numbers from 0")
    return tuple(values)


def counts_or_none(data: Any, path: str, where: object) -> tuple[int, ...] | None:
    """A list of whole numbers from 0, or None."""
    return None if entry(data, path, where, required=False) is None else counts(data, path, where)
