"""Arrays kept on disk, so that a data set is decoded (or tar files are indexed) once and not at every start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unixkd.errors import UserError
from unixkd.run_files import aside


def cache_dir() -> Path:
    """Where downloads and decoded data lie: $UNIXKD_CACHE, else ~/.cache/unixkd; a UserError where there is no home."""
    try:
        return Path(os.environ.get("UNIXKD_CACHE") or Path.home() / ".cache" / "unixkd")
    except RuntimeError:
        raise UserError("this user has no home folder for data: let UNIXKD_CACHE name a folder") from None


def files_key(files: Iterable[Path]) -> str:
    """A short digest of files' absolute names, sizes and modification times."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(os.fsencode(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
    return digest.hexdigest()[:24]


def cached_array(name: str, make: Callable[[], NDArray[Any]], folder: str = "decoded") -> NDArray[Any]:
    """The array kept under a name, or `make()`, then kept; a cache that cannot be used is left alone."""
    array: NDArray[Any]
    try:
        path = cache_dir() / folder / f"{name}.npy"
    except UserError:
        return make()
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        array = make()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside(path) as temporary, temporary.open("wb") as file:
                np.save(file, array)
    return array
