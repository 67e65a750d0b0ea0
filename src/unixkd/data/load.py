"""From a `DataConfig` to a data set: ranges, source, then what is held out, left out, resized, kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unixkd.config import DataConfig
from unixkd.data.disk import DiskSplit
from unixkd.data.images import fit, fit_all, to_channels
from unixkd.data.sampling import hold_out, subset
from unixkd.data.source import Decoded, Encoded, Records, Source
from unixkd.data.sources.cifar import load_cifar
from unixkd.data.sources.digits import load_digits
from unixkd.data.sources.folder import load_folder
from unixkd.data.sources.hub import load_hub, load_parquet
from unixkd.data.sources.stream import StreamSplit, load_stream
from unixkd.data.sources.webdataset import load_shards
from unixkd.data.split import MemorySplit
from unixkd.errors import UserError, unknown_name

_MEMORY_SIZE = 64  # side up to which images are kept in memory


_NAMED: dict[str, Callable[[DataConfig], Source]] = {
    "digits": lambda config: load_digits(),
    "cifar10": lambda config: load_cifar("cifar10", config.root),
    "cifar100": lambda config: load_cifar("cifar100", config.root),
}


_IDS = ("hub", "stream")


_PREFIXED: dict[str, Callable[[str, DataConfig], Source]] = {
    "folder": lambda place, config: load_folder(Path(place).expanduser(), config.max_unreadable),
    "parquet": lambda place, config: load_parquet(
        Path(place).expanduser(), config.image_column, config.label_column, config.max_unreadable
    ),
    "wds": lambda place, config: load_shards(place, config.label_column, config.max_unreadable),
    "hub": lambda place, config: load_hub(
        place, config.image_column, config.label_column, config.max_unreadable
    ),
}


@dataclass(frozen=True)
class Data:
    """A data set as the training loop sees it.

    Args:
        name: as in the configuration
        train: training images; their labels are None where `labels` is off
        test: what is evaluated on: the held-out training images if there is a holdout, else the test
            set; None where the data has none
        class_names: name of each class, or None
        num_classes: number of classes, or None where it is unknown
        channels: 1 or 3
        size: side of the square images in pixels
        mean: per-channel mean of pixels in [0, 1]
        std: per-channel standard deviation
        fingerprint: SHA-256 that tells this data from any other, see `load_data`
        left_out: what is wrong with each training image that could not be read
        notes: what to tell the user before training
    """

    name: str
    train: MemorySplit | DiskSplit | StreamSplit
    test: MemorySplit | DiskSplit | None
    class_names: tuple[str, ...] | None
    num_classes: int | None
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, self.size, self.size


def data_names() -> tuple[str, ...]:
    """The data sets that a configuration can name.

    >>> data_names()
    ('digits', 'cifar10', 'cifar100', 'folder:PATH', 'parquet:PATH', 'wds:PATH', 'hub:ID', 'stream:ID')
    """
    prefixes = (*_PREFIXED, "stream")
    return (*_NAMED, *(f"{prefix}:{'ID' if prefix in _IDS else 'PATH'}" for prefix in prefixes))


def open_source(config: DataConfig) -> Source:
    """The source that the configuration names.

    Raises:
        UsageError: there is no such source.
        UserError: the source cannot be read or holds faulty data.
    """
    if config.name in _NAMED:
        return _NAMED[config.name](config)
    prefix, separator, _ = config.name.partition(":")
    if separator and prefix in _PREFIXED:
        return _PREFIXED[prefix](_place(config.name), config)
    if Path(config.name).expanduser().exists():
        raise unknown_name("data", config.name, [f"folder:{config.name}", f"parquet:{config.name}"])
    raise unknown_name("data", prefix, data_names())


def _place(name: str) -> str:
    place = name.partition(":")[2]
    if not place:
        raise UserError(f"data.name '{name}' lacks what comes after the colon")
    return place


def load_data(config: DataConfig) -> Data:
    """Load, check, split, resize and keep what the configuration says.

    The held-out part is cut off first, then the subset is chosen from the rest, both by the data's
    labels even where training does not see them: `labels` changes nothing else.

    The fingerprint covers shapes, labels, class names and all pixels of images in memory; of images on
    disk it covers labels, class names, and each file's name and size (Parquet and Hub: the contents of
    up to 256 images, evenly spaced).

    Raises:
        UsageError: an unknown data name.
        UserError: faulty options or data; the sample, file or number is named.

    >>> data = load_data(DataConfig(name="digits", holdout=0.1))
    >>> data.image_shape, data.num_classes, len(data.train), len(data.test), data.train.num_views
    ((1, 8, 8), 10, 1295, 143, 9)
    """
    check_numbers(config)
    if config.name.startswith("stream:"):
        return _load_stream(config)
    source = open_source(config)
    train, test = source.train, source.test
    if not len(train):
        raise UserError(f"data {config.name} has no training images")
    if config.holdout > 0:
        kept, held = hold_out(train.labels, len(train), config.holdout, config.split_seed)
        if config.evaluate_on == "test" and test is None:
            raise UserError(f"data {config.name} has no test set: leave data.evaluate_on out")
        test = test if config.evaluate_on == "test" else train.select(held)
        train = train.select(kept)
    if config.limit is not None:
        train = train.select(subset(train.labels, len(train), config.limit, config.split_seed))
    train, left_out = leave_out(train, config.max_unreadable, config.workers)
    if not config.labels:
        train = train.unlabelled()
    size = source.size if config.size is None else config.size
    splits = [_split(part, source, size, config) for part in (train, test) if part is not None]
    return _data(config, source, size, splits[0], splits[1] if len(splits) == 2 else None, left_out=left_out)


def _load_stream(config: DataConfig) -> Data:
    """The same of a stream, whose images stay where they are."""
    source, streamed = load_stream(_place(config.name), config)
    size = source.size if config.size is None else config.size
    train = StreamSplit(
        records=streamed if config.labels else streamed.unlabelled(),
        size=size,
        channels=source.channels,
        padding=config.crop_padding,
        flip=source.flip if config.flip is None else config.flip,
        view_seed=config.view_seed,
        workers=config.workers,
    )
    test = None if source.test is None else _split(source.test, source, size, config)
    return _data(config, source, size, train, test, notes=(streamed.announcement(),))


def _data(
    config: DataConfig,
    source: Source,
    size: int,
    train: MemorySplit | DiskSplit | StreamSplit,
    test: MemorySplit | DiskSplit | None,
    **more: tuple[str, ...],
) -> Data:
    return Data(
        name=config.name,
        train=train,
        test=test,
        class_names=source.class_names,
        num_classes=source.num_classes,
        channels=source.channels,
        size=size,
        mean=source.mean,
        std=source.std,
        fingerprint=_fingerprint([train] if test is None else [train, test], source.class_names),
        **more,
    )


def _split(records: Records, source: Source, size: int, config: DataConfig) -> MemorySplit | DiskSplit:
    flip = source.flip if config.flip is None else config.flip
    in_memory = config.in_memory
    if in_memory is None:
        in_memory = size <= _MEMORY_SIZE or isinstance(records, Decoded)
    if not in_memory:
        if isinstance(records, Decoded):
            raise UserError(f"data {config.name} is always in memory; leave data.in_memory out")
        return DiskSplit(
            records=records,
            size=size,
            channels=source.channels,
            padding=config.crop_padding,
            flip=flip,
            view_seed=config.view_seed,
            workers=config.workers,
            views=config.views,
            mixes=config.mixes,
        )
    padding = round(size / 8) if config.crop_padding is None else config.crop_padding
    pixels = (
        fit_all(records.pixels, size)
        if isinstance(records, Decoded)
        else np.stack([fit(to_channels(records.read(i), source.channels), size) for i in range(len(records))])
    )
    labels = None if records.labels is None else torch.from_numpy(records.labels)
    return MemorySplit(
        torch.from_numpy(pixels), labels, padding, flip, config.view_seed, config.views, config.mixes
    )


def _fingerprint(
    splits: Sequence[MemorySplit | DiskSplit | StreamSplit], class_names: tuple[str, ...] | None
) -> str:
    digest = hashlib.sha256(repr(class_names).encode())
    for split in splits:
        if isinstance(split, MemorySplit):
            digest.update(repr(tuple(split.images.shape)).encode())
            digest.update(np.ascontiguousarray(split.images.numpy()).data)
        else:
            digest.update(repr((len(split), split.channels, split.size)).encode())
            digest.update(split.records.digest())
        digest.update(b"unlabelled" if split.labels is None else split.labels.numpy().tobytes())
    return digest.hexdigest()


def check_numbers(config: DataConfig) -> None:
    """Raise where a number is out of range."""
    if not 0 <= config.holdout < 1:
        raise UserError(f"data.holdout must be at least 0 and below 1, not {config.holdout}")
    if config.evaluate_on not in ("auto", "test"):
        raise unknown_name("data.evaluate_on", config.evaluate_on, ("auto", "test"))
    if config.size is not None and config.size < 1:
        raise UserError(f"data.size must be at least 1 pixel, not {config.size}")
    if config.crop_padding is not None and config.crop_padding < 0:
        raise UserError(f"data.crop_padding must be at least 0 pixels, not {config.crop_padding}")
    if config.views is not None and config.views < 1:
        raise UserError(f"data.views must be at least 1, not {config.views}; leave it out for all views")
    if config.mixes is not None and config.mixes < 1:
        raise UserError(
            f"data.mixes must be at least 1, not {config.mixes}; leave it out for images as they are"
        )
    if config.mixes is not None and config.views is not None:
        raise UserError("data.mixes are of all views of an image: leave data.views out")
    if config.max_unreadable < 0:
        raise UserError(f"data.max_unreadable must be at least 0, not {config.max_unreadable}")
    if config.workers < 0:
        raise UserError(f"data.workers must be at least 0, not {config.workers}")
    if config.stream_images is not None and not config.name.startswith("stream:"):
        raise UserError(f"data.stream_images is for a stream, and {config.name} is none: give data.limit")


SHOWN = 3
"""Images that an error tells the reasons of."""


def leave_out(records: Records, most: int, workers: int) -> tuple[Records, tuple[str, ...]]:
    """The records that can be decoded, and what is wrong with each of the others.

    All images are decoded once for it; where nothing may be left out none is, as reading them finds the first.

    Args:
        records: training images
        most: so many may be left out
        workers: threads that decode

    Raises:
        UserError: more of them cannot be read, or all of a class
    """
    if not most or not isinstance(records, Encoded):
        return records, ()

    def problem(i: int) -> str | None:
        try:
            records.read(i).close()
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, workers)) as threads:
        problems = list(threads.map(problem, range(len(records))))
    wrong = tuple(each for each in problems if each is not None)
    if len(wrong) > most:
        raise UserError(
            f"{len(wrong)} of {len(records)} training images cannot be read, --data.max_unreadable allows {most}: "
            + "; ".join(wrong[:SHOWN])
        )
    left = records.select(np.flatnonzero([each is None for each in problems]))
    if not len(left):
        raise UserError(f"none of the {len(records)} training images can be read: {wrong[0]}")
    if records.labels is not None and left.labels is not None:
        lost = set(records.labels.tolist()) - set(left.labels.tolist())
        if lost:
            raise UserError(f"no image of {len(lost)} classes can be read (class {min(lost)}): {wrong[0]}")
    return left, wrong
