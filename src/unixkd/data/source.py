"""What a source hands over: decoded pixels or encoded images, their labels, and what it knows of them."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import reprlib
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unixkd.data.images import GREY_MODES, Photo, Pixels, read_file, read_header, read_image, read_photo
from unixkd.errors import UserError

Labels = NDArray[np.int64]
# a labelled test set comes first, then a validation set; the first that is there is evaluated on
TEST_NAMES = ("test", "val", "valid", "validation")
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY_STATISTICS = ((0.449,), (0.226,))  # averages over the channels
_INSPECT_ALL = 10_000  # headers that are read at most, of evenly spaced images
_HASHED, _HASHED_BYTES, _GOLDEN = 10_000, 10**9, (5**0.5 - 1) / 2
_DECODED = 16  # images that are decoded at the start, of evenly spaced ones
_DEFAULT_SIZE = 224
_NUMERAL = re.compile(r"-?\d{1,18}")
_MOST_CLASSES = 1 << 20  # or as many as there are images: each label up to the largest needs an image


@runtime_checkable
class Items(Protocol):
    """A sequence of encoded images: paths or bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Path | bytes: ...


@runtime_checkable
class NamedItems(Items, Protocol):
    """Encoded images with names, whose first bytes can be read alone."""

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
        return Decoded(self.pixels[positions], labels)


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

    def is_deep(self, i: int) -> bool:
        """Whether image i is grey of 16 bits."""
        with self.header(i) as image:
            return image.mode.startswith("I;16")

    def read(self, i: int) -> Image.Image:
        """Image i, decoded. Raises UserError where it is unreadable."""
        return read_image(*self._item(i))

    def photo(self, i: int, channels: int, least: int | None = None) -> Photo:
        """Image i as `read_photo` decodes it; errors as `read`."""
        return read_photo(*self._item(i), channels, least)

    def photo_checked(self, i: int, channels: int, least: int | None = None) -> tuple[Photo, int]:
        """As `photo`, with the CRC-32 of the encoded bytes, never 0."""
        encoded = read_file(*(item := self._item(i)))
        return read_photo(encoded, item[1], channels, least), zlib.crc32(encoded) or 1

    def encoded(self, i: int) -> bytes:
        """The file of image i. Raises UserError where it cannot be read."""
        return read_file(*self._item(i))

    def name(self, i: int) -> str:
        """What image i is called in messages."""
        return self._item(i)[1]

    def are_files(self) -> bool:
        """Whether the images are files, of which only the paths are in memory."""
        return len(self) > 0 and isinstance(self.items[int(self.positions[0])], Path)

    def called(self, i: int) -> str:
        """As `name`; of a file below the data's folder without that folder."""
        item, name = self._item(i)
        inside = isinstance(item, Path) and item.is_relative_to(self.origin)
        return Path(name).relative_to(self.origin).as_posix() if inside else name

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
                whole.update(os.fsencode(f"{name}\0{item.stat().st_size}\n"))
            else:
                whole.update(hashlib.sha256(item).digest())
        return whole.digest()

    def content_digest(self) -> bytes:
        """SHA-256 of the bytes of all images; of more than 10,000 or 1 GB, of that many, evenly spread."""
        count, total, whole = min(len(self), _HASHED), 0, hashlib.sha256()
        spread = np.argsort(np.arange(count) * _GOLDEN % 1)  # any beginning of it is evenly spread too
        for i in np.linspace(0, len(self) - 1, count).round().astype(int)[spread]:
            item, name = self._item(int(i))
            try:
                content = item.read_bytes() if isinstance(item, Path) else item
            except OSError as error:
                raise UserError(f"{name}: cannot be read ({error.strerror})") from error
            whole.update(hashlib.sha256(content).digest())
            total += len(content)
            if total >= _HASHED_BYTES:
                break
        return whole.digest()


Records = Decoded | Encoded


@dataclass(frozen=True)
class ImageFormat:
    """Side in pixels of square images, channels (1 or 3), per-channel mean and standard deviation in [0, 1]."""

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Source:
    """A data set as its source describes it.

    Args:
        train: training images
        test: test images, or None
        class_names: name of each class, or None where there are none
        num_classes: number of classes, or None where it is unknown
        format: that suits the data; None: the images' headers decide, see `find_format`
        flip: whether a mirrored image is as good as the image
        notes: what to tell the user: what is passed over, and why
    """

    train: Records
    test: Records | None
    class_names: tuple[str, ...] | None
    num_classes: int | None
    format: ImageFormat | None = None
    flip: bool = True
    notes: tuple[str, ...] = ()


def labelled_source(
    read: Callable[[str, str], tuple[Items, Sequence[Any] | None]],
    splits: Collection[str],
    names: tuple[str, ...] | None,
    origin: str,
    numerals: bool = False,
    wanted: bool = True,
    column: str | None = None,
) -> Source:
    """A source of encoded images, evaluated on the first of `TEST_NAMES` that has labels.

    Args:
        read: from a split's name and what it is called in messages to its images, and their labels as they are
            written or None
        splits: names of the splits beside `train`
        names: of the classes, or None where the labels decide
        origin: where the images come from, for messages
        numerals: see `class_numbers`
        wanted: whether training needs labels; otherwise some images may lack one, and then have -1
        column: what the labels' column is called, for messages

    Raises:
        UserError: a label is faulty, or a class has no training images.
    """
    images, written = read("train", origin)
    called = partial(_called, images, column)
    values, notes = given_labels(written, f"{origin}: train", called, numerals, wanted, may_lack=not wanted)
    notes = tuple(f"{note}{called(0)}" for note in notes)
    hidden = np.array([value is None for value in values or ()], dtype=bool)
    if values is not None and hidden.any():
        filler = values[int(hidden.argmin())]
        values = [filler if value is None else value for value in values]
    names, num_classes, labels = class_numbers(values, names, None, f"{origin}: train", numerals, called)
    if labels is not None and num_classes is not None:
        check_filled(labels[~hidden], num_classes, names, f"{origin}: train")
        labels[hidden] = -1
    train, test, named = Encoded.of(images, labels, origin), None, {"train"}
    for split in (name for name in TEST_NAMES if name in splits):
        where = f"{origin}: {split}"
        images, written = read(split, where)
        called = partial(_called, images, column)
        values, lines = given_labels(written, where, called, numerals, wanted)
        notes += lines
        named |= {split} if lines or values is not None else set()
        if values is not None:
            names, num_classes, labels = class_numbers(values, names, num_classes, where, numerals, called)
            test = Encoded.of(images, labels, where)
            break
    if others := sorted(set(splits) - named):
        notes += (f"{origin}: not used: {', '.join(others)}",)
    return Source(train, test, names, num_classes, notes=notes)


def _called(images: Items, column: str | None, i: int) -> str:
    """Where the label of image i is written, in brackets."""
    if isinstance(images, NamedItems):
        return f" ({images.name(i)})"
    return f" (column {column})" if column else ""


def given_labels(
    written: Sequence[Any] | None,
    where: str,
    called: Callable[[int], str],
    numerals: bool,
    wanted: bool,
    may_lack: bool = False,
) -> tuple[Sequence[Any] | None, tuple[str, ...]]:
    """Labels with None for each that is hidden (-1, as the Hub marks it, null, NaN) or of a kind that no class is of
    (a list, a date, a fraction, an empty text), and a line if all are.

    Raises UserError for such kinds where labels are wanted, and where some images have no label and that may not be.
    """
    if not written:
        return None, ()
    marks = (None, -1, "-1") if numerals else (None, -1)
    odd = [_odd_kind(value) for value in written]
    values = [
        None if kind or value in marks or value != value else value
        for value, kind in zip(written, odd, strict=True)
    ]
    missing, other = values.count(None), "train without labels (--data.labels false)"
    if wanted and any(odd):
        i = next(i for i, kind in enumerate(odd) if kind)
        raise UserError(
            f"{where}: {odd[i]} ({str(written[i])[:40]}) for sample {i}{called(i)} where one class is wanted: "
            f"name another column (--data.label_column), or {other}"
        )
    if missing == len(values):
        return None, (
            f"{where}: none of the {missing:,} labels is a class ({str(written[0])[:40]}): unlabelled",
        )
    if missing and not may_lack:
        i = values.index(None)
        raise UserError(
            f"{where}: sample {i} has label {written[i]!r}, as {missing:,} of {len(values):,} images have none"
            f"{called(i)}: leave these images out{f', or {other}' if wanted else ''}"
        )
    return values, ()


def _odd_kind(value: Any) -> str:
    """What a value is that can be no class, infinity too, else empty; a whole number may be written as a float.

    >>> _odd_kind([1]), _odd_kind(0.5), _odd_kind(b"cat"), _odd_kind(" "), _odd_kind(1.0)
    ('a list of labels', 'a fraction', 'a value of type bytes', 'an empty text', '')
    """
    if isinstance(value, str) and not value.strip():
        return "an empty text"
    if value is None or isinstance(value, int | str | float):
        return "a fraction" if isinstance(value, float) and not math.isnan(value) and value % 1 else ""
    return "a list of labels" if isinstance(value, list) else f"a value of type {type(value).__name__}"


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in their order: of numbers where all are integers, else of text.

    >>> class_order(["10", "9", "1"]), class_order(["b", "10", "9"])
    (('1', '9', '10'), ('10', '9', 'b'))
    """
    words = sorted(names)
    return tuple(sorted(words, key=int) if all(map(_NUMERAL.fullmatch, words)) else words)


def class_numbers(
    values: Sequence[Any] | None,
    names: tuple[str, ...] | None,
    num_classes: int | None,
    where: str,
    numerals: bool = False,
    called: Callable[[int], str] = lambda i: "",
) -> tuple[tuple[str, ...] | None, int | None, Labels | None]:
    """Class names, number of classes, and each label's class; words are classes in `class_order`.

    Args:
        values: the labels as they are written, numbers or words; None: there are none
        names: known class names, or None
        num_classes: known number of classes, or None
        where: what the labels belong to, for messages
        numerals: words that are all numbers are these numbers
        called: what a sample is called beside its position, for messages

    Raises:
        UserError: a label is no class; the first such sample is named.

    >>> class_numbers(["b", "a"], None, None, "train")
    (('a', 'b'), 2, array([1, 0]))
    >>> class_numbers(["0", "10"], None, None, "train", numerals=True)
    (None, 11, array([ 0, 10]))
    """
    if values is None:
        return names, len(names) if names else num_classes, None
    words = {value for value in values if isinstance(value, str)}
    numbers = (
        {word: int(word) for word in words if re.fullmatch(r"-?\d+", word)} if numerals and not names else {}
    )
    if names is None and num_classes is None and len(numbers) < len(words) == len(set(values)):
        names = class_order(words)
    if names is not None:
        numbers, num_classes = {name: i for i, name in enumerate(names)}, len(names)
    labels = check_labels([numbers.get(value, value) for value in values], num_classes, where, called)
    return names, int(labels.max()) + 1 if num_classes is None else num_classes, labels


def find_format(train: Records, test: Records | None, skip_unreadable: bool = False) -> ImageFormat:
    """The format that suits the images, from their headers, with ImageNet's mean and standard deviation.

    The size is the common one where all images are square and alike, else 224; there is 1 channel where all images
    are grey, else 3. Of more than 10,000 images that many evenly spaced ones count. With `skip_unreadable` training
    images whose header is unreadable are passed over: they are counted later.
    """
    sizes: set[tuple[int, int]] = set()
    grey = True
    for records in (train, test):
        if not isinstance(records, Encoded):
            continue
        count = min(len(records), _INSPECT_ALL)
        for i in np.linspace(0, len(records) - 1, count).round().astype(int):
            try:
                with records.header(int(i)) as image:
                    sizes.add(image.size)
                    grey = grey and image.mode in GREY_MODES
            except UserError:
                if records is test or not skip_unreadable:
                    raise
    width, height = next(iter(sizes), (0, 1))
    size = width if len(sizes) == 1 and width == height else _DEFAULT_SIZE
    if grey:
        return ImageFormat(size, 1, *_GREY_STATISTICS)
    return ImageFormat(size, 3, *_IMAGENET_STATISTICS)


def dark_note(records: Records) -> tuple[str, ...]:
    """A line where grey images of 16 bits leave the upper three quarters unused, as 12 bits that do not say so."""
    brightest = [0]
    for i in np.linspace(0, len(records) - 1, min(len(records), _DECODED)).round().astype(int):
        with contextlib.suppress(UserError):  # found where the image is used
            if not isinstance(records, Encoded) or not records.is_deep(i):
                return ()
            brightest.append(np.asarray(records.read(i)).max())
    line = (
        f"none of up to {_DECODED} images looked at is brighter than a quarter of 16 bits: if theirs are fewer, scale "
        "them, or state it (MaxSampleValue of TIFF, the maximum of PGM)"
    )
    return (line,) if 0 < max(brightest) < 64 else ()


def check_labels(
    labels: Sequence[Any] | NDArray[Any],
    num_classes: int | None,
    where: str,
    called: Callable[[int], str] = lambda i: "",
) -> Labels:
    """Labels as int64 once every one of them is an integer in range.

    Args:
        labels: class of each image `[N]`
        num_classes: number of classes; None: any number from 0 on, up to 2^20 or as many as there are labels
        where: what the labels belong to, for messages
        called: what a sample is called beside its position

    Raises:
        UserError: a label is negative, too large or not an integer; the first such sample is named.

    >>> check_labels([0, 2, 3], 3, "train")
    Traceback (most recent call last):
    unixkd.errors.UserError: train: sample 2 has label 3, but labels must be integers in 0..2
    """
    array = np.asarray(labels)
    span = "integers from 0 on, without gaps" if num_classes is None else f"integers in 0..{num_classes - 1}"
    high = max(len(array), _MOST_CLASSES) if num_classes is None else num_classes
    if array.dtype.kind in "iuf":
        wrong = ~((array >= 0) & (array < high) & (array == np.floor(array)))
    else:
        array = np.asarray(labels, dtype=object)
        wrong = np.array([not (isinstance(value, int) and 0 <= value < high) for value in array])
    if wrong.any():
        sample = int(np.argmax(wrong))
        label = reprlib.repr(np.asarray(labels[sample : sample + 1]).tolist()[0])  # `array` may be of floats
        raise UserError(
            f"{where}: sample {sample} has label {label}{called(sample)}, but labels must be {span}"
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
