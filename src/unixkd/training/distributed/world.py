"""Several processes that train one student on parts of each batch: who each is, and what they tell each other.

torch.distributed does the work. `torchrun`, or whatever sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and
`MASTER_PORT`, starts the processes; without these there is one, and nothing here costs it anything.
"""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unixkd.data.sampling import Place
from unixkd.errors import UserError
from unixkd.training.distributed.launch import LeaderError, processes

T = TypeVar("T")


@dataclass(frozen=True)
class World(Place):
    """The processes of a run. The first one leads: it alone writes files and shows what happens.

    Args:
        rank: this process's number
        size: how many there are
        local: its number among those of this machine
    """

    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def once(self, make: Callable[[], T]) -> T:
        """What the leader makes, or the error it runs into, for every process.

        Raises:
            UserError: the leader's
        """
        if self.size == 1:
            return make()
        told: list[object] = [None, None]
        if self.leads:
            try:
                value = make()
                told[0] = value
            except UserError as error:
                self._tell([None, str(error)])
                raise
        self._tell(told)
        if not self.leads:
            if told[1] is not None:
                raise LeaderError(str(told[1]))
            value = told[0]  # type: ignore[assignment]
        return value

    def leader_first(self, make: Callable[[], T]) -> T:
        """What each process makes, the leader before the others, which find what it has fetched or written."""
        if self.size == 1:
            return make()
        made: list[T] = []
        self.once(lambda: made.append(make()))
        return made[0] if self.leads else make()

    def gather(self, value: T) -> list[T]:
        """What every process has, by rank."""
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
        """Overwrite tensors with the leader's; as one message for each type of number."""
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

        options: dict[str, Any] = {"device_ids": None if device.type == "cpu" else [device]}
        known = inspect.signature(DistributedDataParallel).parameters
        name = (
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        )  # torch < 2.14
        options[name] = False
        return DistributedDataParallel(student, gradient_as_bucket_view=True, **options)

    def _tell(self, values: list[object]) -> None:
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))


ALONE = World()

_PEER_LOST = ("gloo", "NCCL")
"""What is found in the RuntimeErrors of torch.distributed's ways to send."""


class Agreement:
    """A yes of any process, heard by all of them after the same step: the one after it was said.

    >>> Agreement(World()).ask(True)
    True
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.said = torch.zeros((), dtype=torch.int32)
        self.pending: dist.Work | None = None

    def ask(self, yes: bool) -> bool:
        """Say yes or no; whether anyone had said yes when it was last called."""
        if self.world.size == 1:
            return yes
        heard = False
        if self.pending is not None:
            self.pending.wait()
            heard = bool(self.said)
        self.said.fill_(int(yes or heard))
        self.pending = dist.all_reduce(self.said, dist.ReduceOp.MAX, async_op=True)
        return heard


def leave() -> None:
    """End this process's part in the group, unless its caller has."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[World]:
    """Inside, this process's place among those that were started with it.

    A process group that the caller has made is used; one that is made here lasts as long as the process.

    Raises:
        UserError: the variables that tell are not all there, or another process is gone
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
    world = World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    try:
        yield world
    except RuntimeError as error:
        if not any(words in str(error) for words in _PEER_LOST):
            raise
        raise UserError(
            "another process of this run has ended before its time, and says why; what is saved is whole, the same "
            "command with --resume goes on"
        ) from error
