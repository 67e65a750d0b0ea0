"""A zip or tar file of images as it came, unpacked once into the cache.

It is not read in place: a compressed tar file cannot be read at random, and what finds layouts and labels needs a
folder. Nothing but plain files is written, and no name leads out of the new folder.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import logging
import lzma
import os
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from unixkd.data.cache import cache_dir, files_key
from unixkd.data.sources.webdataset import Bounded
from unixkd.errors import UserError, first_line
from unixkd.names import format_bytes

_log = logging.getLogger(__name__)
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_RATIO, _LEAST, _BLOCK = 100, 1 << 30, 1 << 20  # images are compressed already


def unpacked(archive: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder into which an archive is unpacked, once for its path, size and time, and what to tell.

    Raises UserError where it is no whole zip or tar file, a name leads out of the folder or comes twice, or it would
    unpack to more than 100 times its size (and 1 GB), or than there is room for. Nothing stays of it then.
    """
    place = cache_dir() / "unpacked" / files_key([archive])
    whole, part, left = place / "files", place / "part", place / "left-out"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):
            if not whole.is_dir():
                _log.warning("%s: unpacking into %s", archive, place)
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                try:
                    others = _unpack(archive, part)
                    left.write_text(", ".join(f"{kind} {count:,}" for kind, count in others.items()))
                    part.rename(whole)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
            notes = (f"{archive}: unpacked in {whole}", f"{archive}: not unpacked: {left.read_text()}")
    except UserError:
        raise
    except Exception as error:  # whatever the readers of damaged files raise, and what the disk does
        problem = f"cannot be unpacked as a zip or tar file ({first_line(error)})"
        raise UserError(f"{archive}: {problem}") from error
    return whole, notes if left.stat().st_size else notes[:1]


def _unpack(archive: Path, folder: Path) -> Counter[str]:
    """Write an archive's plain files below a folder; how many others there are of each kind."""
    folder.mkdir()
    left, written = Counter[str](), 0
    most = min(max(_LEAST, _RATIO * archive.stat().st_size), shutil.disk_usage(folder).free)
    with ExitStack() as stack:
        for name, member in _members(archive, most, left, stack):
            # files and folders without content take room too
            written += tarfile.BLOCKSIZE * (1 + name.count("/") + name.count("\\"))
            with member() as source, _created(archive, folder, name) as file:
                while True:
                    block = source.read(_BLOCK)
                    if (written := written + len(block)) > most:
                        raise UserError(f"{archive}: unpacks to more than {format_bytes(most)}, refused")
                    if not file.write(block):
                        break
    return left


def _created(archive: Path, folder: Path, name: str) -> BinaryIO:
    """A new file of this name below a folder. Raises UserError where it leads out, is there, or is too long."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    rooted = re.match(r"([a-zA-Z]:)?[/\\]", name) or (
        os.name == "nt" and ":" in name
    )  # elsewhere a:1.png is a name
    problem = "leads out of the folder"
    if parts and ".." not in parts and not rooted:
        try:
            target = folder.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            return target.open("xb")
        except (FileExistsError, NotADirectoryError):
            problem = "comes twice, or is a file's and a folder's"
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            problem = "is too long for this system"
    raise UserError(f"{archive}: the name {name[:200]!r} {problem}; nothing is unpacked")


def _name(info: zipfile.ZipInfo) -> str:
    """A member's name; without the flag for UTF-8 it may be UTF-8 all the same, and was decoded as cp437."""
    try:
        return info.filename if info.flag_bits & 0x800 else info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _members(
    archive: Path, most: int, left: Counter[str], stack: ExitStack
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of the plain files in an archive, and what opens each; the others are counted."""
    with archive.open("rb") as file:
        start = file.read(4)
    if start in (b"PK\x03\x04", b"PK\x05\x06"):  # `is_zipfile` would find one at a tar file's end
        whole = stack.enter_context(zipfile.ZipFile(archive))
        for info in whole.infolist():
            if info.external_attr >> 28 == 0o12:  # the upper 16 bits are those of Unix
                left["links"] += 1
            elif not info.is_dir():
                yield _name(info), partial(whole.open, info)
        return
    opener = _OPENERS.get(start[:2], Path.open)
    raw = Bounded(stack.enter_context(opener(archive, "rb")), most + _BLOCK)
    tar = stack.enter_context(tarfile.open(fileobj=raw, mode="r:"))  # type: ignore[call-overload]  # noqa: SIM115
    while (member := tar.next()) is not None:
        tar.members = []  # it would remember each of them
        if member.isreg() and not member.issparse():
            yield member.name, partial(tar.extractfile, member)
        elif not member.isdir():
            left["links" if member.issym() or member.islnk() else "devices"] += 1
    raw.seek(tar.offset)
    if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"no header and no end at byte {tar.offset:,}")
