"""What a run folder says about its run, for a model card; what is not there is None or left out, never made up."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unixkd.errors import UserError
from unixkd.models.folder import is_run_folder, read_card
from unixkd.rerun import run_words
from unixkd.runfolder import flatten, read_yaml


@dataclass(frozen=True)
class Facts:
    """A run's result and configuration, keys dotted: `summary["accuracy.last"]`, `config["data.name"]`."""

    summary: dict[str, Any]
    config: dict[str, Any]

    def number(self, key: str) -> float | None:
        """A number of the summary."""
        value = self.summary.get(key)
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return value if known else None

    @property
    def data(self) -> str | None:
        """The data's name; of a folder or file the last part of its path."""
        name = self.config.get("data.name")
        if not isinstance(name, str):
            return None
        prefix, _, place = name.partition(":")
        return Path(place).name if prefix in ("folder", "parquet") else place or prefix

    @property
    def hub_data(self) -> str | None:
        """The data's name on the Hub, where that is where they are from."""
        prefix, _, place = str(self.config.get("data.name")).partition(":")
        on_hub = prefix == "hub" and re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not Path(place).exists()
        return place if on_hub else None

    @property
    def split(self) -> str:
        """The images that the accuracy was measured on, in words."""
        holdout = self.config.get("data.holdout")
        if holdout and self.config.get("data.evaluate_on") != "test":
            return f"{100 * holdout:g} % of the training images, held out from training"
        return "the test images"

    @property
    def teacher(self) -> str | None:
        """The architecture of the teacher learnt from, or its given name where that cannot be looked up."""
        name = self.config.get("teacher.name")
        if not isinstance(name, str) or self.config.get("method.name") == "student-alone":
            return None
        try:
            return read_card(name).name if is_run_folder(name) else Path(name).name
        except UserError:
            return Path(name).name

    def command(self) -> str | None:
        """The command that makes the run again, with the options that are not their defaults."""
        if not self.config:
            return None
        return shlex.join(run_words(self.config))


def read_facts(folder: Path) -> Facts:
    """The facts of a run folder; what it lacks stays empty.

    Raises:
        UserError: a file is damaged
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(summary, dict):
        raise UserError(f"{path} holds no JSON object")
    config = read_yaml(folder / "run.yaml") if (folder / "run.yaml").exists() else {}
    return Facts(flatten(summary), flatten(config))
