"""A way to distil as a complete command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from jsonargparse import Namespace

from unixkd.config import DataConfig, TrainConfig
from unixkd.forecast import Setting
from unixkd.spelling import spelled
from unixkd.ways import Way

ANSWERS = "answers"
"""Folder of the stored answers in a printed command."""


def command_words(options: Namespace, way: Way, data: DataConfig, setting: Setting) -> list[str]:
    """The words of `unixkd distill ...` that run a way as planned.

    Args:
        options: of `plan`
        way: the way
        data: planned for
        setting: planned for
    """
    epochs, views = way.epochs(setting.epochs), way.views(setting.epochs, setting.views)
    if views is not None:
        data = replace(data, mixes=views) if way.mixed else replace(data, views=views)
    words = ["unixkd", "distill"]
    if options.recipe:
        words += ["--recipe", options.recipe]
    for group, config in (
        ("teacher", options.teacher),
        ("student", options.student),
        ("method", way.method),
        ("data", data),
    ):
        words += [f"--{group}", config.name, *changed(group, config)]
    if way.stored:
        words += ["--answers.path", ANSWERS]
    words += ["--epochs", str(epochs)]
    if epochs != setting.epochs:
        words += ["--reference_epochs", str(setting.epochs)]
    if setting.batch_size != TrainConfig.batch_size:
        words += ["--train.batch_size", str(setting.batch_size)]
    return words


def changed(group: str, config: object) -> Iterator[str]:
    """The words that set a configuration's fields, its name apart, to what is not their default."""
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if field.name != "name" and value != field.default:
            yield from (f"--{group}.{field.name}", spelled(value))
