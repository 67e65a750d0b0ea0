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
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from unixkd.data.cache import cached_array, files_key
from unixkd.data.images import MAX_BYTES, SUFFIXES
from unixkd.data.source import TEST_NAMES, Source, labelled_source
from unixkd.errors import UserError
from unixkd.names import local_path

_MAX_FILES = 1_000_000  # that a pattern may stand for
_MAX_LABEL_FILE, _MAX_LABEL, _MAX_NAME = 1 << 20, 256, 1024  # bytes
_MAX_HEADER = 1 << 20  # bytes that tarfile may read at once
_HEAD = 1 << 14  # bytes that are usually enough for an image's mode and size
_LABEL_FIELDS = ("label", "labels", "cls", "class", "target")

Index = NDArray[np.void]
"""A row for each image of a tar file: `name`, `offset` and `size` of its bytes, `label` as it is written, or empty."""


def load_shards(pattern: str, label_field: str | None, wanted: bool = True) -> Source:
    """Tar files as a source: images `KEY.jpg`, and beside them `KEY.cls`, `KEY.json` or `KEY.txt`.

    The pattern is a tar file, a folder of them or with `train/` and `val/` of them, or a path with
    `{000..146}`, `{a,b}`, `*` or `?`. Files with test, val, valid or validation as a word of their name are the
    test set, all others are for training. Labels are numbers, or words that are then classes in the order of text.

    Raises:
        UserError: a file is missing, is no whole tar file, or holds a faulty sample; a label is faulty.
    """
    origin, shards = f"wds:{pattern}", _shards(pattern)
    if not shards.get("train"):
        raise UserError(f"{origin}: no tar files to train on; there are some for {', '.join(shards)}")
    read = partial(_read, shards, label_field)
    source = labelled_source(read, shards, names=None, origin=origin, numerals=True, wanted=wanted)
    if label_field is not None and source.num_classes is None:
        raise UserError(f"{origin}: no sample has the label {label_field}: correct data.label_column")
    return source


def expand(pattern: str) -> list[str]:
    """Every text that a pattern with `{000..146}` or `{a,b}` stands for. Raises UserError for more than a million.

    >>> expand("{train,val}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # what is between braces comes at odd places
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    if math.prod(map(len, choices)) > _MAX_FILES:
        raise UserError(f"{pattern}: stands for more than {_MAX_FILES:,} files")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> Sequence[str]:
    ends = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if ends is None:
        return inside.split(",")
    first, last = int(ends[1]), int(ends[2])
    if not 0 <= last - first < _MAX_FILES:
        raise UserError(f"{{{inside}}}: from {first} to {last} is no range of at most {_MAX_FILES:,} files")
    return [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]


def _shards(pattern: str) -> dict[str, list[Path]]:
    """Tar files of each split."""
    place = local_path(pattern)
    if re.match(r"(pipe:|\w+://)", pattern):
        raise UserError(f"wds:{pattern}: shards are local files: fetch them first, or give stream:ID")
    if place.is_dir():
        if (place / "train").is_dir():
            folders = {split: sorted((place / split).glob("*.tar")) for split in ("train", *TEST_NAMES)}
            return {split: files for split, files in folders.items() if files}
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
        split = next((name for name in TEST_NAMES if name in words and len(files) > 1), "train")
        shards.setdefault(split, []).append(file)
    return shards


def _matching(text: str) -> list[str]:
    return sorted(glob.glob(text)) if re.search(r"[*?\[]", text) and not Path(text).exists() else [text]  # noqa: PTH207


def _read(
    shards: dict[str, list[Path]], label_field: str | None, split: str, where: str
) -> tuple[TarImages, list[str] | None]:
    """The images of a split's tar files, and their labels as they are written, or None where none has one."""
    files = shards[split]
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
    return images, np.char.decode(labels, "utf-8", "replace").tolist()


def tar_index(file: Path, label_field: str | None) -> Index:
    """Where a tar file's images lie, from one pass over its headers that is kept for the next time.

    Members of one path before the first dot of the file's name are a sample, as in WebDataset: one image and,
    with labels, `.cls` or `.txt` (a number or a class name) or `.json` with the label in a field. Nothing is
    extracted and no name is used as a path; links, devices, folders and hidden files are passed over.

    Args:
        file: a tar file that is not compressed; the kept index is made anew when its size or time changes
        label_field: cls, txt, or a field of `.json`; None: the first of these that a sample has
    """
    try:
        key = files_key([file])
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    suffix = hashlib.sha256(repr((label_field, 2)).encode()).hexdigest()[:8]
    return cached_array(f"{key}-{suffix}", lambda: _make(file, label_field), "shards")


def _make(file: Path, label_field: str | None) -> Index:
    try:
        with file.open("rb") as opened:
            samples = _samples(opened, file)
            rows = [_row(opened, f"{file}: {key}", members, label_field) for key, members in samples.items()]
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{file}: cannot be read as a tar file ({error}); fetch it again") from error
    name = max((len(row[0]) for row in rows), default=1)
    label = max((len(row[3]) for row in rows), default=0) or 1  # numpy has no S0
    kind = [("name", f"S{name}"), ("offset", "<i8"), ("size", "<i8"), ("label", f"S{label}")]
    return np.array(rows, dtype=kind)


class Bounded:
    """A file of which no more is read at a time than a header may take, and none behind a position."""

    # A header may declare an extended header (a long name of GNU tar, a pax record) of any size, which tarfile reads
    # into memory as a whole: a hostile file of a few kilobytes could ask for all the memory there is. So tarfile is
    # handed this file, which refuses to read more than 1 MiB at once; images are read past it, by their offsets.
    def __init__(self, file: BinaryIO, end: float = math.inf) -> None:
        self.file, self.end, self.tell = file, end, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self._check(self.tell())
        return self.file.read(size)

    def seek(self, position: int) -> int:
        self._check(position)  # a compressed file is read as far as that
        return self.file.seek(position)

    def _check(self, position: int) -> None:
        if position > self.end:
            raise tarfile.ReadError(f"more than {self.end:,} bytes")


def _samples(opened: BinaryIO, file: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """The members of each sample by what follows the first dot of their names."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    last = ""
    with tarfile.open(fileobj=Bounded(opened), mode="r:") as tar:  # type: ignore[call-overload]
        for member in _members(tar):
            path = PurePosixPath(member.name)
            stem, dot, extension = path.name.partition(".")
            if not member.isreg() or member.issparse() or not stem or not dot:
                continue
            key, extension = str(path.parent / stem), extension.lower()
            if len(member.name.encode("utf-8", "surrogateescape")) > _MAX_NAME:
                raise UserError(f"{file}: a name of more than {_MAX_NAME} bytes ({member.name[:60]}...)")
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
    opened: BinaryIO, where: str, members: dict[str, tarfile.TarInfo], label_field: str | None
) -> tuple[bytes, int, int, bytes]:
    """A sample's row of the index."""
    images = [member for extension, member in members.items() if f".{extension}" in SUFFIXES]
    if len(images) != 1:
        problem = "several images" if images else "no image"
        raise UserError(f"{where}: {problem} ({', '.join(members)}), one is wanted")
    image = images[0]
    if not 0 < image.size <= MAX_BYTES:
        raise UserError(f"{where}: an image of {image.size:,} bytes, refused (limit {MAX_BYTES:,})")
    label = _label(opened, where, members, label_field)
    if len(label) > _MAX_LABEL:
        raise UserError(
            f"{where}: a label of more than {_MAX_LABEL} bytes is no class: give data.label_column"
        )
    return image.name.encode("utf-8", "surrogateescape"), image.offset_data, image.size, label


def _label(
    opened: BinaryIO, where: str, members: dict[str, tarfile.TarInfo], label_field: str | None
) -> bytes:
    """A sample's label as it is written, empty where it has none."""
    for extension in ("cls", "json", "txt"):
        in_json = extension == "json" and label_field not in ("cls", "txt")
        if extension not in members or not (in_json or label_field in (None, extension)):
            continue
        member = members[extension]
        if member.size > _MAX_LABEL_FILE:
            raise UserError(f"{where}.{extension}: {member.size:,} bytes for a label, refused")
        opened.seek(member.offset_data)
        content = opened.read(member.size)
        label = _json_label(content, f"{where}.json", label_field) if in_json else content.strip()
        if label:
            return label
        if not in_json:
            raise UserError(f"{where}.{extension}: an empty label")
    return b""


def _json_label(content: bytes, where: str, label_field: str | None) -> bytes:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: holds no fields")
    for name in _LABEL_FIELDS if label_field is None else (label_field,):
        value = values.get(name)
        if isinstance(value, bool | float | list | dict):
            raise UserError(f"{where}: {name} is {str(value)[:40]}, no class number or name")
        if value is not None and str(value).strip():
            return str(value).strip().encode()
    return b""


class TarImages:
    """The encoded images of tar files, in the files' order and in each file's own."""

    def __init__(self, files: Sequence[Path], indices: Sequence[Index]) -> None:
        self.files, self.indices = files, indices
        self.starts = np.cumsum([0, *(len(index) for index in indices)])
        self.stamps = [_stamp(file) for file in files]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, position: int) -> bytes:
        return self._read(position, MAX_BYTES)

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
