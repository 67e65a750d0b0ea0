"""What a source hands over: decoded pixels or encoded images, their labels, and what it knows of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unixkd.data.images import Pixels, read_header, read_image
from unixkd.errors import UserError

Labels = NDArray[np.int64]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Items(Protocol):
    """A sequence of encoded images: paths or bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Path | bytes: ...


@runtime_checkable
class NamedItems(Items, Protocol):
    """Encoded images of which more is known than their bytes."""

    def name(self, position: int, /) -> str:
        """What an image is called in messages."""

    def head(self, position: int, /) -> bytes:
        """The beginning of an image's bytes, which may be enough to open it."""

    def digest(self, positions: NDArray[np.int64], /) -> bytes:
        """SHA-256 of what the images at these positions are called, and their sizes."""


@dataclass(frozen=True)
class Decoded:
    """Images of one shape in memory: pixels `[N, H, W, C]` uint8 and labels `[N]` or None."""

    pixels: Pixels
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, positions: NDArray[np.int64]) -> Decoded:
        """The images at these positions."""
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, pixels=self.pixels[positions], labels=labels)

    def unlabelled(self) -> Decoded:
        """The same images without their labels."""
        return replace(self, labels=None)


@dataclass(frozen=True)
class Encoded:
    """Images that are decoded when they are needed.

    Args:
        items: the encoded images
        labels: class of each *selected* image `[N]`, or None
        origin: where they come from, for messages; files lie below it
        positions: which of `items` are meant `[N]`
    """

    items: Items
    labels: Labels | None
    origin: str
    positions: NDArray[np.int64]

    @classmethod
    def of(cls, items: Items, labels: Labels | None, origin: str) -> Encoded:
        """All of the items."""
        return cls(items, labels, origin, np.arange(len(items)))

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, positions: NDArray[np.int64]) -> Encoded:
        """The images at these positions."""
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, labels=labels, positions=self.positions[positions])

    def unlabelled(self) -> Encoded:
        """The same images without their labels."""
        return replace(self, labels=None)

    def _item(self, i: int) -> tuple[Path | bytes, str]:
        position = int(self.positions[i])
        item = self.items[position]
        if isinstance(self.items, NamedItems):
            return item, self.items.name(position)
        return item, str(item) if isinstance(item, Path) else f"{self.origin}: image {position}"

    def header(self, i: int) -> Image.Image:
        """Image i, not decoded yet. Raises UserError where it is unreadable."""
        if isinstance(self.items, NamedItems):
            with contextlib.suppress(UserError):  # the rest may be needed
                return read_header(self.items.head(int(self.positions[i])), self.origin)
        return read_header(*self._item(i))

    def read(self, i: int) -> Image.Image:
        """Image i, decoded. Raises UserError where it is unreadable."""
        return read_image(*self._item(i))

    def digest(self) -> bytes:
        """SHA-256 of each file's (or tar member's) name and size, or of up to 256 images' bytes."""
        if isinstance(self.items, NamedItems):
            return self.items.digest(self.positions)
        whole = hashlib.sha256()
        names_known = isinstance(self._item(0)[0], Path)
        count = len(self) if names_known else min(len(self), 256)
        for i in np.linspace(0, len(self) - 1, count).round().astype(int):
            item, name = self._item(int(i))
            if isinstance(item, Path):
                name = item.relative_to(self.origin).as_posix() if item.is_relative_to(self.origin) else name
                whole.update(f"{name}\0{item.stat().st_size}\n".encode())
            else:
                whole.update(hashlib.sha256(item).digest())
        return whole.digest()


Records = Decoded | Encoded


@dataclass(frozen=True)
class Source:
    """A data set as its source describes it.

    Args:
        train: training images
        test: test images, or None
        class_names: name of each class, or None where there are none
        num_classes: number of classes, or None where it is unknown
        channels: 1 or 3
        size: side in pixels that suits the data
        mean: per-channel mean of pixels in [0, 1]
        std: per-channel standard deviation
        flip: whether a mirrored image is as good as the image
    """

    train: Records
    test: Records | None
    class_names: tuple[str, ...] | None
    num_classes: int | None
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True


def normalization(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and standard deviation; for grey images the averages over the channels."""
    return ((0.449,), (0.226,)) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)


def check_labels(labels: Sequence[Any] | NDArray[Any], num_classes: int | None, where: str) -> Labels:
    """Labels as int64 once every one of them is an integer in range.

    Args:
        labels: class of each image `[N]`
        num_classes: number of classes; None: any number from 0 on
        where: what the labels belong to, for messages

    Raises:
        UserError: a label is negative, too large or not an integer; the first such sample is named.

    >>> check_labels([0, 2, 3], 3, "train")
    Traceback (most recent call last):
    unixkd.errors.UserError: train: sample 2 has label 3, but labels must be integers in 0..2
    """
    array = np.asarray(labels)
    span = "integers from 0 on" if num_classes is None else f"integers in 0..{num_classes - 1}"
    high = float("inf") if num_classes is None else num_classes
    if array.dtype.kind in "iuf":
        wrong = ~((array >= 0) & (array < high) & (array == np.floor(array)))
    else:
        array = np.asarray(labels, dtype=object)
        wrong = np.array([not (isinstance(value, int) and 0 <= value < high) for value in array])
    if wrong.any():
        sample = int(np.argmax(wrong))
        raise UserError(
            f"{where}: sample {sample} has label {array.tolist()[sample]!r}, but labels must be {span}"
        )
    return array.astype(np.int64)


def check_filled(labels: Labels, num_classes: int, names: Sequence[str] | None, where: str) -> None:
    """Raise UserError, with counts, where a class has no images."""
    counts = np.bincount(labels, minlength=num_classes)
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        shown = ", ".join(repr(names[i]) if names else str(i) for i in empty[:5])
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise UserError(
            f"{where}: {len(empty)} of {num_classes} classes have no images ({shown}{more}); "
            f"the others have {counts[counts > 0].min()} to {counts.max()} ({len(labels)} images in all)"
        )
