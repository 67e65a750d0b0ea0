"""What a capture would freeze without a word: decisions of the host, by its random numbers or by counting in Python.

A graph repeats the operations of one step. Two warm-up steps before it are compared, so that a network whose steps
differ (LayerDrop, a warm-up that counts its calls) is trained eagerly instead.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COMPARED = (2, 3)
"""The steps that are compared; in the first one the optimiser and the sums make their tensors."""


class StepTrace(TorchDispatchMode):
    """Inside, the operations are written down, and which of them draw random numbers on the host.

    Args:
        device: where the step runs
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.operations: list[list[str]] = []
        """The name and arguments of each."""
        self.draws: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # `torch.tensor` of a Python number ends in lift_fresh, whose argument has it.
        shows_value = func is torch.ops.aten.lift_fresh.default
        leaves = (described(leaf, shows_value) for leaf in tree_leaves((args, kwargs or {})))
        self.operations.append([str(func), *leaves])
        if torch.Tag.nondeterministic_seeded in func.tags and any(map(self.decides, tree_leaves(out))):
            self.draws.append(str(func))
        return out

    def decides(self, drawn: object) -> bool:
        """Whether the host may decide by it: it lies there; on a CPU, where all does, if it is one number."""
        if not isinstance(drawn, Tensor) or drawn.device.type != "cpu":
            return False
        return self.device.type != "cpu" or drawn.numel() == 1


def described(argument: object, shows_value: bool) -> str:
    """An operation's argument as it is compared; of a tensor what a graph fixes, which is not its values."""
    if not isinstance(argument, Tensor):
        return (
            repr(argument) if isinstance(argument, int | float | complex | str) else type(argument).__name__
        )
    text = f"{str(argument.dtype).removeprefix('torch.')}{list(argument.shape)}"
    if shows_value and argument.device.type == "cpu" and argument.numel() == 1:
        text += f" = {argument.item()}"
    return text


def drawn_from(frame: FrameType | None) -> str:
    """The file that calls for a random number, through the functions of Python's module or not."""
    while frame is not None and frame.f_code.co_filename == random.__file__:
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename


def is_for_itself(file: str) -> bool:
    """Whether who draws does so for ends of its own: beartype, also in code that it has made, and torch."""
    return "beartype" in file or file.startswith(str(Path(torch.__file__).parent) + os.sep)


def is_importing(frame: FrameType | None, outer: FrameType | None) -> bool:
    """Whether a module is being imported within a frame; sympy, which torch imports when it needs it, draws then, once.

    Args:
        frame: where something happens
        outer: what is watched runs in it; whether that itself is run by an import says nothing
    """
    while frame is not None and frame is not outer:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def noting_draws(draws: list[str]) -> Iterator[None]:
    """Inside, random numbers of Python and NumPy that are drawn are added to a list; torch's a `StepTrace` sees."""

    def note(frame: FrameType, event: str, called: Any) -> None:
        # Not by the state: beartype draws which item of a list it checks; torch's compiler puts the state back.
        drawn = event == "c_call" and isinstance(getattr(called, "__self__", None), random.Random)
        if not drawn or called.__name__ not in ("random", "getrandbits"):
            return
        if not is_for_itself(drawn_from(frame)) and not is_importing(frame, outer):
            draws.append("Python's random")

    outer: FrameType | None = sys._getframe(1)  # the caller, behind what makes a context manager of this
    while outer is not None and outer.f_code.co_filename == contextlib.__file__:
        outer = outer.f_back
    before, profiler = np.random.get_state(), sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(profiler)
    if not all(np.array_equal(a, b) for a, b in zip(before, np.random.get_state(), strict=True)):
        draws.append("numpy.random")


def refuses_changes(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The same body of a step, for a capture's warm-up: it raises where a graph would freeze what changes.

    Raises:
        RuntimeError: the host draws random numbers in the step, or two steps are not the same operations
    """
    traces: list[StepTrace] = []
    calls = 0

    def watched() -> None:
        nonlocal calls
        calls += 1
        if calls not in COMPARED:
            body()
            return
        traces.append(StepTrace(device))
        with noting_draws(traces[-1].draws), traces[-1]:
            body()
        if traces[-1].draws:
            raise RuntimeError(f"the step draws random numbers on the host ({traces[-1].draws[0]})")
        if calls == COMPARED[-1]:
            compare(*(trace.operations for trace in traces))

    return watched


def compare(one: list[list[str]], other: list[list[str]]) -> None:
    """Raise where two steps differ, with the first operation that does, or its argument."""
    for before, after in zip_longest(one, other, fillvalue=["nothing"]):
        if before == after:
            continue
        then, now = next((a, b) for a, b in zip_longest(before, after, fillvalue="nothing") if a != b)
        where = f"{before[0]} takes " if before[0] == after[0] else ""
        raise RuntimeError(f"the step's operations change from step to step: {where}{then}, then {now}")


@contextlib.contextmanager
def randomness_kept(device: torch.device | None) -> Iterator[None]:
    """Afterwards all random numbers on the host, and those of a CUDA device, stand where they stood."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([] if device is None else [device]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
