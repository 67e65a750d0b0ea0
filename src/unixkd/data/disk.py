"""Images that stay on disk: decoded, cut and flipped when a batch needs them, by loader processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from unixkd.batch import Batch
from unixkd.data.images import Pixels
from unixkd.data.loader import NO_VIEW, Cut, in_batches, load_pixels
from unixkd.data.records import Encoded
from unixkd.data.viewed import Viewed

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class DiskSplit(Viewed):
    """A split that is read through a `DataLoader`; how many workers read it cannot change a batch.

    Views are those of `Cut`: random resized crops, or with a padding the crops of images in memory.

    Args:
        records: the encoded images with their labels
        size: side of the square images in pixels
        channels: 1 or 3
        padding: zero padding of the random crop in pixels, or None
        flip: random horizontal flip
        view_seed: seed of the augmentations
        workers: loader processes; 0 reads in this process
        views: train on the first so many views of each image only; None: on all
        mixes: train on the first so many fixed mixes of each image instead; None: on its views
        onto: where batches are made; they cross to it as uint8
    """

    records: Encoded
    size: int
    channels: int
    padding: int | None = None
    flip: bool = True
    view_seed: int = 0
    workers: int = 0
    views: int | None = None
    mixes: int | None = None
    onto: torch.device = _CPU

    @property
    def labels(self) -> Int[Tensor, " n"] | None:
        """Class of each image `[N]`, int64, or None."""
        return None if self.records.labels is None else torch.from_numpy(self.records.labels)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.records.labels is not None

    def __len__(self) -> int:
        return len(self.records)

    def to(self, device: torch.device | str) -> DiskSplit:
        """The same split whose batches are made on a device."""
        return replace(self, onto=torch.device(device))

    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches in the given order; see `Split`.

        Raises:
            UserError: an image is unreadable; it is named.
        """
        if not len(order):
            return  # split() makes one part of nothing
        order = order.cpu()
        views = self.epoch_views(epoch, order)
        if self.mixes is not None:
            yield from self._mixed_batches(order, views, batch_size)
            return
        batches = self._batches(order, self._codes(order, views), batch_size)
        for batch, view in zip(batches, views.split(batch_size), strict=True):
            yield replace(batch, view=view.to(self.onto))

    def eval_batches(self, batch_size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """All images in their own order; see `Split`.

        Raises:
            UserError: an image is unreadable; it is named.
        """
        parts = torch.arange(len(self)).split(batch_size)[first::every]
        if not parts:
            return
        positions = torch.cat(parts)
        yield from self._batches(positions, torch.full_like(positions, NO_VIEW), batch_size)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i as in evaluation `[size, size, C]`, uint8."""
        return self.read((i, NO_VIEW))

    def read(self, sample: tuple[int, int]) -> Pixels:
        """An image by its position in the view of a code `[size, size, C]`, uint8; runs in a worker."""
        position, code = sample
        cut = Cut(self.size, self.channels, self.padding, self.flip)
        return cut(self.records.read(position), code)

    def _mixed_batches(
        self, index: Int[Tensor, " m"], number: Int[Tensor, " m"], batch_size: int
    ) -> Iterator[Batch]:
        """Mixes of two images each: both are decoded, one after the other, and mixed where the batch is made."""
        mix = self._mixed(index, number)
        both = torch.stack([index, mix.partner], dim=1).flatten()
        codes = torch.stack([mix.own, mix.other], dim=1).flatten()
        loaded = self._batches(both, codes, 2 * batch_size)
        for batch, view, weight in zip(
            loaded, number.split(batch_size), mix.weight.split(batch_size), strict=True
        ):
            own, other, share = batch.pixels[0::2], batch.pixels[1::2], weight.to(self.onto)
            labels, others = (
                (None, None) if batch.labels is None else (batch.labels[0::2], batch.labels[1::2])
            )
            assert batch.index is not None
            yield Batch(
                own.lerp(other, share.view(-1, 1, 1, 1)),
                labels,
                batch.index[0::2],
                view.to(self.onto),
                mixed_labels=others,
                mix_weight=share,
            )

    def _batches(
        self, index: Int[Tensor, " m"], codes: Int[Tensor, " m"], batch_size: int
    ) -> Iterator[Batch]:
        batches = in_batches(index, codes, batch_size)
        labels, loading = self.labels, load_pixels(self.read, batches, self.workers, self.onto)
        for positions, pixels in zip(index.split(batch_size), loading, strict=True):
            yield Batch(pixels, None if labels is None else labels[positions], positions).to(self.onto)
