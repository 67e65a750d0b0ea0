"""The shape of known data, and the size of images where none is given: that which the teacher was trained at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from unixkd.cli.screen import say
from unixkd.config import DataConfig, ModelConfig, read_yaml
from unixkd.data.load import open_source
from unixkd.data.source import find_format
from unixkd.models.folder import is_run_folder, read_card


class Shape(NamedTuple):
    """What planning needs to know of data."""

    channels: int
    size: int  # side of the images in pixels
    classes: int
    images: int  # of the training set
    views: int | None  # that an image has, however many are trained on; None: without end


KNOWN_DATA = {
    "digits": Shape(1, 8, 10, 1438, 9),
    "cifar10": Shape(3, 32, 10, 50000, 162),
    "cifar100": Shape(3, 32, 100, 50000, 162),
}
"""So nothing is downloaded for planning."""


def teachers_size(teacher: ModelConfig) -> int | None:
    """The size of the images that a run folder's network was trained on; None where it is not known."""
    return read_card(teacher.name).size if is_run_folder(teacher.name) else None


def at_teachers_size(data: DataConfig, teacher: ModelConfig, earlier: Path | None = None) -> DataConfig:
    """The data at the teacher's size, which is said, where no size is given and the data's own is another.

    A run that is there already, whose run.yaml is `earlier`, goes on at the size it began with.
    """
    if data.size is not None or (size := teachers_size(teacher)) is None or data.name.startswith("stream:"):
        return data
    if earlier is not None and earlier.exists():
        began = read_yaml(earlier).get("data")
        return replace(data, size=began.get("size") if isinstance(began, dict) else None)
    if size == (own := own_size(data)):
        return data
    say(
        f"images are {size} pixels, as the teacher's were: --data.size {own} takes those of {data.name} as they are"
    )
    return replace(data, size=size)


def own_size(data: DataConfig) -> int:
    """The side of the images where no other is asked for; they are looked into only where it is not known."""
    if data.name in KNOWN_DATA:
        return KNOWN_DATA[data.name].size
    source = open_source(data)
    return (source.format or find_format(source.train, source.test, skip_unreadable=data.max_faulty > 0)).size
