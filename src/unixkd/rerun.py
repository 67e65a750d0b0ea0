"""The command that makes a run again, out of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unixkd.config import ModelConfig, RunConfig
from unixkd.runfolder import flatten, to_plain
from unixkd.spelling import spelled

ALWAYS = ("train.epochs", "train.seed")
"""Said also where they are the defaults: what a run is known by."""


def run_words(config: Mapping[str, Any]) -> list[str]:
    """The words of `unixkd distill` or `unixkd train` that make a run, with what is not the default.

    Args:
        config: as run.yaml has it, its keys dotted (`flatten`)

    >>> run_words({"model.name": "resnet8", "data.name": "digits", "train.lr": 0.1, "train.seed": 0, "label": None})
    ['unixkd', 'train', '--model', 'resnet8', '--data', 'digits', '--train.lr', '0.1', '--train.seed', '0']
    """
    alone = "model.name" in config
    usual = flatten(to_plain(RunConfig(ModelConfig(), None if alone else ModelConfig())))
    words = ["unixkd", "train" if alone else "distill"]
    for key, value in config.items():
        group, _, field = key.rpartition(".")
        if field == "name":
            words += [f"--{group}", spelled(value)]
        elif value is not None and (value != usual.get(key) or key in ALWAYS):
            words += [f"--{key}", spelled(value)]
    return words
