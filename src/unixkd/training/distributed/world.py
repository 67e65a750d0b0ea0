"""Several processes that train one student, each on some rows of every batch: their ranks and their messages.

`torchrun`, or whatever sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`, starts them; else there is one.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unixkd.data.sampling import Place
from unixkd.errors import UserError
from unixkd.training.distributed.launch import LeaderError, processes

T = TypeVar("T")


@dataclass(frozen=True)
class World(Place):
    """The processes of a run. The first one leads: it alone writes files and shows what happens."""

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def once(self, make: Callable[[], T]) -> T:
        """Call `make` in the leader; every process gets its value, or its UserError.

        Raises:
            UserError: the leader's
        """
        if self.size == 1:
            return make()
        value, error = None, None
        if self.leads:
            try:
                value = make()
            except UserError as failed:
                error = failed
        sent: list[Any] = [value, None if error is None else str(error)]
        dist.broadcast_object_list(sent, src=0, device=torch.device("cpu"))
        if error is not None:
            raise error
        if sent[1] is not None:
            raise LeaderError(sent[1])
        return cast("T", sent[0])

    def leader_first(self, make: Callable[[], T]) -> T:
        """Call `make` in the leader, then in the others, which find the files that the leader wrote."""
        made: list[T] = []
        self.once(lambda: made.append(make()))
        return made[0] if self.leads else make()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def reduce(self, tensors: Sequence[Tensor], how: Literal["sum", "min", "max"]) -> None:
        """Combine each tensor over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor, getattr(dist.ReduceOp, how.upper()))

    def take_from_leader(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with the leader's, in one message for each dtype."""
        if self.size == 1:
            return
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in alike])
            dist.broadcast(flat, src=0)
            for tensor, new in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(new.view_as(tensor))

    def wrapped(self, student: nn.Module, device: torch.device) -> nn.Module:
        """The student with its gradients averaged over all processes; every process has to call it.

        DDP leaves the buffers alone: `take_from_leader` after each step keeps them equal between forwards too.
        """
        if self.size == 1:
            return student
        from torch.nn.parallel import DistributedDataParallel

        # a TorchVersion, which compares with a text number by number
        name = "broadcast_buffers" if torch.__version__ < "2.14" else "forward_sync_buffers"
        options: dict[str, Any] = {name: False, "device_ids": None if device.type == "cpu" else [device]}
        return DistributedDataParallel(student, gradient_as_bucket_view=True, **options)


ALONE = World()

_PEER_LOST = ("gloo", "NCCL")
"""Backends that torch.distributed names in a RuntimeError when another process is gone."""


class Agreement:
    """Asynchronous OR over processes: once one says yes, all see it after the same step, the next one.

    >>> Agreement(World()).ask(True)
    True
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.any_yes = torch.zeros((), dtype=torch.int32)
        self.pending: dist.Work | None = None

    def ask(self, yes: bool) -> bool:
        """Say yes or no; returns whether any process had said yes by the last call."""
        if self.world.size == 1:
            return yes
        known = False
        if self.pending is not None:
            self.pending.wait()
            known = bool(self.any_yes)
        self.any_yes.fill_(int(yes or known))
        self.pending = dist.all_reduce(self.any_yes, dist.ReduceOp.MAX, async_op=True)
        return known


def leave() -> None:
    """Leave the process group, unless the caller has ended it."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[World]:
    """Within, this process's `World`: its rank among the processes that were started together.

    A process group that the caller has made is used; one that is made here lasts as long as the process.

    Raises:
        UserError: an environment variable of torchrun is missing, or another process is gone
    """
    size = processes()
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start with torchrun")
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        # only at the end: a second group of the same processes may meet the first one's store, and wait for ever
        atexit.register(leave)
    world = World(dist.get_rank(), dist.get_world_size())
    try:
        yield world
    except RuntimeError as error:
        if not any(words in str(error) for words in _PEER_LOST):
            raise
        raise UserError(
            "another process of this run has ended before its time, and says why; what is saved is whole, the same "
            "command with --resume goes on"
        ) from error
