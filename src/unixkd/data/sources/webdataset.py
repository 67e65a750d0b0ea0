"""WebDataset shards: tar files of images with their labels, read at random where they lie, by an index of each file."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import math
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unixkd.data.cache import cached_array, files_key
from unixkd.data.images import SUFFIXES
from unixkd.data.source import Encoded, Source, check_filled, check_labels, normalization
from unixkd.data.sources.folder import TEST_NAMES, inspect
from unixkd.errors import UserError

_MOST = 1_000_000


_BRACES, _NUMBER = re.compile(r"\{([^{}]*)\}"), re.compile(r"-?\d{1,18}")


def load_shards(pattern: str, label_field: str | None, most_unreadable: int = 0) -> Source:
    """Tar files as a source: images `KEY.jpg`, and beside them `KEY.cls`, `KEY.json` or `KEY.txt`.

    The pattern is a tar file, a folder of them or with `train/` and `val/` of them, or a path with
    `{000..146}`, `{a,b}`, `*` or `?`. Files with test, val, valid or validation as a part of their name are the
    test set, all others are for training. Labels are numbers, or words that are then classes in alphabetical order.

    Raises:
        UserError: a file is missing, is no whole tar file, or holds a faulty sample; a label is faulty.
    """
    shards = _shards(pattern)
    if not shards.get("train"):
        raise UserError(f"wds:{pattern}: no tar files to train on; there are some for {', '.join(shards)}")
    images, labels = _read(shards["train"], label_field, f"wds:{pattern}")
    classes = None if labels is None else _classes(labels)
    train, test = _encoded(images, labels, classes, f"wds:{pattern}: train"), None
    for part in TEST_NAMES:
        if test is None and part in shards:
            images, labels = _read(shards[part], label_field, f"wds:{pattern}: {part}")
            if labels is not None:
                classes = classes or _classes(labels)
                test = _encoded(images, labels, classes, f"wds:{pattern}: {part}")
    names, num_classes = classes or (None, None)
    if train.labels is not None and num_classes is not None:
        check_filled(train.labels, num_classes, names, f"wds:{pattern}: train")
    elif label_field is not None and classes is None:
        raise UserError(f"wds:{pattern}: no sample has the label {label_field}: correct data.label_column")
    size, channels = inspect(train, test, most_unreadable)
    mean, std = normalization(channels)
    return Source(train, test, names, num_classes, channels, size, mean, std)


def expand(pattern: str) -> list[str]:
    """Every text that a pattern with `{000..146}` or `{a,b}` stands for.

    >>> expand("{train,val}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']

    Raises:
        UserError: they are more than a million.
    """
    parts = _BRACES.split(pattern)  # what is between braces comes at odd places
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    if math.prod(map(len, choices)) > _MOST:
        raise UserError(f"{pattern}: stands for more than {_MOST:,} files")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> Sequence[str]:
    ends = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if ends is None:
        return inside.split(",")
    first, last = int(ends[1]), int(ends[2])
    if not 0 <= last - first < _MOST:
        raise UserError(f"{{{inside}}}: from {first} to {last} is no range of at most {_MOST:,} files")
    return [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]


def _shards(pattern: str) -> dict[str, list[Path]]:
    """Tar files by the part of the data that they hold."""
    place = Path(pattern).expanduser()
    if re.match(r"(pipe:|\w+://)", pattern):
        raise UserError(f"wds:{pattern}: shards are local files: fetch them first, or give stream:ID")
    if place.is_dir():
        folders = {part: place / part for part in ("train", *TEST_NAMES) if (place / part).is_dir()}
        if "train" in folders:
            return {
                part: found for part, folder in folders.items() if (found := sorted(folder.glob("*.tar")))
            }
        files = sorted(place.glob("*.tar"))
    else:
        files = [Path(file) for text in expand(str(place)) for file in _matching(text)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]}: no such file ({len(missing)} of {len(files)} of {pattern} are missing)"
            )
    if not files:
        raise UserError(f"wds:{pattern}: no .tar files there")
    shards: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z0-9]+", file.name.lower())
        part = next((name for name in TEST_NAMES if name in words and len(files) > 1), "train")
        shards.setdefault(part, []).append(file)
    return shards


def _matching(text: str) -> list[str]:
    return sorted(glob.glob(text)) if re.search(r"[*?\[]", text) and not Path(text).exists() else [text]  # noqa: PTH207


def _read(
    files: list[Path], label_field: str | None, where: str
) -> tuple[TarImages, NDArray[np.bytes_] | None]:
    """The images of tar files, and their labels as they are written, or None where none has one."""
    images = TarImages(files, [tar_index(file, label_field) for file in files])
    if not len(images):
        raise UserError(f"{where}: no images in {files[0]}{' and the others' if len(files) > 1 else ''}")
    labels = np.concatenate([index["label"] for index in images.indices])
    lacking = np.flatnonzero(labels == b"")
    if len(lacking) == len(labels):
        return images, None
    if len(lacking):
        name = images.name(int(lacking[0]))
        raise UserError(
            f"{name}: has no label, as {len(lacking)} of {len(labels)} images; the others have one"
        )
    return images, labels


def _classes(labels: NDArray[np.bytes_]) -> tuple[tuple[str, ...] | None, int]:
    """Class names, where labels are words, and the number of classes."""
    words = [text.decode("utf-8", "replace") for text in np.unique(labels).tolist()]
    if all(_NUMBER.fullmatch(word) for word in words):
        return None, max(max(int(word) for word in words) + 1, 1)
    names = tuple(sorted(words))
    return names, len(names)


def _encoded(
    images: TarImages,
    labels: NDArray[np.bytes_] | None,
    classes: tuple[tuple[str, ...] | None, int] | None,
    origin: str,
) -> Encoded:
    """The images with the number of each one's class. Raises UserError for a label that is no class."""
    if labels is None or classes is None:
        return Encoded.of(images, None, origin)
    names, num_classes = classes
    number = {name: i for i, name in enumerate(names or ())}
    texts, place = np.unique(labels, return_inverse=True)
    words = [text.decode("utf-8", "replace") for text in texts.tolist()]
    values = [
        number.get(word, int(word) if not names and _NUMBER.fullmatch(word) else word) for word in words
    ]
    return Encoded.of(images, check_labels([values[i] for i in place], num_classes, origin), origin)


Index = NDArray[np.void]
"""A row for each image of a tar file: `name`, `offset` and `size` of its bytes, `label` as it is written, or empty."""


LABEL_FIELDS = ("label", "labels", "cls", "class", "target")


_HEADER = 1 << 20  # extended headers (long names) are read whole by tarfile


_IMAGE, _LABEL_FILE, _LABEL, _NAME = 1 << 28, 1 << 20, 256, 1024


_HEAD = 1 << 14  # usually enough for an image's mode and size


def tar_index(file: Path, label_field: str | None) -> Index:
    """Where a tar file's images lie, from one pass over its headers that is kept for the next time.

    Members of one name before the first dot of its last part are a sample, as in WebDataset: one image and,
    with labels, `.cls` or `.txt` (a number or a class name) or `.json` with the label in a field. Nothing is
    extracted and no name is used as a path; links, devices, folders and hidden files are passed over.

    Args:
        file: a tar file that is not compressed; the kept index is made anew when its size or time changes
        label_field: cls, txt, or a field of `.json`; None: the first of these that a sample has

    Raises:
        UserError: no whole tar file, or a sample with two images, with none, or with a label that is none.
    """
    try:
        key = files_key([file])
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    suffix = hashlib.sha256(repr((label_field, 1)).encode()).hexdigest()[:8]
    return cached_array(f"{key}-{suffix}", lambda: _make(file, label_field), "shards")


def _make(file: Path, label_field: str | None) -> Index:
    try:
        with file.open("rb") as opened:
            samples = _samples(opened, file)
            rows = [_row(opened, f"{file}: {key}", parts, label_field) for key, parts in samples.items()]
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{file}: cannot be read as a tar file ({error}); fetch it again") from error
    width = {name: max((len(row[name]) for row in rows), default=1) or 1 for name in ("name", "label")}
    kind = [
        ("name", f"S{width['name']}"),
        ("offset", "<i8"),
        ("size", "<i8"),
        ("label", f"S{width['label']}"),
    ]
    return np.array([(row["name"], row["offset"], row["size"], row["label"]) for row in rows], dtype=kind)


class _Bounded:
    """A file of which no more is read at a time than a header may take."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def _samples(opened: BinaryIO, file: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of each sample by what follows the first dot of their names."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    last = ""
    with tarfile.open(fileobj=_Bounded(opened), mode="r:") as tar:  # type: ignore[call-overload]
        for member in _members(tar):
            path = PurePosixPath(member.name)
            stem, dot, extension = path.name.partition(".")
            if not member.isreg() or member.issparse() or not stem or not dot:
                continue
            key, extension = str(path.parent / stem), extension.lower()
            if len(member.name.encode("utf-8", "surrogateescape")) > _NAME:
                raise UserError(f"{file}: a name of more than {_NAME} bytes ({member.name[:60]}...)")
            if extension in samples.setdefault(key, {}) or (samples[key] and key != last):
                raise UserError(f"{file}: {member.name}: the key {key} is there twice")
            samples[key][extension], last = member, key
        opened.seek(tar.offset)
    # tarfile takes a damaged header for the end: it would leave out every image behind it
    if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end at byte {tar.offset:,}")
    return samples


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would remember each of them
        yield member


def _row(
    opened: BinaryIO, where: str, parts: dict[str, tarfile.TarInfo], label_field: str | None
) -> dict[str, Any]:
    images = [member for extension, member in parts.items() if f".{extension}" in SUFFIXES]
    if len(images) != 1:
        found = ", ".join(parts)
        raise UserError(f"{where}: {'no image' if not images else 'several images'} ({found}), one is wanted")
    image = images[0]
    if not 0 < image.size <= _IMAGE:
        raise UserError(f"{where}: an image of {image.size:,} bytes, refused (limit {_IMAGE:,})")
    label = _label(opened, where, parts, label_field)
    if len(label) > _LABEL:
        raise UserError(f"{where}: a label of more than {_LABEL} bytes is no class: give data.label_column")
    name = image.name.encode("utf-8", "surrogateescape")
    return {"name": name, "offset": image.offset_data, "size": image.size, "label": label}


def _label(opened: BinaryIO, where: str, parts: dict[str, tarfile.TarInfo], label_field: str | None) -> bytes:
    """What a sample says that it is, empty where it says nothing."""
    for extension in ("cls", "json", "txt"):
        in_json = extension == "json" and label_field not in ("cls", "txt")
        if extension not in parts or not (in_json or label_field in (None, extension)):
            continue
        member = parts[extension]
        if member.size > _LABEL_FILE:
            raise UserError(f"{where}.{extension}: {member.size:,} bytes for a label, refused")
        opened.seek(member.offset_data)
        content = opened.read(member.size)
        label = _json_label(content, f"{where}.json", label_field) if in_json else content.strip()
        if label or extension != "json":
            if not label:
                raise UserError(f"{where}.{extension}: an empty label")
            return label
    return b""


def _json_label(content: bytes, where: str, label_field: str | None) -> bytes:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: holds no fields")
    for name in LABEL_FIELDS if label_field is None else (label_field,):
        value = values.get(name)
        if isinstance(value, bool | float | list | dict):
            raise UserError(f"{where}: {name} is {str(value)[:40]}, no class number or name")
        if value is not None and str(value).strip():
            return str(value).strip().encode()
    return b""


@dataclass(frozen=True)
class TarImages:
    """The encoded images of tar files, in the files' order and in each file's own.

    Args:
        files: tar files
        indices: of each
    """

    files: Sequence[Path]
    indices: Sequence[Index]
    starts: NDArray[np.int64] = field(init=False)
    stamps: Sequence[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *(len(index) for index in self.indices)])
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "stamps", [_stamp(file) for file in self.files])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, position: int) -> bytes:
        return self._read(position, _IMAGE)

    def head(self, position: int) -> bytes:
        """The beginning of an image, usually enough to know its mode and size."""
        return self._read(position, _HEAD)

    def name(self, position: int) -> str:
        """The tar file and the member."""
        number, row = self._row(position)
        return f"{self.files[number]}: {row['name'].decode('utf-8', 'replace')}"

    def digest(self, positions: NDArray[np.int64]) -> bytes:
        """SHA-256 of these images' names and sizes."""
        names = np.concatenate([index["name"] for index in self.indices])[positions]
        sizes = np.concatenate([index["size"] for index in self.indices])[positions]
        return hashlib.sha256(b"\0".join(names.tolist()) + sizes.tobytes()).digest()

    def _row(self, position: int) -> tuple[int, np.void]:
        number = int(np.searchsorted(self.starts, position, "right")) - 1
        return number, self.indices[number][position - int(self.starts[number])]

    def _read(self, position: int, most: int) -> bytes:
        number, row = self._row(position)
        file, size = self.files[number], min(int(row["size"]), most)
        try:
            if _stamp(file) != self.stamps[number]:
                raise UserError(f"{file}: has changed since it was indexed; start again")
            with file.open("rb", buffering=0) as opened:
                opened.seek(int(row["offset"]))
                content = opened.read(size)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from error
        if len(content) != size:
            raise UserError(f"{self.name(position)}: cut short; fetch the file again")
        return content


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
