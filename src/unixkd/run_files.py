"""Files of a run folder: names that several packages need, files written whole or not at all, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unixkd.errors import UserError


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path beside `path`: the file or folder made there gets this name at the end, or is removed after an error.

    Where it has to survive a power cut, call `sync` on what is written, and on the folder afterwards.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        remove(temporary)  # there is none any more where all went well


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON file.

    Raises:
        UserError: it cannot be read, or holds something else than an object
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"'{path}' holds no JSON object")
    return values


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


EXPORTED = ("README.md", "config.json", "model.safetensors", "model.pt2", "model.onnx", "model.onnx.data")
"""What `unixkd export` may write into a folder, which is a run's own `export` unless another one is named."""


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or folder to the disk; folders cannot be synced on Windows."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
