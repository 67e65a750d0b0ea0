"""Training images that come from a stream, epoch by epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from unixkd.batch import Batch
from unixkd.data.images import Pixels, read_image
from unixkd.data.loader import NO_VIEW, Cut, load_pixels
from unixkd.data.streamed import Streamed
from unixkd.data.viewed import Viewed

_CPU = torch.device("cpu")
_Sample = tuple[bytes, str, int]  # an encoded image, what it is called, the code of its view


@dataclass(frozen=True)
class StreamSplit(Viewed):
    """A split whose images come one after the other; an index is a place in the epoch and means no image of another.

    The stream is read and shuffled in this process and decoded in loader processes, so that their number cannot
    change a batch. Of an epoch that is gone on with, what came before is read again and thrown away; of several
    processes each reads all of the stream and decodes its own images.

    Args:
        records: the stream
        size: side of the square images in pixels
        channels: 1 or 3
        padding: zero padding of the random crop in pixels, or None: random resized crops
        flip: random horizontal flip
        view_seed: seed of the augmentations
        workers: loader processes; 0 decodes in this process
        onto: where batches are made; they cross to it as uint8
    """

    records: Streamed
    size: int
    channels: int
    padding: int | None = None
    flip: bool = True
    view_seed: int = 0
    workers: int = 0
    onto: torch.device = _CPU
    views: None = None
    mixes: None = None

    @property
    def labels(self) -> None:
        """Labels come with the images only."""
        return

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.records.label is not None

    @property
    def lasting(self) -> bool:
        """Never: an index is a place in an epoch."""
        return False

    def __len__(self) -> int:
        return len(self.records)

    def to(self, device: torch.device | str) -> StreamSplit:
        """The same split whose batches are made on a device."""
        return replace(self, onto=torch.device(device))

    def epoch_order(self, seed: int, epoch: int) -> Int[Tensor, " n"]:
        """As the images come: the stream itself is shuffled, by a seed of the data's own."""
        return torch.arange(len(self))

    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches; see `Split`.

        Args:
            epoch: number of the epoch
            order: places of the images in the epoch `[M]`, ascending
            batch_size: images per batch

        Raises:
            UserError: the stream cannot be read on or ends too early, or an image is unreadable.
            ValueError: the order does not ascend.
        """
        order = order.cpu()
        if not len(order):
            return
        if bool((order.diff() <= 0).any()):
            raise ValueError("a stream gives its images in its own order only")
        views, labels = self.epoch_views(epoch, order).split(batch_size), deque[Int[Tensor, " n"]]()
        with closing(self._samples(epoch, order, batch_size, labels)) as samples:
            loading = load_pixels(self.read, samples, self.workers, self.onto)
            for positions, view, pixels in zip(order.split(batch_size), views, loading, strict=True):
                own = labels.popleft()
                yield Batch(pixels, own if self.labelled else None, positions, view).to(self.onto)

    def read(self, sample: _Sample) -> Pixels:
        """An encoded image in the view of a code `[size, size, C]`, uint8; runs in a worker."""
        content, where, code = sample
        return Cut(self.size, self.channels, self.padding, self.flip)(read_image(content, where), code)

    def image(self, i: int) -> NDArray[np.uint8]:
        """One of the stream's first images as in evaluation `[size, size, C]`, uint8."""
        head = self.records.head
        return self.read((head[i % len(head)], f"{self.records.origin}: image {i}", NO_VIEW))

    def eval_batches(self, batch_size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """None: a stream is for training."""
        raise NotImplementedError("a stream is for training; its evaluation set is another split")

    def _samples(
        self, epoch: int, order: Int[Tensor, " m"], batch_size: int, labels: deque[Int[Tensor, " n"]]
    ) -> Generator[list[_Sample]]:
        """What workers are handed, batch by batch; the labels are left in the queue."""
        images, place = self.records.epoch(epoch), -1
        codes = self._codes(order, self.epoch_views(epoch, order))
        for positions, batch_codes in zip(order.split(batch_size), codes.split(batch_size), strict=True):
            batch, own = [], []
            for position, code in zip(positions.tolist(), batch_codes.tolist(), strict=True):
                while place < position:
                    (content, label, where), place = next(images), place + 1
                batch.append((content, where, code))
                own.append(label)
            labels.append(torch.tensor(own))
            yield batch
