"""Files of a run folder: names that several packages need, files written whole or not at all, checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


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
