"""Errors where memory runs out, and an allocator that keeps what a step frees for the next one.

glibc gives large blocks back to the system as soon as they are freed, and the system hands them out again page by
page, zeroed: a step of a convolutional network on a CPU frees and wants hundreds of megabytes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unixkd.config import TrainConfig
from unixkd.errors import UserError, first_line

LEAST_ROWS = 4
"""Of a micro-batch: batches are cut evenly, so that from 3 on no part is of one row where the batch is not."""
_ON_THE_HOST = ("not enough memory", "can't allocate memory")
"""What torch's RuntimeError says; on a GPU it has a type of its own."""


@contextmanager
def explained(train: TrainConfig) -> Iterator[None]:
    """Within, an error of the allocator becomes one that says what to lower.

    Raises:
        UserError: memory ran out
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        half = (train.micro_batch or train.batch_size) // 2
        raise UserError(
            f"out of memory with batches of {train.batch_size} images ({first_line(error)}): give --train.micro_batch "
            f"{max(half, LEAST_ROWS)} to train on fewer at once, or lower --train.batch_size; --train.eval_batch_size "
            f"({train.eval_batch_size}) if it was in an evaluation"
        ) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host.

    >>> ran_out(MemoryError()), ran_out(RuntimeError("shapes do not match"))
    (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _ON_THE_HOST)


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # of malloc.h
_KEEPING = {_TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 64 << 20, _MMAP_MAX: 0}
# Where glibc's own thresholds end, which rise with use until they are set by hand.
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}


def keep_freed_memory(keep: bool) -> bool:
    """Keep what is freed from now on (True) or give it back to the system again, all of it at once (False).

    It holds for the whole process. Where the C library is not glibc, nothing happens.

    Returns:
        Whether the C library could be told.

    >>> keep_freed_memory(True) == keep_freed_memory(False)
    True
    """
    libc = _glibc()
    if libc is None:
        return False
    accepted = [libc.mallopt(name, value) for name, value in (_KEEPING if keep else _USUAL).items()]
    if not keep:
        libc.malloc_trim(0)
    return all(accepted)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # a system without a C library to ask
        return None
