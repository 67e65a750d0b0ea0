"""Images in memory, and the interface through which training and evaluation see any split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from unixkd.batch import Batch
from unixkd.data.views import apply_views, num_views, to_pixels, view_codes


class Split(Protocol):
    """Labelled or unlabelled images; what a batch holds depends on the arguments alone."""

    @property
    def labels(self) -> Int[Tensor, " n"] | None:
        """Class of each image `[N]`, int64, or None."""

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""

    @property
    def num_views(self) -> int | None:
        """How many views an image has; None: unbounded."""

    def __len__(self) -> int: ...

    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches in the given order, with `index` and `view`; the last may be short.

        Args:
            epoch: number of the epoch, which with the view seed and the index decides the views
            order: positions of the images to visit `[M]`, int64 (a whole epoch or a selection)
            batch_size: images per batch
        """

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """All images in their own order, not augmented, with `index`; the last batch may be short."""

    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i as in evaluation `[H, W, C]`, uint8."""


@dataclass(frozen=True)
class MemorySplit:
    """A split whose pixels are all in memory, on any device.

    Args:
        images: pixels `[N, H, W, C]`, uint8
        labels: class of each image `[N]`, int64, or None
        padding: zero padding of the random crop in pixels
        flip: random horizontal flip
        view_seed: seed of the augmentations

    >>> split = MemorySplit(torch.zeros(5, 8, 8, 1, dtype=torch.uint8), torch.arange(5), padding=1)
    >>> [len(batch) for batch in split.train_batches(0, torch.arange(5), batch_size=2)]
    [2, 2, 1]
    """

    images: UInt8[Tensor, "n h w c"]
    labels: Int[Tensor, " n"] | None
    padding: int = 0
    flip: bool = False
    view_seed: int = 0

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.labels is not None

    @property
    def num_views(self) -> int:
        """How many views an image has."""
        return num_views(self.padding, self.flip)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> MemorySplit:
        """The same split with its pixels and labels on a device; batches are then made there."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches in the given order; see `Split`."""
        order = order.to(self.images.device)
        codes = view_codes(self.view_seed, epoch, order, self.num_views)
        for index, view in zip(order.split(batch_size), codes.split(batch_size), strict=True):
            cut = apply_views(self.images.index_select(0, index), view, self.padding, self.flip)
            labels = None if self.labels is None else self.labels[index]
            yield Batch(to_pixels(cut), labels, index, view)

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """All images in their own order; see `Split`."""
        positions = torch.arange(len(self), device=self.images.device)
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            labels = None if self.labels is None else self.labels[part]
            yield Batch(to_pixels(self.images[part]), labels, positions[part])

    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i `[H, W, C]`, uint8."""
        return self.images[i].cpu().numpy()
