"""The views that a split's images have, which of them an epoch shows, and what their numbers mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from unixkd.data.mixes import FixedMixes, fixed_mixes
from unixkd.data.splits import epoch_order
from unixkd.data.views import balanced_views, first_codes, num_views, numbered_seeds, view_codes


class Viewed(ABC):
    """What every split does with its views.

    A batch's `view` is a number in [0, num_views). Where all views of a bounded set are in use, it is
    the view's code (see `unixkd.data.views`); where only the first `views` are, it counts along a fixed
    random sequence of the image's own, and the code stays inside. Without a padding, views are random
    resized crops: as many as there are seeds, and an unlimited one has its seed as its number.

    With `mixes` a number stands for a mix of two images instead, each in a view of its own (see `FixedMixes`).
    """

    padding: int | None
    flip: bool
    view_seed: int
    views: int | None
    mixes: int | None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Where the pixels are and batches are made."""
        return torch.device("cpu")

    @property
    def lasting(self) -> bool:
        """Whether an index means the same image in every epoch."""
        return True

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
        """The view in which an epoch shows each image: a function of view seed, epoch and index alone.

        Limited views take turns: any `num_views` epochs in a row show each of them once. Otherwise every
        epoch draws anew.

        Args:
            epoch: number of the epoch
            index: position of each image `[N]`, int64

        Returns:
            Numbers of views `[N]`, int64, on the device of `index`.
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
            cut = "random resized crops" if self.padding is None else f"crops with padding {self.padding}"
            return f"first {self.mixes} mixes of two of {len(self)} images ({cut}, {flips}), {seed}"
        if self._all_views is None:
            crops = f"random resized crops, {flips}"
            return f"{crops}, any seed" if self._limit is None else f"{self._limit} {crops}, {seed}"
        crops = f"crops with padding {self.padding}, {flips}"
        if self._limit is None:
            return f"{crops}, all {self._all_views} views"
        return f"first {self._limit} of {self._all_views} views ({crops}), {seed}"

    @property
    def _all_views(self) -> int | None:
        return None if self.padding is None else num_views(self.padding, self.flip)

    @property
    def _limit(self) -> int | None:
        """How many views are left of more, or how many mixes there are; None: all views."""
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
        if self._sequences is None:
            return numbered_seeds(self.view_seed, index, view)
        return self._sequences[index, view].long()

    @cached_property
    def _sequences(self) -> Int[Tensor, "n v"] | None:
        """Codes of every image's first views, made when first needed; None: unlimited or unbounded."""
        if self._limit is None or self._all_views is None:
            return None
        index = torch.arange(len(self), device=self.device)
        return first_codes(self.view_seed, index, self._all_views, self._limit)


AnyViewed = TypeVar("AnyViewed", bound=Viewed)


def unmixed(split: AnyViewed) -> AnyViewed:
    """The same split, whose images are shown in their views and not in mixes."""
    return split if split.mixes is None else replace(split, mixes=None)  # type: ignore[type-var]
