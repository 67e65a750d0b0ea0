"""Stand-ins for a CUDA graph, so that a CPU can test what is captured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unixkd.training.cuda_graph import WARM_UPS


class NoWaiting(TorchDispatchMode):
    """The stand-in for `refuse_waiting`: inside, an operation whose result the host reads is an error.

    What only CUDA knows is not seen: copies from the device to the host.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shaped = torch.Tag.dynamic_output_shape in func.tags
        if (
            func.overloadpacket is torch.ops.aten.index
        ):  # of a shape that values decide where a mask is the index
            shaped = any(index is not None and index.dtype == torch.bool for index in args[1])
        if shaped or torch.Tag.data_dependent_output in func.tags:
            raise RuntimeError(f"called a synchronizing operation: {func}")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """A CUDA graph's stand-in: no line of Python runs again, so what a step decides there stays as it was.

    Args:
        watch: around the last step before the recording, where a graph refuses to wait
    """

    recording = False
    """Whether one is at work: the stand-in for `torch.cuda.is_current_stream_capturing`."""

    def __init__(self, watch: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        super().__init__()
        self.watch = watch
        self.recordings = self.replays = 0
        self.operations: list[tuple[Any, ...]] = []

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        self.operations = []
        for _ in range(WARM_UPS - 1):
            body()
        with self.watch():
            body()
        Tape.recording = True
        try:
            with self:
                body()
        finally:
            Tape.recording = False
        return partial(self.replay, self.operations)  # each recording its own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self, operations: list[tuple[Any, ...]]) -> None:
        self.replays += 1
        for func, args, kwargs, out in operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if (
                    isinstance(old, Tensor) and old.data_ptr() != new.data_ptr()
                ):  # neither a view nor in place
                    old.copy_(new)


def with_rate_as_tensor(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same with its learning rate as a tensor, as `build_optimizer` makes it for a GPU."""
    for group in optimizer.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], device=group["params"][0].device)
    return optimizer
