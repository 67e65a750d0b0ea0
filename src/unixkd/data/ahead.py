"""Batches that threads make ahead of the step that takes them; the threads stay from epoch to epoch."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_AHEAD = 2  # batches of each thread


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    """The process's own threads: decoding and scaling an image lets others run."""
    return ThreadPoolExecutor(count, thread_name_prefix="unixkd-images")


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


def ahead(make: Callable[[_In], _Out], items: Iterable[_In], threads: int) -> Iterator[_Out]:
    """`make` of each item, in order, made by threads up to two each ahead; with no threads, when it is asked for.

    Items are taken in the caller's thread. An error comes out in its place, and what was begun ahead is dropped.

    >>> list(ahead(str, range(5), threads=2))
    ['0', '1', '2', '3', '4']
    """
    if not threads:
        yield from map(make, items)
        return
    left, begun = iter(items), deque[Future[_Out]]()
    try:
        while True:
            missing = _AHEAD * threads + 1 - len(begun)
            begun.extend(_threads(threads).submit(make, item) for item in islice(left, missing))
            if not begun:
                return
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
