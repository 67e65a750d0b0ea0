"""Images that stay on disk: threads decode, cut and flip them, and make uint8 batches ahead of training."""

from __future__ import annotations

import contextlib
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

from unixkd.data.ahead import ahead
from unixkd.data.crops import CROP_AREA, padded_crop, random_resized_crop
from unixkd.data.images import Photo, Pixels, detail, fit
from unixkd.data.kept import Kept, Room
from unixkd.data.source import Encoded
from unixkd.data.split import Split
from unixkd.data.views import to_pixels
from unixkd.errors import UserError
from unixkd.method.batch import Batch

_CPU = torch.device("cpu")
_LOOKED_AT = 64  # headers
NO_VIEW = -1
"""The code of an image as it is evaluated."""
AnyLoaded = TypeVar("AnyLoaded", bound="LoadedSplit")


@dataclass(frozen=True)
class LoadedSplit(Split):
    """A split whose images are decoded as they are shown; how many threads read it cannot change a batch.

    Views are random resized crops, or with a padding the crops of images in memory, with the same codes.

    Args:
        records: the encoded images with their labels
        size: side of the square images in pixels
        channels: 1 or 3
        padding: zero padding of the random crop in pixels, or None: random resized crops
        flip: random horizontal flip
        area: least share of an image that a random resized crop shows
        view_seed: seed of the augmentations
        workers: threads that read ahead; 0 reads when a batch is asked for
        views: number of views of each image that are trained on, the first; None: all
        mixes: number of fixed mixes of each image that are trained on instead; None: its views
        onto: where batches are made; they cross to it as uint8
        known: of a store of answers, the CRC-32 of each image's encoded bytes when the teacher answered `[N]`, uint32,
            0 where it has not; it is filled, and an image that differs is refused
        scaled: large images are decoded at a smaller scale (`read_photo`)
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
    area: float = CROP_AREA
    onto: torch.device = _CPU
    known: NDArray[np.uint32] | None = None
    scaled: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def to(self: AnyLoaded, device: torch.device | str) -> AnyLoaded:
        """The same split whose batches are made on a device."""
        return replace(self, onto=torch.device(device))

    @property
    def least(self) -> int | None:
        """The pixels of its shorter side to which an image may be shrunk when it is decoded; None: it is not."""
        return detail(self.size) if self.scaled else None

    def cut(self, photo: Photo, code: int) -> Pixels:
        """The view of a code `[size, size, C]`, uint8.

        Without a padding the code is a 63-bit seed, from which the crop and the flip are drawn.
        """
        if code == NO_VIEW:
            return fit(photo.image, self.size)
        if self.padding is None:
            return random_resized_crop(photo, self.size, self.flip, code, self.area)
        return padded_crop(fit(photo.image, self.size), code, self.padding)

    @abstractmethod
    def read(self, sample: Any) -> Pixels:
        """The pixels `[size, size, C]`, uint8, of a sample; runs in a thread of its own."""

    def load(
        self, batches: Iterable[Sequence[Any]], read: Callable[[Any], Pixels | tuple[Pixels, int]]
    ) -> Iterator[tuple[Float[Tensor, "n c h w"], NDArray[np.int64] | None]]:
        """The pixels in [0, 1] of batches of samples as `read` takes them, on the device, in their order.

        Where `read` gives a number beside the pixels, the numbers come too. Batches are taken a few ahead, in this
        thread, and made in others while it takes a step; pixels cross to the device as uint8, a quarter of the bytes,
        from pinned memory where it is a GPU. Raises UserError from `read`.
        """
        pinned = self.onto.type == "cuda"

        def make(batch: Sequence[Any]) -> tuple[UInt8[Tensor, "n h w c"], NDArray[np.int64] | None]:
            pixels, numbers = _collate([read(sample) for sample in batch])
            return pixels.pin_memory() if pinned else pixels, numbers

        for pixels, numbers in ahead(make, batches, self.workers):
            yield to_pixels(pixels.to(self.onto, non_blocking=True)), numbers


@dataclass(frozen=True)
class DiskSplit(LoadedSplit):
    """A split whose images stay on disk and are read at random, and once only where they are kept."""

    records: Encoded
    kept: Kept | None = None

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

    def called(self, i: int) -> str:
        """What image i is called; see `Split`."""
        return self.records.called(i)

    def read(self, sample: tuple[int, int]) -> Pixels:
        """An image by its position in the view of a code `[size, size, C]`, uint8."""
        return self.read_checked(sample)[0]

    def read_checked(self, sample: tuple[int, int]) -> tuple[Pixels, int]:
        """As `read`, with the CRC-32 of the encoded image, or 0 where nobody asks for it."""
        position, code = sample
        if self.kept is None:
            photo, check = self._decoded(position)
        else:
            whole = code != NO_VIEW and self.padding is None  # else views are of the square in its middle
            photo, check = self.kept.get((position, whole), lambda: self._decoded(position, whole))
        return self.cut(photo, code), check

    def _decoded(self, position: int, whole: bool = True) -> tuple[Photo, int]:
        """An image, or only the square in its middle, and its CRC-32 where it is compared, now or later."""
        if self.known is None and self.kept is None:
            photo, check = self.records.photo(position, self.channels, self.least), 0
        else:
            photo, check = self.records.photo_checked(position, self.channels, self.least)
        if whole:
            return photo, check
        square = fit(photo.image, self.size)
        return replace(
            photo, image=Image.fromarray(square.squeeze(-1) if self.channels == 1 else square)
        ), check

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


def photo_notes(splits: Sequence[Split], room: Room) -> tuple[str, ...]:
    """What to tell of images on disk: how many are decoded at a smaller scale and how many kept, by some headers.

    The first split is trained on, the other is evaluated on.
    """
    disk, notes = [split for split in splits if isinstance(split, DiskSplit)], []
    looks = [
        look for i, split in enumerate(disk) for look in _looks(split, i > 0 or split.padding is not None)
    ]
    images, shrunk = sum(map(len, disk)), sum(many for many, smaller, _ in looks if smaller)
    if shrunk:
        notes.append(
            f"about {shrunk:,.0f} of {images:,} images are decoded at a smaller scale, their shorter side at least "
            f"{disk[0].least} pixels: data.decoding scaled"
        )
    if (size := sum(many * taken for many, _, taken in looks)) and room.share:
        there, whole = f"data.keep {room.share:g} of the memory available", room.whole()
        notes.append(
            f"all {images:,} images are decoded once and kept, {size / 1e6:,.0f} MB: within {there}"
            if size <= whole
            else f"about {whole / size * images:,.0f} of {images:,} images are decoded once and kept, the others in "
            f"every epoch: {there} is {whole / 1e6:,.0f} MB"
        )
    return tuple(notes)


def _looks(split: DiskSplit, square: bool) -> Iterator[tuple[float, bool, int]]:
    """Of evenly spread images how many each stands for, whether it is shrunk, and the bytes that are kept of it."""
    count = min(len(split), _LOOKED_AT)
    for i in np.linspace(0, len(split) - 1, count).round().astype(int):
        with contextlib.suppress(UserError), split.records.header(int(i)) as image:  # found where it is used
            side = min(image.size)
            least = split.least or side
            image.draft(None, (least, least))
            factor = max(min(image.size) // least, 1)
            pixels = split.size**2 if square else image.width * image.height // factor**2
            yield len(split) / count, side >= 2 * least, pixels * split.channels


def _collate(
    samples: Sequence[Pixels | tuple[Pixels, int]],
) -> tuple[UInt8[Tensor, "n h w c"], NDArray[np.int64] | None]:
    if not isinstance(samples[0], tuple):
        return torch.from_numpy(np.stack(samples)), None  # type: ignore[arg-type]
    pixels, numbers = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(pixels)), np.array(numbers)
