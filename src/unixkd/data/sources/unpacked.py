"""A zip or tar file of images as it came, unpacked once into the cache, and nowhere else.

It is not read in place: a compressed tar file cannot be read at random, and what finds layouts and labels needs a
folder. Nothing but plain files is written, and no name leads out of the new folder.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from filelock import FileLock

from unixkd.data.cache import cache_dir, files_key
from unixkd.data.files import HIDDEN, is_hidden
from unixkd.data.images import MAX_BYTES
from unixkd.data.sources.webdataset import Bounded
from unixkd.errors import UserError, first_line
from unixkd.names import format_bytes

_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_MAX_RATIO, _FREE = 100, 1 << 30  # images are compressed already
_MAX_MEMBERS, _MAX_NAME, _MAX_DEPTH = 20_000_000, 1024, 32
_BLOCK = 1 << 20

Member = tuple[str, int, Callable[[], IO[bytes]]]
"""A name, a size as the header has it, and what opens it."""


def unpacked(archive: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder into which an archive is unpacked, once for its name, size and time, and what to tell.

    Raises UserError where it is no whole zip or tar file, a name leads out of the folder or comes twice, or it would
    unpack to more than 100 times its size (and 1 GB), or than there is room for. Nothing stays of it then.
    """
    place = cache_dir() / "unpacked" / files_key([archive])
    whole, part, notes = place / "files", place / "part", place / "passed-over.txt"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):
            if not whole.is_dir():
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                try:
                    others = _unpack(archive, part)
                    notes.write_text(", ".join(f"{kind} {count:,}" for kind, count in others.most_common()))
                    part.rename(whole)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
            left = notes.read_text()
    except UserError:
        raise
    except _BROKEN as error:
        raise UserError(
            f"{archive}: cannot be unpacked as a zip or tar file ({first_line(error)})"
        ) from error
    lines = (f"{archive}: unpacked in {whole}",)
    return whole, lines + ((f"{archive}: not unpacked: {left}",) if left else ())


_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
)
"""What the readers raise on damaged files, on those that need a password, and where there is no room."""


def _unpack(archive: Path, folder: Path) -> Counter[str]:
    """Write an archive's files below a folder; how many others there are of each kind."""
    folder.mkdir()
    others, size = Counter[str](), archive.stat().st_size
    room = shutil.disk_usage(folder).free
    most = min(max(_FREE, _MAX_RATIO * size), room)
    written = 0
    with ExitStack() as stack:
        for number, member in enumerate(_members(archive, most, others, stack)):
            name, expected, opened = member
            path = _path(archive, name)
            if number >= _MAX_MEMBERS:
                raise UserError(f"{archive}: more than {_MAX_MEMBERS:,} files, refused")
            if any(is_hidden(part) for part in path.parts):
                others[HIDDEN] += 1
                continue
            if expected > MAX_BYTES:
                others[f"of more than {format_bytes(MAX_BYTES)}"] += 1
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened() as source, target.open("xb") as file:  # a name that comes twice is an error
                while block := source.read(_BLOCK):
                    written += len(block)
                    if written > most:
                        limit = "there is room for" if most == room else f"{_MAX_RATIO} times its own size"
                        raise UserError(
                            f"{archive}: unpacks to more than {limit} ({format_bytes(most)}), refused"
                        )
                    file.write(block)
    return others


def _path(archive: Path, name: str) -> PurePosixPath:
    """A member's path below the folder; names of Windows have backslashes."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = path.parts and path.parts[0].endswith(":")
    if path.is_absolute() or ".." in path.parts or drive or not path.parts or "\0" in name:
        raise UserError(f"{archive}: the name {name[:200]!r} leads out of the folder; nothing is unpacked")
    if len(name.encode("utf-8", "surrogateescape")) > _MAX_NAME or len(path.parts) > _MAX_DEPTH:
        raise UserError(
            f"{archive}: the name {name[:60]!r}... has more than {_MAX_NAME} bytes or {_MAX_DEPTH} folders"
        )
    return path


def _members(archive: Path, most: int, others: Counter[str], stack: ExitStack) -> Iterator[Member]:
    """The plain files in an archive; links and devices are counted among the others."""
    if zipfile.is_zipfile(archive):
        files = stack.enter_context(zipfile.ZipFile(archive))
        for info in files.infolist():
            if info.external_attr >> 28 == 0o12:  # the upper 16 bits are those of Unix
                others["links"] += 1
            elif not info.is_dir():
                yield info.filename, info.file_size, partial(files.open, info)
        return
    with archive.open("rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), Path.open)
    raw = Bounded(stack.enter_context(opener(archive, "rb")), most + _BLOCK)
    tar = stack.enter_context(tarfile.open(fileobj=raw, mode="r:"))  # type: ignore[call-overload]  # noqa: SIM115
    while (member := tar.next()) is not None:
        tar.members = []  # it would remember each of them
        if member.isreg() and not member.issparse():
            yield member.name, member.size, partial(tar.extractfile, member)
        elif not member.isdir():
            others["links" if member.issym() or member.islnk() else "devices"] += 1
    raw.seek(tar.offset)
    if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"no header and no end at byte {tar.offset:,}")
