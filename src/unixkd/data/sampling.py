"""Seeded choices of images: an epoch's order, a held-out part, a balanced subset; each process's rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.draws import draw_words

_PURPOSE = 2  # the views draw from the same function for other purposes

Indices = NDArray[np.int64]


def epoch_order(num_images: int, seed: int, epoch: int) -> Int[Tensor, " n"]:
    """The order in which an epoch visits its images: a permutation that depends on the arguments only.

    >>> sorted(epoch_order(4, seed=0, epoch=1).tolist())
    [0, 1, 2, 3]
    """
    return draw_words((_PURPOSE, seed, epoch), torch.arange(num_images)).argsort(stable=True)


def hold_out(labels: Indices | None, num_images: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """Ascending positions of the training and of the held-out images, split by class; without labels at random.

    Of a class of n >= 2 images round(share * n) are held out, share in (0, 1), but at least 1 and at most n - 1;
    single images and those without a label (-1) stay in training. Raises UserError where no class has two images.

    >>> train, held_out = hold_out(np.repeat([0, 1], 10), 20, share=0.2, seed=0)
    >>> len(train), len(held_out), int((held_out < 10).sum())
    (16, 4, 2)
    """
    rng = np.random.default_rng([seed, 1])
    groups = np.zeros(num_images, dtype=np.int64) if labels is None else labels
    held_out = np.zeros(num_images, dtype=bool)
    for group in np.unique(groups[groups >= 0]):
        members = rng.permutation(np.flatnonzero(groups == group))
        if len(members) >= 2:
            held_out[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    if not held_out.any():
        raise UserError(
            f"data.holdout {share}: no class has the two images it needs ({num_images} images in all)"
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def subset(labels: Indices | None, num_images: int, limit: int, seed: int) -> Indices:
    """Ascending positions of `limit` images that keep the classes' proportions; smaller subsets lie inside larger ones.

    Every class is shuffled, and image r of a class of n gets the key r / n; the lowest keys are taken.
    So each class comes once before any comes twice as often as its share; without labels the subset is plain random.
    Raises UserError where the limit is not in 1..`num_images`.

    >>> np.bincount(np.repeat([0, 1], [30, 10])[subset(np.repeat([0, 1], [30, 10]), 40, 8, seed=0)])
    array([6, 2])
    """
    if not 1 <= limit <= num_images:
        raise UserError(f"data.limit is {limit}, but there are {num_images} training images")
    rng = np.random.default_rng([seed, 2])
    shuffled = rng.permutation(num_images)
    groups = np.zeros(num_images, dtype=np.int64) if labels is None else labels[shuffled]
    key = np.empty(num_images)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        key[members] = np.arange(len(members)) / len(members)
    return np.sort(shuffled[np.argsort(key, kind="stable")[:limit]])


PER_PROCESS = 2
"""Images of the smallest batch of a process: BatchNorm may not be able to train on one."""


@dataclass(frozen=True)
class Place:
    """One of `size` processes that share the work, and its number."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class EpochRows:
    """The images of an epoch that one of several processes trains on.

    Every process takes as many steps as the others. Of a full batch each has as many rows; of a short last one
    some have one more, and their losses count for as much more: the gradient is that of the whole batch.
    """

    order: Int[Tensor, " m"]  # images of this process, in the order of its steps
    steps: int
    full: int  # steps on full batches
    last: float = 1.0  # factor of a short last batch's loss, before processes average their gradients


def split_among_processes(order: Int[Tensor, " n"], batch_size: int, world: Place) -> EpochRows:
    """This process's images of an epoch; a last batch of fewer than two images a process is left out.

    `batch_size` is that of all processes together.

    >>> order = torch.arange(11)
    >>> [split_among_processes(order, 4, Place(rank, 2)).order.tolist() for rank in range(2)]
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    >>> epoch = split_among_processes(torch.arange(9), 5, Place(0, 1))
    >>> epoch.steps, epoch.full, epoch.last
    (2, 1, 1.0)
    """
    full, rest = divmod(len(order), batch_size)
    steps = num_steps(len(order), batch_size, world)
    if world.size == 1:
        return EpochRows(order, steps, full)
    batches = order[: full * batch_size].view(full, world.size, batch_size // world.size)
    rows = batches[:, world.rank].flatten()
    if steps == full:
        return EpochRows(rows, full, full)
    last = order[full * batch_size :].tensor_split(world.size)[world.rank]
    return EpochRows(torch.cat([rows, last]), steps, full, len(last) * world.size / rest)


def num_steps(images: int, batch_size: int, world: Place) -> int:
    """Steps of an epoch, which is the same number for every process.

    >>> num_steps(9, 4, Place()), num_steps(9, 4, Place(0, 2))
    (3, 2)
    """
    full, rest = divmod(images, batch_size)
    return full + (rest >= (1 if world.size == 1 else PER_PROCESS * world.size))


def check_kept(keep: float, batch_size: int, world: Place) -> None:
    """Raise where a process would train on less than two images of each batch (of all processes together)."""
    rows = own_batch_size(batch_size, world)
    if world.size > 1 and round(keep * rows) < PER_PROCESS:
        raise UserError(
            f"keep {keep:g} of the {rows} images that each of {world.size} processes has of a batch are fewer than "
            f"{PER_PROCESS}: raise --train.batch_size or keep more"
        )


def own_batch_size(batch_size: int, world: Place) -> int:
    """Rows of a full batch that each process has. Raises UserError for unequal numbers of rows, or too few."""
    if world.size > 1 and (batch_size % world.size or batch_size < PER_PROCESS * world.size):
        raise UserError(
            f"batches of {batch_size} images cannot be shared out among {world.size} processes: give a "
            f"--train.batch_size that is a multiple of {world.size} and at least {PER_PROCESS * world.size}"
        )
    return batch_size // world.size
