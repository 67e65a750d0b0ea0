"""From a `DataConfig` to a data set: ranges, source, then what is held out, left out, resized, kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from unixkd.config import DataConfig, check_ranges
from unixkd.data.disk import DiskSplit, photo_notes
from unixkd.data.images import detail, fit, fit_all
from unixkd.data.kept import Kept, Room, available_memory
from unixkd.data.sampling import hold_out, subset
from unixkd.data.source import (
    Decoded,
    Encoded,
    ImageFormat,
    Records,
    Source,
    class_order,
    dark_note,
    find_format,
)
from unixkd.data.sources.cifar import is_here, load_cifar
from unixkd.data.sources.digits import load_digits
from unixkd.data.sources.folder import load_folder
from unixkd.data.sources.hub import load_hub, load_parquet
from unixkd.data.sources.stream import Streamed, StreamSplit, load_stream
from unixkd.data.sources.webdataset import load_shards
from unixkd.data.split import MemorySplit
from unixkd.errors import UserError, unknown_name
from unixkd.names import DATA, format_bytes, local_path, phase

_MEMORY_SIZE = 64  # side up to which images are kept in memory

_BY_NAME: dict[str, Callable[[DataConfig], Source]] = {
    "digits": lambda config: load_digits(),
    "cifar10": lambda config: load_cifar("cifar10", config.root),
    "cifar100": lambda config: load_cifar("cifar100", config.root),
}

_BY_PREFIX: dict[str, Callable[[str, DataConfig], Source]] = {
    "folder": lambda place, config: load_folder(local_path(place), config),
    "parquet": lambda place, config: load_parquet(local_path(place), config),
    "wds": lambda place, config: load_shards(place, config.label_column, config.labels),
    "hub": lambda place, config: load_hub(place, config),
}

AnySplit = MemorySplit | DiskSplit | StreamSplit


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
        fingerprint_before: what it was in version 0.1.0, without the contents of files; the same for images in memory
    """

    name: str
    train: AnySplit
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
    fingerprint_before: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, self.size, self.size


def open_source(config: DataConfig) -> Source:
    """The source that the configuration names. Raises UsageError where there is no such source."""
    prefix, separator, _ = config.name.partition(":")
    if config.name in _BY_NAME:
        return _BY_NAME[config.name](config)
    if separator and prefix in _BY_PREFIX:
        return _BY_PREFIX[prefix](_place(config.name), config)
    if local_path(config.name).exists():
        raise unknown_name("data", config.name, [f"folder:{config.name}", f"parquet:{config.name}"])
    raise unknown_name("data", prefix, DATA)


def may_download(config: DataConfig) -> bool:
    """Whether loading the data may ask a network: of the Hub, and of what is not there yet.

    A folder of `hub:` counts, too: its own metadata may name files from elsewhere.
    """
    kind, _, place = config.name.partition(":")
    if kind in ("cifar10", "cifar100"):
        return not is_here(kind, config.root)
    return kind == "hub" or (kind == "stream" and not local_path(place).exists())


def _place(name: str) -> str:
    place = name.partition(":")[2]
    if not place:
        raise UserError(f"data.name '{name}' lacks what comes after the colon")
    return place


def load_data(
    config: DataConfig, known_order: tuple[str, ...] | None = None, *, all_to_evaluate: bool = False
) -> Data:
    """Load, check, split, resize and keep what the configuration says.

    Class names that are numbers are in their order; earlier versions had them in the order of text, which they get
    where a network knows them so: `known_order` is the class names of a model that is used with the data.

    With `all_to_evaluate`, data without an evaluation set are one: class folders, of some of the known classes perhaps.

    The held-out part is cut off first, then the subset is chosen from the rest, both by the data's
    labels even where training does not see them: `labels` changes nothing else.

    The fingerprint covers shapes, labels, class names and all pixels of images in memory; of images on
    disk it covers labels, class names, each file's name and size, and the contents of all images, or of
    evenly spread ones where there are more than 10,000 or 1 GB (`Encoded.content_digest`).

    Raises:
        UsageError: an unknown data name.
        UserError: faulty options or data; the sample, file or number is named.

    >>> data = load_data(DataConfig(name="digits", holdout=0.1))
    >>> data.image_shape, data.num_classes, len(data.train), len(data.test), data.train.num_views
    ((1, 8, 8), 10, 1295, 143, 9)
    """
    check_options(config)
    with phase(f"{'reading or downloading' if may_download(config) else 'reading'} {config.name}"):
        return _loaded(config, known_order, all_to_evaluate)


def _loaded(config: DataConfig, known_order: tuple[str, ...] | None, all_to_evaluate: bool) -> Data:
    """As `load_data`, of a configuration that is checked."""
    if config.name.startswith("stream:"):
        known, stream = load_stream(_place(config.name), config)
        stream = stream if config.labels else replace(stream, label=None)
        return _data(config, known, stream, known.test, notes=(stream.announcement(),))
    source = open_source(config)
    if all_to_evaluate and source.test is None and not config.holdout:
        source = _all_to_evaluate(source, known_order)
    source = _in_order(source, known_order)
    train, test = source.train, source.test
    if not len(train):
        raise UserError(f"data {config.name} has no training images")
    if config.holdout > 0:
        rest, held_out = hold_out(train.labels, len(train), config.holdout, config.split_seed)
        if config.evaluate_on == "test" and test is None:
            raise UserError(f"data {config.name} has no test set: leave data.evaluate_on out")
        test = test if config.evaluate_on == "test" else train.select(held_out)
        train = train.select(rest)
    if config.limit is not None:
        train = train.select(subset(train.labels, len(train), config.limit, config.split_seed))
    train, left_out = leave_out(train, config.max_faulty, config.workers)
    if not config.labels:
        train = replace(train, labels=None)
    return _data(config, source, train, test, left_out=left_out)


def _all_to_evaluate(source: Source, known: tuple[str, ...] | None) -> Source:
    """The source whose images are all evaluated on, with labels in the known classes where it has some of these."""
    line = f"there are no splits: all {len(source.train):,} images are evaluated on"
    first = source.train.select(np.arange(1))  # so that the others are not read twice
    source = replace(source, train=first, test=source.train, notes=(*source.notes, line))
    return source if known is None or known == source.class_names else _renumbered(source, known)


def _renumbered(source: Source, names: tuple[str, ...]) -> Source:
    """The source with its labels as the numbers of these classes, where it has no others."""
    if source.class_names is None or not set(source.class_names) <= set(names):
        return source
    place = np.array([names.index(name) for name in source.class_names])

    def moved(records: Records) -> Records:
        labels = records.labels
        return records if labels is None else replace(records, labels=np.where(labels < 0, -1, place[labels]))

    test = None if source.test is None else moved(source.test)
    return replace(source, train=moved(source.train), test=test, class_names=names, num_classes=len(names))


def _in_order(source: Source, known: tuple[str, ...] | None) -> Source:
    """The source with a line on the order of classes that are numbers, which is the known one if that is of text."""
    names = source.class_names
    if names is None or names == (by_text := tuple(sorted(names))) or names != class_order(names):
        return source
    if known != by_text:
        line = f"classes are numbers: in their order ({', '.join(names[:12])}), not in that of text"
        return replace(source, notes=(*source.notes, line))
    line = f"classes are numbers, which the network knows in the order of text: {', '.join(by_text[:12])}"
    return replace(_renumbered(source, by_text), notes=(*source.notes, line))


def _data(
    config: DataConfig,
    source: Source,
    train: Records | Streamed,
    test: Records | None,
    left_out: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Data:
    """The data set of a source, from the images for training and for evaluation."""
    # unreadable images are counted by leave_out; in a stream they cannot be left out
    skip = config.max_faulty > 0 and not isinstance(train, Streamed)
    image_format = source.format or find_format(source.train, source.test, skip_unreadable=skip)
    if config.size is not None:
        image_format = replace(image_format, size=config.size)
    flip = source.flip if config.flip is None else config.flip
    room = Room(0.0 if config.in_memory is False else config.keep)
    train_split = _split(train, image_format, flip, config, room)
    test_split = None if test is None else _split(test, image_format, flip, config, room)
    assert not isinstance(test_split, StreamSplit)
    if isinstance(test_split, MemorySplit) and isinstance(test, Encoded) and test.are_files():
        test_split = replace(test_split, names=test.called)
    splits = [train_split] if test_split is None else [train_split, test_split]
    return Data(
        name=config.name,
        train=train_split,
        test=test_split,
        class_names=source.class_names,
        num_classes=source.num_classes,
        channels=image_format.channels,
        size=image_format.size,
        mean=image_format.mean,
        std=image_format.std,
        fingerprint=_fingerprint(splits, source.class_names),
        fingerprint_before=_fingerprint(splits, source.class_names, contents=False),
        left_out=left_out,
        notes=(*source.notes, *dark_note(source.train), *notes, *photo_notes(splits, room)),
    )


def _split(
    records: Records | Streamed, image_format: ImageFormat, flip: bool, config: DataConfig, room: Room
) -> AnySplit:
    """The images in memory as they are shown, or on disk where they are large; decoded ones take the room there is."""
    size, channels, padding = image_format.size, image_format.channels, config.crop_padding
    cut: dict[str, Any] = {
        "flip": flip,
        "view_seed": config.view_seed,
        "views": config.views,
        "mixes": config.mixes,
    }
    scaled = config.decoding != "full"
    read: dict[str, Any] = {"workers": config.workers, "scaled": scaled, "area": config.crop_area}
    in_memory = size <= _MEMORY_SIZE if config.in_memory is None else config.in_memory
    if isinstance(records, Streamed):
        return StreamSplit(records, size, channels, padding, **read, **cut)
    if isinstance(records, Decoded):
        if config.in_memory is False:
            raise UserError(f"data {config.name} is always in memory; leave data.in_memory out")
        check_room(len(records), size, channels)
        pixels = fit_all(records.pixels, size)
    elif in_memory:
        check_room(len(records), size, channels)
        least = detail(size) if scaled else None
        pixels = np.stack([fit(records.photo(i, channels, least).image, size) for i in range(len(records))])
    else:
        kept = Kept(room) if room.share else None
        return DiskSplit(records, size, channels, padding, kept=kept, **read, **cut)
    labels = None if records.labels is None else torch.from_numpy(records.labels)
    return MemorySplit(
        torch.from_numpy(pixels), labels, round(size / 8) if padding is None else padding, **cut
    )


def check_room(count: int, size: int, channels: int) -> None:
    """Raise where so many images of this size would not fit into memory."""
    need, there = count * size * size * channels, available_memory()
    if need > there > 0:
        raise UserError(
            f"{count:,} images of {size} × {size} pixels take {format_bytes(need)} of memory, and "
            f"{format_bytes(there)} are available: give a smaller --data.size or --data.limit, or, of files, "
            "--data.in_memory false"
        )


def _fingerprint(
    splits: Sequence[AnySplit], class_names: tuple[str, ...] | None, contents: bool = True
) -> str:
    digest = hashlib.sha256(repr(class_names).encode())
    for split in splits:
        if isinstance(split, MemorySplit):
            digest.update(repr(tuple(split.images.shape)).encode())
            digest.update(np.ascontiguousarray(split.images.numpy()).data)
        else:
            digest.update(repr((len(split), split.channels, split.size)).encode())
            digest.update(split.records.digest())
            if contents and isinstance(split, DiskSplit):
                digest.update(split.records.content_digest())
        digest.update(b"unlabelled" if split.labels is None else split.labels.numpy().tobytes())
    return digest.hexdigest()


_NOT_OF_STREAMS = {
    "holdout": "images cannot be held out of a stream",
    "limit": "a stream has no subset: give data.stream_images",
    "views": "a stream does not show an image again in another view",
    "mixes": "a stream does not show an image again, so its mixes are not fixed",
    "in_memory": "a stream is never in memory",
}


def check_options(config: DataConfig) -> None:
    """Raise where an option is out of range or does not go with the others."""
    check_ranges(config, "data")
    if config.evaluate_on not in ("auto", "test"):
        raise unknown_name("data.evaluate_on", config.evaluate_on, ("auto", "test"))
    if config.mixes is not None and config.views is not None:
        raise UserError("data.mixes are of all views of an image: leave data.views out")
    if config.name.startswith("stream:"):
        for name, reason in _NOT_OF_STREAMS.items():
            if getattr(config, name) != getattr(DataConfig, name):
                raise UserError(f"{reason}; leave data.{name} out")
    elif config.stream_images is not None:
        raise UserError(f"data.stream_images is for a stream, and {config.name} is none: give data.limit")


def leave_out(records: Records, max_faulty: int, workers: int) -> tuple[Records, tuple[str, ...]]:
    """The training images that can be decoded, and what is wrong with each of the others.

    All images are decoded once for it, by threads; where nothing may be left out none is, as reading them finds the
    first. Raises UserError where more than `max_faulty` cannot be read, or all of a class.
    """
    if not max_faulty or not isinstance(records, Encoded):
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
    if len(wrong) > max_faulty:
        raise UserError(
            f"{len(wrong)} of {len(records)} training images cannot be read, --data.max_faulty allows {max_faulty}: "
            + "; ".join(wrong[:3])
        )
    left = records.select(np.flatnonzero([each is None for each in problems]))
    if not len(left):
        raise UserError(f"none of the {len(records)} training images can be read: {wrong[0]}")
    if records.labels is not None and left.labels is not None:
        lost = set(records.labels.tolist()) - set(left.labels.tolist())
        if lost:
            raise UserError(f"no image of {len(lost)} classes can be read (class {min(lost)}): {wrong[0]}")
    return left, wrong
