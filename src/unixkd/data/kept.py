"""Decoded images that stay in memory, as many as fit a share of what is available."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from unixkd.data.images import Photo, to_array

_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # of version 1
)
_STEP = 1 << 26  # bytes after which the memory available is looked up again


class Room:
    """Memory for decoded images: a share of what they have and of what is available beside, whoever else takes it."""

    def __init__(self, share: float) -> None:
        self.share, self._used, self._granted = share, 0, 0
        self._full = share == 0
        self._lock = threading.Lock()

    def whole(self) -> int:
        """All the bytes that there would be now."""
        return int(self.share * (self._used + available_memory()))

    def take(self, size: int) -> bool:
        """Whether so many bytes more may be used; after the first refusal none may."""
        with self._lock:
            if not self._full and self._used + size > self._granted:
                self._granted = min(self.whole(), self._used + max(size, _STEP))
                self._full = self._used + size > self._granted
            self._used += 0 if self._full else size
            return not self._full


class Kept:
    """The images of a split that are kept; that changes no pixel, and any thread may ask.

    >>> kept, photo = Kept(Room(0.25)), Photo(Image.new("RGB", (4, 3)), (8, 6))
    >>> [kept.get((0, True), lambda: (photo, 7))[1], kept.get((0, True), lambda: (photo, 8))[1]]
    [7, 7]
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self.there: dict[tuple[int, bool], tuple[np.ndarray, tuple[int, int], int]] = {}

    def get(self, key: tuple[int, bool], decode: Callable[[], tuple[Photo, int]]) -> tuple[Photo, int]:
        """An image by its position, all of it or what evaluation shows, and its checksum; decoded if it is not here."""
        if (there := self.there.get(key)) is not None:
            pixels, whole, check = there
            return Photo(
                Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), whole
            ), check
        photo, check = decode()
        if self.room.take(photo.image.width * photo.image.height * len(photo.image.getbands())):
            self.there[key] = to_array(photo.image), photo.whole, check
        return photo, check


def available_memory() -> int:
    """Bytes that can be had without swapping, within a container's limits; half of all, or none, where not known."""
    if not hasattr(os, "sysconf"):
        return 0
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    return max(min([free, *_left_in_groups()]), 0)


def _left_in_groups() -> Iterator[int]:
    """What each control group of this process leaves it; files in memory that can be dropped do not count."""
    place = Path("/proc/self/cgroup")
    own = _CGROUPS / (place.read_text().strip().rpartition("::")[2].lstrip("/") if place.exists() else "")
    for group in (own, *own.parents[: len(own.parts) - len(_CGROUPS.parts)], _CGROUPS / "memory"):
        for limit, used, files in _LIMITS:
            with contextlib.suppress(OSError, ValueError, KeyError):  # "max": no limit
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                most, taken = (int((group / name).read_text()) for name in (limit, used))
                yield most - taken + int(stat[files])
