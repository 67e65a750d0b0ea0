"""How many views of each image are trained on where answers are stored and views have no end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from unixkd.config import RunConfig, read_yaml
from unixkd.data.load import Data
from unixkd.names import local_path, plural
from unixkd.planning.catalogue import few_views
from unixkd.teacher.folder import read_views


def may_choose(config: RunConfig) -> bool:
    """Whether the configuration leaves the number of views open, and images of such data may have views without end."""
    data = config.data
    return config.answers.path is not None and ":" in data.name and data.views is None and data.mixes is None


def earlier_views(config: RunConfig, folder: Path | None) -> RunConfig:
    """The configuration with the number of views that an earlier run in `folder` has."""
    if folder is None or not may_choose(config) or not (folder / "run.yaml").exists():
        return config
    views = read_yaml(folder / "run.yaml").get("data", {}).get("views")
    return replace(config, data=replace(config.data, views=views))


def with_views(config: RunConfig, data: Data, note: Callable[[str], None]) -> tuple[RunConfig, Data]:
    """Configuration and data with a number of views, where answers to views without end would have to be stored.

    It is that of the answers that are stored already, else a share of plain KD's epochs; it is noted.
    """
    split = data.train
    if not may_choose(config) or not split.lasting or split.num_views is not None:
        return config, data
    assert config.answers.path is not None
    epochs = config.reference_epochs or config.train.epochs
    stored = read_views(local_path(config.answers.path))
    views = stored or few_views(epochs)
    why = "as in the store" if stored else f"for {epochs} epochs"
    note(
        f"answers to {plural(views, 'view')} of each image are stored, {why}; --data.views sets another number"
    )
    config = replace(config, data=replace(config.data, views=views))
    return config, replace(data, train=replace(split, views=views))
