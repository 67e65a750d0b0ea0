"""A method with some of its options changed, as one word: `unix:keep=0.5:steepness=1000`; imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unixkd.config import MethodConfig
from unixkd.errors import UsageError, unknown_name

OPTIONS = tuple(field.name for field in fields(MethodConfig) if field.name != "name")


def parse_variant(text: str) -> MethodConfig:
    """The configuration that NAME[:OPTION=VALUE...] stands for; the name itself is not looked up.

    Raises:
        UsageError: an option is unknown or named twice, or a value has another type

    >>> parse_variant("unix:keep=0.5").keep
    0.5
    """
    name, *settings = text.split(":")
    values: dict[str, Any] = {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        if not (name and option and equals and value):
            raise UsageError(f"method '{text}': options are given as in unix:keep=0.5:steepness=1000")
        if option not in OPTIONS:
            raise unknown_name(f"option of method {name}", option, OPTIONS)
        if option in values:
            raise UsageError(f"method '{text}': {option} is given twice")
        values[option] = _value(text, option, value)
    return MethodConfig(name, **values)


def parse_variants(texts: Iterable[str]) -> dict[str, MethodConfig]:
    """Configurations by their labels.

    Raises:
        UsageError: as for `parse_variant`, or two of them are the same
    """
    methods: dict[str, MethodConfig] = {}
    for text in texts:
        config = parse_variant(text)
        if (label := label_of(config)) in methods:
            raise UsageError(f"a method is named twice: {label}")
        methods[label] = config
    return methods


def label_of(config: MethodConfig) -> str:
    """The variant as one word, its options in the order in which `MethodConfig` has them.

    >>> label_of(parse_variant("unix:steepness=1e3:keep=0.50"))
    'unix:keep=0.5:steepness=1000'
    """
    given = [(name, value) for name in OPTIONS if (value := getattr(config, name)) is not None]
    return ":".join([config.name, *(f"{name}={_text(value)}" for name, value in given)])


def file_name(label: str) -> str:
    """A label as part of a file's name on any system.

    >>> file_name("kd@unix:keep=0.5:steepness=1000")
    'kd@unix,keep=0.5,steepness=1000'
    """
    return re.sub(r"[^\w.@=,+-]", "_", label.replace(":", ","))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


def _value(text: str, option: str, value: str) -> object:
    """A value of the option's type."""
    kind = next(kind for kind in get_args(get_type_hints(MethodConfig)[option]) if kind is not type(None))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise unknown_name(option, value, get_args(kind))
        return value
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UsageError(f"method '{text}': {option} is true or false, not '{value}'")
        return value.lower() == "true"
    try:
        number: float = kind(value)
        finite = math.isfinite(number)
    except (ValueError, OverflowError):
        finite = False
    if not finite:
        whole = "a whole number" if kind is int else "a number"
        raise UsageError(f"method '{text}': {option} must be {whole}, not '{value}'")
    return number
