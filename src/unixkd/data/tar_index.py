"""Images in tar files, read where they lie: an index of each file knows the bytes and the label of each image."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unixkd.data.cache import cached_array, files_key
from unixkd.data.images import SUFFIXES
from unixkd.errors import UserError

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
