"""What training and evaluation see of any split, the views it shows, and the split whose images are in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from unixkd.data.crops import CROP_AREA
from unixkd.data.mixes import FixedMixes, fixed_mixes
from unixkd.data.sampling import epoch_order
from unixkd.data.views import (
    apply_views,
    balanced_views,
    first_codes,
    num_views,
    numbered_seeds,
    to_pixels,
    view_codes,
)
from unixkd.method.batch import Batch


class Split(ABC):
    """Labelled or unlabelled images; what a batch holds depends on the arguments alone.

    An image has `num_views` numbered views, and (index, view) always names the same picture. Where all views of a
    bounded set are in use, the number is the view's code (see `unixkd.data.views`); where only the first `views` are,
    it counts along a fixed random sequence of the image's own, and the code stays inside. Without a padding, views are
    random resized crops: as many as there are seeds, and an unlimited one has its seed as its number.

    With `mixes` a number stands for a mix of two images instead, each in a view of its own (see `FixedMixes`).
    """

    labels: Int[Tensor, " n"] | None  # class of each image, where it is known before the image is read
    padding: int | None
    flip: bool
    view_seed: int
    views: int | None
    mixes: int | None
    area: float = CROP_AREA  # least share of an image that a random resized crop shows
    lasting: ClassVar[bool] = True
    """Whether an index means the same image in every epoch."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches in the given order, with `index` and `view`; the last may be short.

        Args:
            epoch: number of the epoch, which with the view seed and the index decides the views
            order: positions of the images to visit `[M]`, int64 (a whole epoch, a selection, or none)
            batch_size: images per batch
        """

    @abstractmethod
    def eval_batches(self, batch_size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """All images in their own order, not augmented, with `index`; the last batch may be short.

        Args:
            batch_size: images per batch
            first: number of the first batch that is wanted
            every: how many batches on the next one is
        """

    @abstractmethod
    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i as in evaluation `[H, W, C]`, uint8."""

    def called(self, i: int) -> str:
        """What image i is called: its file below the data's folder, where it is known, else its number."""
        return f"image {i}"

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.labels is not None

    @property
    def device(self) -> torch.device:
        """Where the pixels are and batches are made."""
        return torch.device("cpu")

    def epoch_order(self, seed: int, epoch: int) -> Int[Tensor, " n"]:
        """The order in which an epoch visits all images `[N]`: of a run's seed and the epoch alone."""
        return epoch_order(len(self), seed, epoch)

    @property
    def num_views(self) -> int | None:
        """How many views, or mixes, of each image are trained on; None: unbounded."""
        return self._all_views if self._limit is None else self._limit

    @property
    def in_turn(self) -> bool:
        """Whether only some of an image's views, or mixes, are trained on, which take turns."""
        return self._limit is not None

    def epoch_views(self, epoch: int, index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The numbers of the views in which an epoch shows images at positions `[N]`, int64, on the device of `index`.

        A function of view seed, epoch and index alone. Limited views take turns: any `num_views` epochs in a row show
        each of them once. Otherwise every epoch draws anew.
        """
        if self._limit is None:
            return view_codes(self.view_seed, epoch, index, self._all_views)
        return balanced_views(self.view_seed, epoch, index, self._limit)

    def views_key(self) -> str:
        """What a view's number means; with equal keys, (index, number) names the same cut of an image.

        The images themselves and their size are the data's, and in its fingerprint.
        """
        flips = "flips" if self.flip else "no flips"
        seed = f"view seed {self.view_seed}"
        if self.mixes is not None:
            cut = self._resized_crops if self.padding is None else f"crops with padding {self.padding}"
            return f"first {self.mixes} mixes of two of {len(self)} images ({cut}, {flips}), {seed}"
        if self._all_views is None:
            crops = f"{self._resized_crops}, {flips}"
            return f"{crops}, any seed" if self._limit is None else f"{self._limit} {crops}, {seed}"
        crops = f"crops with padding {self.padding}, {flips}"
        if self._limit is None:
            return f"{crops}, all {self._all_views} views"
        return f"first {self._limit} of {self._all_views} views ({crops}), {seed}"

    @property
    def _resized_crops(self) -> str:
        return "random resized crops" + (
            f" of at least {self.area:g} of the image" if self.area != CROP_AREA else ""
        )

    @property
    def _all_views(self) -> int | None:
        return None if self.padding is None else num_views(self.padding, self.flip)

    @property
    def _limit(self) -> int | None:
        """The number of views where there would be more, or of mixes; None: all views."""
        if self.mixes is not None:
            return self.mixes
        total = self._all_views
        return None if self.views is None or (total is not None and total <= self.views) else self.views

    def _mixed(self, index: Int[Tensor, " n"], number: Int[Tensor, " n"]) -> FixedMixes:
        """What the numbered mixes are made of."""
        return fixed_mixes(self.view_seed, index, number, len(self), self._all_views)

    def _codes(self, index: Int[Tensor, " n"], view: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The code of each numbered view: what `apply_views` takes, or the seed of a resized crop."""
        if self._limit is None:
            return view
        if self._all_views is None:
            return numbered_seeds(self.view_seed, index, view)
        return self._sequences[index, view].long()

    @cached_property
    def _sequences(self) -> Int[Tensor, "n v"]:
        """Codes of every image's first views, where they are limited; made when first needed."""
        assert self._limit is not None
        assert self._all_views is not None
        index = torch.arange(len(self), device=self.device)
        return first_codes(self.view_seed, index, self._all_views, self._limit)


@dataclass(frozen=True)
class MemorySplit(Split):
    """A split whose pixels are all in memory, on any device.

    Args:
        images: pixels `[N, H, W, C]`, uint8
        labels: class of each image `[N]`, int64, or None
        padding: zero padding of the random crop in pixels
        flip: random horizontal flip
        view_seed: seed of the augmentations
        views: number of views of each image that are trained on, the first; None: all
        mixes: number of fixed mixes of each image that are trained on instead; None: its views
        names: gives the name of an image by its position, where images have names

    >>> split = MemorySplit(torch.zeros(5, 8, 8, 1, dtype=torch.uint8), torch.arange(5), padding=1)
    >>> [len(batch) for batch in split.train_batches(0, torch.arange(5), batch_size=2)]
    [2, 2, 1]
    """

    images: UInt8[Tensor, "n h w c"]
    labels: Int[Tensor, " n"] | None
    padding: int = 0
    flip: bool = False
    view_seed: int = 0
    views: int | None = None
    mixes: int | None = None
    names: Callable[[int], str] | None = None

    @property
    def device(self) -> torch.device:
        """Where the pixels are and batches are made."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> MemorySplit:
        """The same split with its pixels and labels on a device; batches are then made there."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def train_batches(self, epoch: int, order: Int[Tensor, " m"], batch_size: int) -> Iterator[Batch]:
        """Augmented batches in the given order; see `Split`."""
        order = order.to(self.device)
        views = self.epoch_views(epoch, order)
        for start in range(
            0, len(order), batch_size
        ):  # not split(), which gives one chunk where there are none
            rows = slice(start, start + batch_size)
            yield self.batch(order[rows], views[rows])

    def batch(self, index: Int[Tensor, " m"], view: Int[Tensor, " m"]) -> Batch:
        """These images in these views, or these mixes of them.

        Nothing is read back from the device, so a CUDA graph can hold it. With limited views the first call
        makes a table of their codes: make that call before the capture.

        Args:
            index: position of each image `[M]`, int64, on the split's device; not checked
            view: number of the view of each image `[M]`, int64 in [0, num_views); not checked
        """
        labels = None if self.labels is None else self.labels.index_select(0, index)
        if self.mixes is None:
            return Batch(self._cut(index, self._codes(index, view)), labels, index, view)
        mix = self._mixed(index, view)
        partner_labels = None if self.labels is None else self.labels.index_select(0, mix.partner)
        images, partners = self._cut(index, mix.view), self._cut(mix.partner, mix.partner_view)
        images.lerp_(partners, mix.weight.view(-1, 1, 1, 1))
        return Batch(images, labels, index, view, mixed_labels=partner_labels, mix_weight=mix.weight)

    def _cut(self, index: Int[Tensor, " m"], codes: Int[Tensor, " m"]) -> Float[Tensor, "m c h w"]:
        """The pixels of these images in the views of these codes."""
        return to_pixels(apply_views(self.images.index_select(0, index), codes, self.padding, self.flip))

    def eval_batches(self, batch_size: int, first: int = 0, every: int = 1) -> Iterator[Batch]:
        """All images in their own order; see `Split`."""
        positions = torch.arange(len(self), device=self.device)
        for start in range(first * batch_size, len(self), every * batch_size):
            rows = slice(start, start + batch_size)
            labels = None if self.labels is None else self.labels[rows]
            yield Batch(to_pixels(self.images[rows]), labels, positions[rows])

    def image(self, i: int) -> NDArray[np.uint8]:
        """Image i `[H, W, C]`, uint8."""
        return self.images[i].cpu().numpy()

    def called(self, i: int) -> str:
        """What image i is called; see `Split`."""
        return super().called(i) if self.names is None else self.names(i)


AnySplit = TypeVar("AnySplit", bound=Split)


def unmixed(split: AnySplit) -> AnySplit:
    """The same split, whose images are shown in their views and not in mixes."""
    return split if split.mixes is None else replace(split, mixes=None)  # type: ignore[type-var]
