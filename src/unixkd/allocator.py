"""Memory that a step frees stays with the process, for the next step to use.

glibc gives large blocks back to the system as soon as they are freed, and the system hands them out again page by
page, zeroed: a step of a convolutional network on a CPU frees and wants hundreds of megabytes.
Source: the manual page of mallopt(3).
"""

from __future__ import annotations

import ctypes
import functools

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
    told = [libc.mallopt(name, value) for name, value in (_KEEPING if keep else _USUAL).items()]
    if not keep:
        libc.malloc_trim(0)
    return all(told)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # a system without a C library to ask
        return None
