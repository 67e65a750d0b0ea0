"""The images of a stream, which is read from its beginning in every epoch and never lies on the disk as a whole."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixkd.data.hub import reason_of
from unixkd.errors import UserError

_FILES = 10  # that are read side by side at most


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


def _reads_files_together(stream: Any) -> bool:
    """Whether this version of `datasets` would, if it were not told otherwise."""
    return "max_buffer_input_shards" in inspect.signature(stream.shuffle).parameters
