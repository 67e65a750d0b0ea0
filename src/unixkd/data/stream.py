"""Streams: data sets that are read from their beginning in every epoch and never lie on the disk as a whole."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from unixkd.config import DataConfig
from unixkd.data import folder
from unixkd.data.hub import (
    datasets_library,
    encoded_images,
    find_image_column,
    find_label_column,
    load_parts,
    parquet_files,
    read_labels,
    reason_of,
)
from unixkd.data.records import Encoded, Source, normalization
from unixkd.errors import UserError

_HEAD = 64  # images at the beginning that stand for all
_FILES = 10  # that are read side by side at most
_NOT_OF_STREAMS = {
    "holdout": "images cannot be held out of a stream",
    "limit": "a stream has no subset: give data.stream_images",
    "views": "a stream does not show an image again in another view",
    "max_unreadable": "a stream cannot be read through beforehand",
    "in_memory": "a stream is never in memory",
}


@dataclass(frozen=True)
class Streamed:
    """The images of a stream, of which an epoch takes the first so many in an order of its own.

    Args:
        stream: a `datasets.IterableDataset` whose images are not decoded
        image: its column of images
        label: its column of labels, or None
        count: images of an epoch
        total: images of the whole stream, or None where that is not known
        buffer: images among which the next one is drawn
        seed: of the order
        num_classes: how many classes the labels tell apart, or None
        head: the first images as they are encoded
        origin: where they come from, for messages
    """

    stream: Any
    image: str
    label: str | None
    count: int
    total: int | None
    buffer: int
    seed: int
    num_classes: int | None
    head: tuple[bytes, ...]
    origin: str

    def __len__(self) -> int:
        return self.count

    def unlabelled(self) -> Streamed:
        """The same images without their labels."""
        return replace(self, label=None)

    def epoch(self, number: int) -> Iterator[tuple[bytes, int, str]]:
        """Each image of an epoch as it is encoded, its label (or -1), and what it is called in messages.

        Raises:
            UserError: the stream cannot be read on, ends too early, or has an empty image or a faulty label.
        """
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)[0]
        how = {"max_buffer_input_shards": self.files_at_once} if _reads_files_together(self.stream) else {}
        examples = iter(self.stream.shuffle(seed=int(seed), buffer_size=self.buffer, **how))
        for place in range(self.count):
            where = f"{self.origin}: image {place} of epoch {number + 1}"
            try:
                example = next(examples)
            except StopIteration:
                raise UserError(
                    f"{self.origin}: ended after {place} images of an epoch of {self.count}: give data.stream_images"
                ) from None
            except Exception as error:  # whatever the library, the network or a file's parser raises
                raise UserError(
                    f"{where}: cannot be read on ({reason_of(error)}); --resume goes on"
                ) from error
            yield encoded(example[self.image], where), self.class_of(example, where), where

    @property
    def files_at_once(self) -> int:
        """Files that an epoch reads side by side: no more than it reads to their ends, or the ends would never come."""
        share = 0 if self.total is None else self.stream.num_shards * self.count // self.total
        return min(max(share, 1), _FILES)

    def announcement(self) -> str:
        """What a user has to know before training: which images an epoch shows, and what an interruption costs."""
        if self.total == self.count:
            shown = f"an epoch is all of its {self.count:,} images"
        else:
            whole = "" if self.total is None else f" of {self.total:,}"
            shown = f"an epoch is {self.count:,}{whole} images, of which some may come again before others have come"
            if self.total is not None and self.stream.num_shards * self.count < self.total:
                shown += f"; files hold more than that, and what lies behind their first {self.count:,} never comes"
        return (
            f"{self.origin}: {shown}, shuffled among {min(self.buffer, self.count):,} at a time; after an interruption "
            "it is read from the epoch's beginning, to go on with the same images as long as the data stay the same"
        )

    def class_of(self, example: dict[str, Any], where: str) -> int:
        """The label of an example, -1 where labels are not wanted. Raises UserError where it is none."""
        if self.label is None:
            return -1
        value, classes = example[self.label], self.num_classes or 0
        if not isinstance(value, int) or not 0 <= value < classes:
            raise UserError(f"{where} has label {value!r}, but labels must be integers in 0..{classes - 1}")
        return value

    def digest(self) -> bytes:
        """SHA-256 of what decides an epoch but its number, and of the first images: the rest is not looked at."""
        import datasets

        facts = (self.count, self.buffer, self.seed, self.image, self.label, self.stream.num_shards)
        told = repr((facts, self.stream.features, datasets.__version__))  # its shuffling may change
        return hashlib.sha256(told.encode() + b"".join(self.head)).digest()


def encoded(value: Any, where: str) -> bytes:
    """The bytes of an image that `datasets` has not decoded; a path in a stream is never followed."""
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    raise UserError(f"{where}: holds no image bytes")


def load_stream(place: str, config: DataConfig) -> tuple[Source, Streamed]:
    """What is known of a stream, with its evaluation set, and the stream for training.

    The evaluation set is fetched whole, and kept on the disk by `datasets`.

    Args:
        place: a data set of the Hub, or a Parquet file or a folder of them
        config: `stream_images`, `stream_buffer`, the columns and `split_seed`, which decides the order

    Raises:
        UserError: it cannot be loaded, its length is not known, or an option is none of a stream's.
    """
    _check(config)
    origin, library = f"stream:{place}", datasets_library()
    path = Path(place).expanduser()
    files = parquet_files(path) if path.exists() else None
    how: dict[str, Any] = {"path": place} if files is None else {"path": "parquet", "data_files": files}
    parts = load_parts(library, origin, streaming=True, **how)
    train = parts.get("train") or (next(iter(parts.values())) if len(parts) == 1 else None)
    if train is None or train.features is None:
        known = ", ".join(parts) or "none"
        raise UserError(f"{origin}: no training images whose columns are known; its parts are {known}")
    image = find_image_column(library, train.features, config.image_column, origin)
    label = find_label_column(library, train.features, config.label_column)
    names = None
    if label is not None and isinstance(train.features[label], library.ClassLabel):
        names = tuple(train.features[label].names)
    test = _evaluation_set(library, parts, image, label, names, origin)
    num_classes = _num_classes(names, test)
    if label is not None and config.labels and num_classes is None:
        raise UserError(
            f"{origin}: {label} is no class column, so that the classes are not known: give data.labels false, or "
            "another data.label_column"
        )
    train = _undecoded(library, train, image, label)
    head, total = _head(train, image, origin), _total(train, files)
    streamed = Streamed(
        stream=train,
        image=image,
        label=label,
        count=_epoch(config, total, origin),
        total=total,
        buffer=config.stream_buffer,
        seed=config.split_seed,
        num_classes=num_classes,
        head=head,
        origin=origin,
    )
    first = Encoded.of(list(head), None, origin)
    size, channels = folder.inspect(first, test)
    mean, std = normalization(channels)
    return Source(first, test, names, num_classes, channels, size, mean, std), streamed


def _reads_files_together(stream: Any) -> bool:
    """Whether this version of `datasets` would, if it were not told otherwise."""
    return "max_buffer_input_shards" in inspect.signature(stream.shuffle).parameters


def _check(config: DataConfig) -> None:
    default = DataConfig()
    for name, reason in _NOT_OF_STREAMS.items():
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"{reason}; leave data.{name} out")
    if config.stream_buffer < 1:
        raise UserError(f"data.stream_buffer must be at least 1, not {config.stream_buffer}")


def _num_classes(names: tuple[str, ...] | None, test: Encoded | None) -> int | None:
    if names is not None:
        return len(names)
    return None if test is None or test.labels is None else int(test.labels.max()) + 1


def _undecoded(library: ModuleType, part: Any, image: str, label: str | None) -> Any:
    columns = part.select_columns([image] if label is None else [image, label])
    return columns.cast_column(image, library.Image(decode=False))


def _head(train: Any, image: str, origin: str) -> tuple[bytes, ...]:
    try:
        examples = list(train.take(_HEAD))
    except Exception as error:
        raise UserError(f"{origin}: cannot be read ({reason_of(error)})") from error
    if not examples:
        raise UserError(f"{origin}: no training images")
    return tuple(encoded(example[image], f"{origin}: image {i}") for i, example in enumerate(examples))


def _total(train: Any, files: dict[str, list[str]] | None) -> int | None:
    """Images of the whole stream, where its metadata say so."""
    if files is not None:
        from pyarrow import parquet

        return sum(parquet.read_metadata(file).num_rows for file in files["train"])
    known = (train.info.splits or {}).get(train.split)
    return None if known is None or not known.num_examples else int(known.num_examples)


def _epoch(config: DataConfig, total: int | None, origin: str) -> int:
    wanted = config.stream_images
    if wanted is None and total is None:
        raise UserError(
            f"{origin}: how many images it has is not known: give data.stream_images, those of an epoch"
        )
    count = total if wanted is None else wanted
    assert count is not None
    if count < 1 or (total is not None and count > total):
        raise UserError(
            f"data.stream_images is {count}, but {origin} has {total or 'an unknown number of'} images"
        )
    return count


def _evaluation_set(
    library: ModuleType,
    parts: dict[str, Any],
    image: str,
    label: str | None,
    names: tuple[str, ...] | None,
    origin: str,
) -> Encoded | None:
    """The first labelled part that is for evaluation, from the disk."""
    for name in folder.TEST_NAMES:
        part = parts.get(name)
        if part is None or label is None or label not in (part.features or {}):
            continue
        part = _undecoded(library, part, image, label)
        try:
            whole = library.Dataset.from_generator(
                _examples, gen_kwargs={"stream": part}, features=part.features
            )
        except Exception as error:
            raise UserError(f"{origin}: {name}: cannot be read ({reason_of(error)})") from error
        _, labels = read_labels(
            library, whole, label, f"{origin}: {name}", names, len(names) if names else None
        )
        if labels is not None:
            return encoded_images(library, whole, image, labels, f"{origin}: {name}")
    return None


def _examples(stream: Any) -> Iterator[dict[str, Any]]:
    yield from stream
