"""Images that stay on disk: decoded, cut and flipped when a batch needs them, by loader processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unixkd.batch import Batch
from unixkd.data.images import Pixels, fit, to_array, to_channels
from unixkd.data.records import Encoded
from unixkd.data.viewed import Viewed
from unixkd.data.views import apply_views, to_pixels
from unixkd.errors import UserError

_NO_VIEW = -1
_Sample = tuple[int, int]  # position, code of the view


@dataclass(frozen=True)
class DiskSplit(Viewed):
    """A split that is read through a `DataLoader`; how many workers read it cannot change a batch.

    Without a padding, a training view is a `RandomResizedCrop` and a flip, drawn from a 63-bit seed that
    is also the view's code. With one, views are the same crops and flips of the evaluation image as in
    memory, with the same codes.

    Args:
        records: the encoded images with their labels
        size: side of the square images in pixels
        channels: 1 or 3
        padding: zero padding of the random crop in pixels, or None
        flip: random horizontal flip
        view_seed: seed of the augmentations
        workers: loader processes; 0 reads in this process
        views: train on the first so many views of each image only; None: on all
    """

    records: Encoded
    size: int
    channels: int
    padding: int | None = None
    flip: bool = True
    view_seed: int = 0
    workers: int = 0
    views: int | None = None

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

    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches in the given order; see `Split`.

        Raises:
            UserError: an image is unreadable; it is named.
        """
        if not len(order):
            return  # split() makes one part of nothing
        order = order.cpu()
        views = self.epoch_views(epoch, order)
        batches = self._batches(order, self._codes(order, views), batch_size)
        for batch, view in zip(batches, views.split(batch_size), strict=True):
            yield replace(batch, view=view)

    def eval_batches(self, batch_size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """All images in their own order; see `Split`.

        Raises:
            UserError: an image is unreadable; it is named.
        """
        parts = torch.arange(len(self)).split(batch_size)[first::every]
        if not parts:
            return
        positions = torch.cat(parts)
        yield from self._batches(positions, torch.full_like(positions, _NO_VIEW), batch_size)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i as in evaluation `[size, size, C]`, uint8."""
        return fit(to_channels(self.records.read(i), self.channels), self.size)

    def _batches(
        self, index: Int[Tensor, " m"], codes: Int[Tensor, " m"], batch_size: int
    ) -> Iterator[Batch]:
        samples = list(zip(index.tolist(), codes.tolist(), strict=True))
        loader: DataLoader[Pixels | UserError] = DataLoader(
            _Reader(self),
            batch_sampler=[samples[i : i + batch_size] for i in range(0, len(samples), batch_size)],
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # a loader draws from the global one otherwise
            worker_init_fn=_leave_interrupts_alone,
        )
        labels, reading = self.labels, iter(loader)
        for positions in index.split(batch_size):
            try:
                loaded = next(reading)
            except RuntimeError as error:
                raise UserError(
                    f"a loader process died ({' '.join(str(error).split())}): if memory ran out, fewer "
                    "--data.workers or a smaller --train.batch_size may help"
                ) from error
            if isinstance(loaded, UserError):
                del reading  # stops the workers now; held by the traceback they would outlive the error
                raise loaded
            yield Batch(to_pixels(loaded), None if labels is None else labels[positions], positions)


def _leave_interrupts_alone(worker: int) -> None:
    """Ctrl-C reaches loader processes too, but it is the main one that stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Reader(Dataset[Pixels | UserError]):
    """What runs in a worker; an error is returned, because a worker would bury it in a traceback."""

    def __init__(self, split: DiskSplit) -> None:
        self.split = split

    def __getitem__(self, sample: _Sample) -> Pixels | UserError:
        position, code = sample
        split = self.split
        try:
            image = to_channels(split.records.read(position), split.channels)
        except UserError as error:
            return error
        if code == _NO_VIEW:
            return fit(image, split.size)
        if split.padding is None:
            return _random_resized_crop(image, split.size, split.flip, seed=code)
        pixels = torch.from_numpy(fit(image, split.size))[None]
        return apply_views(pixels, torch.tensor([code]), split.padding, split.flip)[0].numpy()


def _random_resized_crop(image: Image.Image, size: int, flip: bool, seed: int) -> Pixels:
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(0.5 if flip else 0.0)]
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would reseed the accelerators too
        torch.default_generator.manual_seed(seed)
        return to_array(v2.Compose(steps)(image))


def _collate(samples: Sequence[Pixels | UserError]) -> UInt8[Tensor, "n h w c"] | UserError:
    arrays = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        arrays.append(sample)
    return torch.from_numpy(np.stack(arrays))
