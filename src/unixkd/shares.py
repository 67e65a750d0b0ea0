"""Which rows of each batch a process trains on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unixkd.errors import UserError
from unixkd.parallel import PER_PROCESS, World


@dataclass(frozen=True)
class Shares:
    """An epoch's images as one of several processes sees it.

    Every process takes as many steps as the others. Of a full batch each has as many rows; of a short last one
    some have one more, and their losses count for as much more: the gradient is that of the whole batch.

    Args:
        order: images of this process, in the order of its steps `[m]`
        steps: how many there are
        full: how many of them are on full batches
        last: what a short last batch's loss is multiplied by before processes average their gradients
    """

    order: Int[Tensor, " m"]
    steps: int
    full: int
    last: float = 1.0


def share_out(order: Int[Tensor, " n"], batch_size: int, world: World) -> Shares:
    """This process's part of an epoch; a last batch of fewer than two images a process is left out.

    Args:
        order: all images that the epoch visits `[n]`
        batch_size: of all processes together

    >>> order = torch.arange(11)
    >>> [share_out(order, 4, World(rank, 2)).order.tolist() for rank in range(2)]
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    >>> share = share_out(torch.arange(9), 5, World(0, 1))
    >>> share.steps, share.full, share.last
    (2, 1, 1.0)
    """
    full, rest = divmod(len(order), batch_size)
    steps = num_steps(len(order), batch_size, world)
    if world.size == 1:
        return Shares(order, steps, full)
    own = batch_size // world.size
    rows = order[: full * batch_size].view(full, world.size, own)[:, world.rank].flatten()
    if steps == full:
        return Shares(rows, full, full)
    last = order[full * batch_size :].tensor_split(world.size)[world.rank]
    return Shares(torch.cat([rows, last]), steps, full, len(last) * world.size / rest)


def num_steps(images: int, batch_size: int, world: World) -> int:
    """Steps of an epoch, which is the same number for every process.

    >>> num_steps(9, 4, World()), num_steps(9, 4, World(0, 2))
    (3, 2)
    """
    full, rest = divmod(images, batch_size)
    return full + (rest >= (1 if world.size == 1 else PER_PROCESS * world.size))


def even_parts(rows: int, size: int) -> list[int]:
    """So many rows shared out as evenly as it goes; the first ones have one more.

    >>> even_parts(7, 3)
    [3, 2, 2]
    """
    return [rows // size + (rank < rows % size) for rank in range(size)]


def check_kept(keep: float, batch_size: int, world: World, *, across: bool = False) -> None:
    """Raise where a process would train on less than two images of each batch.

    Args:
        keep: k/N
        batch_size: of all processes together
        world: the processes
        across: rows are kept of those of all processes together

    Raises:
        UserError: with the numbers
    """
    own = own_batch_size(batch_size, world)
    if (
        world.size > 1
        and (round(keep * batch_size) // world.size if across else round(keep * own)) < PER_PROCESS
    ):
        raise UserError(
            f"keep {keep:g} of the {own} images that each of {world.size} processes has of a batch are fewer than "
            f"{PER_PROCESS}: raise --train.batch_size or keep more"
        )


def own_batch_size(batch_size: int, world: World) -> int:
    """Rows of a full batch that each process has.

    Raises:
        UserError: they cannot all have as many, or have too few
    """
    if world.size > 1 and (batch_size % world.size or batch_size < PER_PROCESS * world.size):
        raise UserError(
            f"batches of {batch_size} images cannot be shared out among {world.size} processes: give a "
            f"--train.batch_size that is a multiple of {world.size} and at least {PER_PROCESS * world.size}"
        )
    return batch_size // world.size
