"""The folder of a store of teacher answers: made whole or not at all, and checked before it is used."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unixkd.errors import UserError, read_json, refuse_links
from unixkd.run_files import aside, leftovers, sync
from unixkd.teacher.format import CHECKS, IMAGES, LOGITS, SCHEMA, TOP_SCHEMA, Contents

_INDEX = "answers.json"
_STALE_SECONDS = 3600  # no store takes so long to make: an older unfinished one was left by a kill
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL)  # file systems that only ever allocate on writing


def open_folder(path: Path, contents: Contents, announce: Callable[[str], None]) -> list[np.memmap]:
    """The mapped rows `[images × views, width]` and checksums `[images × views]` of a store; see `AnswerStore.open`.

    Where the images are files, the checksums of these too `[images]`.
    """
    try:
        _remove_leftovers(path.resolve())
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            _create(path.resolve(), contents, announce)
        _check(path, contents)
        rows, packing = contents.images * contents.views, contents.packing
        counts = {CHECKS: rows, **({IMAGES: contents.images} if contents.on_disk else {})}
        refuse_links(*(path / name for name in (LOGITS, *counts)))
        logits = np.memmap(path / LOGITS, packing.dtype, mode="r+", shape=(rows, packing.width))
        return [logits] + [
            np.memmap(path / name, np.dtype("<u4"), mode="r+", shape=(count,))
            for name, count in counts.items()
        ]
    except OSError as error:
        where = error.filename or path
        raise UserError(f"cannot keep answers at {where}: {error.strerror}; give another folder") from None


def _create(place: Path, contents: Contents, announce: Callable[[str], None]) -> None:
    announce(f"stored teacher answers: {contents} at {place}")
    needed = sum(contents.sizes.values())
    try:
        if _free_bytes(place) < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with aside(place) as temporary:
            temporary.mkdir(parents=True)
            for name, size in contents.sizes.items():
                _reserve(temporary / name, size)
            (temporary / _INDEX).write_text(json.dumps(contents.index, indent=2))
            sync(temporary / _INDEX)
    except OSError as error:
        if (place / _INDEX).exists():
            return  # another process has made it meanwhile
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"no space for stored teacher answers at {place}: {contents} need {needed:,} bytes, "
            f"{_free_bytes(place):,} are free; keep fewer views (--data.views) or logits (--answers.top_k), "
            "or give another folder"
        ) from None


def _reserve(file: Path, size: int) -> None:
    """A file of zeros. Its blocks are allocated now: a write through a map cannot report a full disk, it kills."""
    with file.open("wb") as handle:
        handle.truncate(size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(handle.fileno(), 0, size)
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
        os.fsync(handle.fileno())


def _remove_leftovers(place: Path) -> None:
    """Remove what a process that was killed while it made the store has left beside it."""
    with contextlib.suppress(OSError):  # no parent yet, or another process removes the same
        for old in leftovers(place.parent, re.escape(place.name)):
            if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(old)


def _free_bytes(place: Path) -> int:
    return shutil.disk_usage(next(parent for parent in place.parents if parent.exists())).free


def _check(path: Path, contents: Contents) -> None:
    """Raise where a folder is not the store of these contents."""
    saved = _read_index(path)
    if saved["schema"] not in (SCHEMA, TOP_SCHEMA):
        raise UserError(f"{path} was written by another version of unixkd: give another folder, or remove it")
    there, here = _settings(saved), _settings(contents.index)
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    if names:
        differences = "; ".join(_difference(name, there.get(name), here.get(name)) for name in names)
        raise UserError(
            f"{path} holds other stored answers. What differs: {differences}. "
            "Give another folder, or remove this one"
        )
    for name, size in contents.sizes.items():
        file = path / name
        actual = f"{file.stat().st_size:,} bytes" if file.is_file() else "missing"
        if actual != f"{size:,} bytes":
            raise UserError(f"{file} is damaged: {actual}, not {size:,} bytes; remove the folder {path}")


def read_key(path: Path) -> dict[str, str]:
    """The key of the store at a path, empty where there is none yet. Raises UserError where its index is damaged."""
    return dict(_read_index(path)["key"]) if (path / _INDEX).exists() else {}


def read_views(path: Path) -> int | None:
    """Views of each image in the store at a path; None where there is none yet, or its index does not say."""
    views = _read_index(path).get("views") if (path / _INDEX).exists() else None
    return views if isinstance(views, int) and views > 0 else None


def _read_index(path: Path) -> dict[str, Any]:
    file = path / _INDEX
    if not path.is_dir() or not file.is_file():
        raise UserError(f"{path} is no store of teacher answers, it has no {_INDEX}: give another folder")
    try:
        saved = read_json(file)
        if isinstance(saved["schema"], int) and isinstance(saved["key"], dict):
            return saved
    except (UserError, KeyError):
        pass
    raise UserError(f"{file} is damaged or of something else: give another folder, or remove {path}")


def _settings(index: dict[str, Any]) -> dict[str, Any]:
    """All that two stores can differ in, by the name a reader knows it by."""
    numbers = {f"number of {name}": index.get(name) for name in ("images", "views", "classes")}
    top_k = index.get("top_k")
    kept = "all" if top_k is None else f"the largest {top_k}, for temperature {index.get('temperature')}"
    return {**index["key"], **numbers, "stored precision": index.get("precision"), "logits kept": kept}


def _difference(name: str, there: object, here: object) -> str:
    values = ["nothing" if value is None else str(value) for value in (there, here)]
    if any(re.fullmatch("[0-9a-f]{32,}", value) for value in values):  # tells a reader nothing
        return name
    return f"{name} ({values[0]} there, {values[1]} here)"
