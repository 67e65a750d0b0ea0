"""Several runs in one process, a step each in turn: on a GPU, each on a stream of its own, they overlap."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

T = TypeVar("T")

Begin = Callable[[], Generator[None, None, T]]
"""Begins a run that pauses after every step and returns its result."""


def take_turns(
    begin: Sequence[Begin[T]],
    at_once: int,
    lane: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[T]:
    """Run all to their ends, some at a time, in turns; after a failure no new one is begun, then it is raised.

    The process's own random generators are shared: students that draw from them (dropout) are not to be
    repeated exactly this way.

    Args:
        begin: runs to begin
        at_once: how many are under way at a time
        lane: makes the context that a run's turns lie in, a CUDA stream say

    >>> def count(name, to):
    ...     for number in range(to):
    ...         print(name, number)
    ...         yield
    ...     return to
    >>> take_turns([lambda: count("a", 2), lambda: count("b", 1)], at_once=2)
    a 0
    b 0
    a 1
    [2, 1]
    """
    results: dict[int, T] = {}
    waiting = list(enumerate(begin))
    running: list[tuple[int, Generator[None, None, T], AbstractContextManager[object]]] = []
    failures: list[BaseException] = []
    while running or (waiting and not failures):
        while waiting and len(running) < at_once and not failures:
            number, start = waiting.pop(0)
            running.append((number, start(), lane()))
        for turn in list(running):
            number, run, context = turn
            try:
                with context:
                    next(run)
            except StopIteration as end:
                results[number] = end.value
                running.remove(turn)
            except (Exception, KeyboardInterrupt) as error:  # the others stop at a step of their own
                failures.append(error)
                running.remove(turn)
    if failures:
        raise failures[0]
    return [results[number] for number in sorted(results)]
