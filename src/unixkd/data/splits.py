"""Seeded choices of images: the order of an epoch, a held-out part, a class-balanced subset."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from unixkd.errors import UserError
from unixkd.hashing import draw_words

_PURPOSE = 2  # the views draw from the same function for other purposes
Indices = NDArray[np.int64]


def epoch_order(num_images: int, seed: int, epoch: int) -> Int[Tensor, " n"]:
    """The order in which an epoch visits its images: a permutation that depends on the arguments only.

    >>> sorted(epoch_order(4, seed=0, epoch=1).tolist())
    [0, 1, 2, 3]
    """
    return draw_words((_PURPOSE, seed, epoch), torch.arange(num_images)).argsort(stable=True)


def hold_out(labels: Indices | None, num_images: int, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split images into a training and a held-out part, by class.

    Of a class of n >= 2 images round(share * n) are held out, but at least 1 and at most n - 1;
    single images stay in training.

    Args:
        labels: class of each image `[N]`, or None (a plain random split)
        num_images: N
        share: share to hold out, in (0, 1)
        seed: seed of the split

    Returns:
        Ascending positions of the training and of the held-out images.

    Raises:
        UserError: the share is out of range, or nothing can be held out.

    >>> train, held = hold_out(np.repeat([0, 1], 10), 20, share=0.2, seed=0)
    >>> len(train), len(held), int((held < 10).sum())
    (16, 4, 2)
    """
    if not 0 < share < 1:
        raise UserError(f"data.holdout must be at least 0 and below 1, not {share}")
    rng = np.random.default_rng([seed, 1])
    groups = np.zeros(num_images, dtype=np.int64) if labels is None else labels
    held = np.zeros(num_images, dtype=bool)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        if len(members) >= 2:
            held[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    if not held.any():
        raise UserError(
            f"data.holdout {share}: no class has the two images it needs ({num_images} images in all)"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def subset(labels: Indices | None, num_images: int, limit: int, seed: int) -> Indices:
    """Choose `limit` images that keep the classes' proportions; smaller subsets lie inside larger ones.

    Every class is shuffled, and image r of a class of n gets the key r / n; the lowest keys are taken.
    So each class comes once before any comes twice as often as its share.

    Args:
        labels: class of each image `[N]`, or None (a plain random subset)
        num_images: N
        limit: how many images to choose, 1..N
        seed: seed of the choice

    Returns:
        Ascending positions of the chosen images.

    Raises:
        UserError: the limit is out of range.

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
