"""Images that stay on disk: loader processes decode, cut and flip them, and make uint8 batches ahead of training."""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unixkd.data.images import Pixels, fit, to_array, to_channels
from unixkd.data.source import Encoded
from unixkd.data.split import Split
from unixkd.data.views import apply_views, to_pixels
from unixkd.errors import UserError
from unixkd.method.batch import Batch

_CPU = torch.device("cpu")
NO_VIEW = -1
"""The code of an image as it is evaluated."""
AnyLoaded = TypeVar("AnyLoaded", bound="LoadedSplit")


@dataclass(frozen=True)
class LoadedSplit(Split):
    """A split that is read through a `DataLoader`; how many workers read it cannot change a batch.

    Views are random resized crops, or with a padding the crops of images in memory, with the same codes.

    Args:
        records: the encoded images with their labels
        size: side of the square images in pixels
        channels: 1 or 3
        padding: zero padding of the random crop in pixels, or None: random resized crops
        flip: random horizontal flip
        view_seed: seed of the augmentations
        workers: loader processes; 0 reads in this process
        views: number of views of each image that are trained on, the first; None: all
        mixes: number of fixed mixes of each image that are trained on instead; None: its views
        onto: where batches are made; they cross to it as uint8
        known: of a store of answers, the CRC-32 of each image's encoded bytes when the teacher answered `[N]`, uint32,
            0 where it has not; it is filled, and an image that differs is refused
    """

    records: Any
    size: int
    channels: int
    padding: int | None = None
    flip: bool = True
    view_seed: int = 0
    workers: int = 0
    views: int | None = None
    mixes: int | None = None
    onto: torch.device = _CPU
    known: NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def to(self: AnyLoaded, device: torch.device | str) -> AnyLoaded:
        """The same split whose batches are made on a device."""
        return replace(self, onto=torch.device(device))

    def cut(self, image: Image.Image, code: int) -> Pixels:
        """The view of a code `[size, size, C]`, uint8; runs in a worker.

        Without a padding the code is a 63-bit seed, from which the crop and the flip are drawn.
        """
        image = to_channels(image, self.channels)
        if code == NO_VIEW:
            return fit(image, self.size)
        if self.padding is None:
            return _random_resized_crop(image, self.size, self.flip, seed=code)
        pixels = torch.from_numpy(fit(image, self.size))[None]
        return apply_views(pixels, torch.tensor([code]), self.padding, self.flip)[0].numpy()

    @abstractmethod
    def read(self, sample: Any) -> Pixels:
        """The pixels `[size, size, C]`, uint8, of a sample; runs in a worker."""

    def load(
        self, batches: Iterable[Sequence[Any]], read: Callable[[Any], Pixels | tuple[Pixels, int]]
    ) -> Iterator[tuple[Float[Tensor, "n c h w"], NDArray[np.int64] | None]]:
        """The pixels in [0, 1] of batches of samples as `read` takes them, on the device, in their order.

        Where `read` gives a number beside the pixels, the numbers come too. Batches are taken a few ahead, in this
        process; pixels cross to the device as uint8, a quarter of the bytes, from pinned memory where it is a GPU.
        Raises UserError from `read`, or where a worker died.
        """
        loader: DataLoader[Any] = DataLoader(
            _Reader(read),
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # a loader draws from the global one otherwise
            worker_init_fn=_leave_interrupts_alone,
            pin_memory=self.onto.type == "cuda",
        )
        reading = iter(loader)
        while True:
            try:
                loaded = next(reading)
            except StopIteration:
                return
            except RuntimeError as error:
                raise UserError(
                    f"a loader process died ({' '.join(str(error).split())}): if memory ran out, fewer "
                    "--data.workers or a smaller --train.batch_size may help"
                ) from error
            if isinstance(loaded, UserError):
                del reading  # stops the workers now; held by the traceback they would outlive the error
                raise loaded
            pixels, numbers = loaded
            yield to_pixels(pixels.to(self.onto, non_blocking=True)), numbers


@dataclass(frozen=True)
class DiskSplit(LoadedSplit):
    """A split whose images stay on disk and are read at random."""

    records: Encoded

    @cached_property
    def labels(self) -> Int[Tensor, " n"] | None:  # type: ignore[override]
        """Class of each image `[N]`, int64, or None."""
        return None if self.records.labels is None else torch.from_numpy(self.records.labels)

    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches in the given order; see `Split`. Raises UserError that names an unreadable image."""
        if not len(order):
            return  # split() would give one chunk
        order = order.cpu()
        views = self.epoch_views(epoch, order)
        if self.mixes is not None:
            yield from self._mixed_batches(order, views, batch_size)
            return
        batches = self._batches(order, self._codes(order, views), batch_size)
        for batch, view in zip(batches, views.split(batch_size), strict=True):
            yield replace(batch, view=view.to(self.onto))

    def eval_batches(self, batch_size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """All images in their own order; see `Split`. Raises UserError that names an unreadable image."""
        batches = torch.arange(len(self)).split(batch_size)[first::every]
        if not batches:
            return
        positions = torch.cat(batches)
        yield from self._batches(positions, torch.full_like(positions, NO_VIEW), batch_size)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i as in evaluation `[size, size, C]`, uint8."""
        return self.read((i, NO_VIEW))

    def read(self, sample: tuple[int, int]) -> Pixels:
        """An image by its position in the view of a code `[size, size, C]`, uint8; runs in a worker."""
        position, code = sample
        return self.cut(self.records.read(position), code)

    def read_checked(self, sample: tuple[int, int]) -> tuple[Pixels, int]:
        """As `read`, with the CRC-32 of the encoded image; runs in a worker."""
        position, code = sample
        image, check = self.records.read_checked(position)
        return self.cut(image, code), check

    def _mixed_batches(
        self, index: Int[Tensor, " m"], number: Int[Tensor, " m"], batch_size: int
    ) -> Iterator[Batch]:
        """Mixes of two images each: both are decoded, one after the other, and mixed where the batch is made."""
        mix = self._mixed(index, number)
        both = torch.stack([index, mix.partner], dim=1).flatten()
        codes = torch.stack([mix.view, mix.partner_view], dim=1).flatten()
        loaded = self._batches(both, codes, 2 * batch_size)
        views, weights = number.to(self.onto), mix.weight.to(self.onto)
        steps = zip(loaded, views.split(batch_size), weights.split(batch_size), strict=True)
        for pairs, view, weight in steps:
            pixels = pairs.pixels[0::2].lerp(pairs.pixels[1::2], weight.view(-1, 1, 1, 1))
            assert pairs.index is not None
            batch = Batch(pixels, None, pairs.index[0::2], view, mix_weight=weight)
            if pairs.labels is not None:
                batch = replace(batch, labels=pairs.labels[0::2], mixed_labels=pairs.labels[1::2])
            yield batch

    def _batches(
        self, index: Int[Tensor, " m"], codes: Int[Tensor, " m"], batch_size: int
    ) -> Iterator[Batch]:
        samples = list(zip(index.tolist(), codes.tolist(), strict=True))
        batches = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
        loaded = self.load(batches, self.read if self.known is None else self.read_checked)
        for positions, (pixels, checks) in zip(index.split(batch_size), loaded, strict=True):
            if checks is not None:
                self._compare(positions.numpy(), checks)
            labels = None if self.labels is None else self.labels[positions]
            yield Batch(pixels, labels, positions).to(self.onto)

    def _compare(self, positions: NDArray[np.int64], checks: NDArray[np.int64]) -> None:
        """Raise where an image is not the one that the teacher has answered; remember those that are new."""
        assert self.known is not None
        there = self.known[positions]
        if len(changed := positions[(there != 0) & (there != checks)]):
            more = f" and {len(changed) - 1} more of the batch" if len(changed) > 1 else ""
            raise UserError(
                f"{self.records.name(int(changed[0]))}{more}: changed since the teacher's answers to it were stored; "
                "give another --answers.path"
            )
        self.known[positions] = checks


def _leave_interrupts_alone(worker: int) -> None:
    """Ctrl-C reaches loader processes too, but it is the main one that stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Reader(Dataset[Any]):
    """What runs in a worker; an error is returned, because a worker would bury it in a traceback."""

    def __init__(self, read: Callable[[Any], Pixels | tuple[Pixels, int]]) -> None:
        self.read = read

    def __getitem__(self, sample: Any) -> Pixels | tuple[Pixels, int] | UserError:
        try:
            return self.read(sample)
        except UserError as error:
            return error


def _random_resized_crop(image: Image.Image, size: int, flip: bool, seed: int) -> Pixels:
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(0.5 if flip else 0.0)]
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would reseed the accelerators too
        torch.default_generator.manual_seed(seed)
        return to_array(v2.Compose(steps)(image))


def _collate(
    samples: Sequence[Any],
) -> tuple[UInt8[Tensor, "n h w c"], NDArray[np.int64] | None] | UserError:
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    if errors:
        return errors[0]
    if not isinstance(samples[0], tuple):
        return torch.from_numpy(np.stack(samples)), None
    pixels, numbers = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(pixels)), np.array(numbers)
