"""Images from a stream, which is read from its beginning in every epoch and never lies on the disk as a whole.

Opening one finds out what can be known before it is read; its evaluation set is kept in memory.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from unixkd.config import DataConfig
from unixkd.data.cache import files_key
from unixkd.data.disk import NO_VIEW, LoadedSplit
from unixkd.data.images import Pixels, read_photo
from unixkd.data.source import Items, Source, labelled_source
from unixkd.data.sources.hub import (
    Column,
    check_rows,
    datasets_library,
    find_columns,
    load_splits,
    parquet_files,
    reason_of,
    training_split,
    undecoded,
    written_labels,
)
from unixkd.errors import UserError
from unixkd.method.batch import Batch
from unixkd.names import local_path

_HEAD = 64  # images at the beginning that stand for all
_FILES = 10  # that are read side by side at most


def load_stream(place: str, config: DataConfig) -> tuple[Source, Streamed]:
    """What is known of a stream, with its evaluation set, and the stream for training.

    The evaluation set is fetched whole, and kept on the disk by `datasets`.

    Args:
        place: a data set of the Hub, or a Parquet file or a folder of them
        config: `stream_images`, `stream_buffer`, the columns and `split_seed`, which decides the order
    """
    origin, path = f"stream:{place}", local_path(place)
    files = parquet_files(path) if path.exists() else None
    how: dict[str, Any] = {"path": place} if files is None else {"path": "parquet", "data_files": files}
    splits = load_splits(origin, streaming=True, **how)
    check_rows(files or {})
    train = training_split(splits)
    if train is None or train.features is None:
        known = ", ".join(splits) or "none"
        raise UserError(f"{origin}: no training images whose columns are known; its splits are {known}")
    image, label, names = find_columns(train.features, config, origin)
    columns = [image] if label is None else [image, label]
    train = undecoded(train, origin, *columns)
    head, total = _head(train, image, origin), _total(train, files)

    def read(split: str, where: str) -> tuple[Items, Sequence[Any] | None]:
        if split == "train":
            return list(head), None  # its labels come with the images, in training
        fetched = _fetch(undecoded(splits[split], where, *columns), where, _version(place, files))
        return Column(fetched, image, where, ()), written_labels(fetched, label)

    labelled = {split for split, examples in splits.items() if label in (examples.features or {})}
    labelled = labelled if "train" in splits else set()
    source = labelled_source(read, labelled, names, origin, wanted=config.labels, column=label)
    if label is not None and config.labels and source.num_classes is None:
        raise UserError(
            f"{origin}: {label} is no class column, so that the classes are not known: give data.labels false, or "
            "another data.label_column"
        )
    streamed = Streamed(
        stream=train,
        image=image,
        label=label,
        count=_epoch(config.stream_images, total, origin),
        total=total,
        buffer=config.stream_buffer,
        seed=config.split_seed,
        num_classes=source.num_classes,
        head=head,
        origin=origin,
    )
    return source, streamed


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

        only = next(iter(files.values()))
        return sum(parquet.read_metadata(file).num_rows for file in files.get("train", only))
    known = (train.info.splits or {}).get(train.split)
    return None if known is None or not known.num_examples else int(known.num_examples)


def _epoch(wanted: int | None, total: int | None, origin: str) -> int:
    """Images of an epoch."""
    count = total if wanted is None else wanted
    if count is None:
        raise UserError(
            f"{origin}: how many images it has is not known: give data.stream_images, those of an epoch"
        )
    if count < 1 or (total is not None and count > total):
        raise UserError(
            f"data.stream_images is {count}, but {origin} has {total or 'an unknown number of'} images"
        )
    return count


def _version(place: str, files: dict[str, list[str]] | None) -> str:
    """What tells the data from what they were: the files' sizes and times, or the commit on the Hub."""
    if files is not None:
        return files_key(Path(file) for split in sorted(files) for file in files[split])
    from huggingface_hub import HfApi  # datasets itself needs it

    try:
        return str(HfApi().dataset_info(place).sha)
    except Exception as error:
        raise UserError(
            f"stream:{place}: the Hub cannot be asked for its version ({reason_of(error)})"
        ) from error


def _fetch(examples: Any, origin: str, version: str) -> Any:
    """All of a stream as a data set on the disk; `datasets` keeps it for as long as the version stays the same."""
    library, known_by = datasets_library(), {}
    if _accepts(library.Dataset.from_generator, "fingerprint"):  # older versions keep a copy for every start
        key = repr((origin, version, examples.features, library.__version__))
        known_by["fingerprint"] = hashlib.sha256(key.encode()).hexdigest()[:16]
    try:
        return library.Dataset.from_generator(
            _each, gen_kwargs={"examples": examples}, features=examples.features, **known_by
        )
    except Exception as error:
        raise UserError(f"{origin}: cannot be read ({reason_of(error)})") from error


def _each(examples: Any) -> Iterator[dict[str, Any]]:
    yield from examples


def _accepts(function: Any, argument: str) -> bool:
    """Whether this version of `datasets` knows an argument."""
    return argument in inspect.signature(function).parameters


@dataclass(frozen=True)
class Streamed:
    """The images of a stream, of which an epoch takes the first `count` in an order of its own."""

    stream: Any  # a `datasets.IterableDataset` whose images are not decoded
    image: str  # its column of images
    label: str | None  # its column of labels
    count: int  # images of an epoch
    total: int | None  # images of the whole stream, where that is known
    buffer: int  # images among which the next one is drawn
    seed: int  # of the order
    num_classes: int | None
    head: tuple[bytes, ...]  # the first images as they are encoded
    origin: str  # for messages

    def __len__(self) -> int:
        return self.count

    def epoch(self, number: int) -> Iterator[tuple[bytes, int, str]]:
        """Each image of an epoch as it is encoded, its label (or -1), and what it is called in messages."""
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)[0]
        how = {"seed": int(seed), "buffer_size": self.buffer}
        if _accepts(self.stream.shuffle, "max_buffer_input_shards"):  # it would read ten files together
            how["max_buffer_input_shards"] = self.files_at_once
        examples = iter(self.stream.shuffle(**how))
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
        key = repr((facts, self.stream.features, datasets.__version__))  # its shuffling may change
        return hashlib.sha256(key.encode() + b"".join(self.head)).digest()


def encoded(value: Any, where: str) -> bytes:
    """The bytes of an image that `datasets` has not decoded; a path in a stream is never followed."""
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    raise UserError(f"{where}: holds no image bytes")


_Sample = tuple[bytes, str, int]  # an encoded image, what it is called, the code of its view


@dataclass(frozen=True)
class StreamSplit(LoadedSplit):
    """A split whose images come one after the other; an index is a place in the epoch and means no image of another.

    The stream is read and shuffled in this process and decoded in other threads, so that their number cannot
    change a batch. When an epoch is resumed, the stream is read again from the epoch's beginning and the images
    already used are thrown away; of several processes each reads all of the stream and decodes its own images.
    It has neither views nor mixes of limited number.
    """

    records: Streamed
    labels = None  # they come with the images only
    lasting = False

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.records.label is not None

    def epoch_order(self, seed: int, epoch: int) -> Int[Tensor, " n"]:
        """As the images come: the stream itself is shuffled, by a seed of the data's own."""
        return torch.arange(len(self))

    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches of images at ascending places of the epoch `[M]`; see `Split`.

        Raises UserError where the stream cannot be read on or ends too early, or an image is unreadable.
        """
        order = order.cpu()
        if not len(order):
            return
        if bool((order.diff() <= 0).any()):
            raise ValueError("a stream gives its images in its own order only")
        views, labels = self.epoch_views(epoch, order).split(batch_size), deque[Int[Tensor, " n"]]()
        with closing(self._samples(epoch, order, batch_size, labels)) as samples:
            loading = self.load(samples, self.read)
            for positions, view, (pixels, _) in zip(order.split(batch_size), views, loading, strict=True):
                known = labels.popleft()
                yield Batch(pixels, known if self.labelled else None, positions, view).to(self.onto)

    def read(self, sample: _Sample) -> Pixels:
        """An encoded image in the view of a code `[size, size, C]`, uint8; runs in a thread of its own."""
        content, where, code = sample
        return self.cut(read_photo(content, where, self.channels, self.least), code)

    def image(self, i: int) -> NDArray[np.uint8]:
        """One of the stream's first images as in evaluation `[size, size, C]`, uint8."""
        head = self.records.head
        return self.read((head[i % len(head)], f"{self.records.origin}: image {i}", NO_VIEW))

    def eval_batches(self, batch_size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """None: a stream is for training."""
        raise NotImplementedError("a stream is for training; its evaluation set is another split")

    def _samples(
        self, epoch: int, order: Int[Tensor, " m"], batch_size: int, labels: deque[Int[Tensor, " n"]]
    ) -> Generator[list[_Sample]]:
        """What workers are handed, batch by batch; the labels are left in the queue."""
        images = enumerate(self.records.epoch(epoch))
        codes = self._codes(order, self.epoch_views(epoch, order))
        for positions, batch_codes in zip(order.split(batch_size), codes.split(batch_size), strict=True):
            batch = [next(image for place, image in images if place == i) for i in positions.tolist()]
            labels.append(torch.tensor([label for _, label, _ in batch]))
            pairs = zip(batch, batch_codes.tolist(), strict=True)
            yield [(content, where, code) for (content, _, where), code in pairs]
