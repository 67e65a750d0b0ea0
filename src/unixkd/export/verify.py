"""Whether an exported student says what the trained one says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unixkd.export.formats import Answering

ATOL = RTOL = 1e-4
"""A logit may differ by 1e-4, and by 1e-4 of the largest of its image: what another order of fp32 sums does."""


@dataclass(frozen=True)
class Agreement:
    """How far an exported student agrees with the trained one.

    Args:
        images: how many were compared
        same_class: on how many both find the same class most probable
        largest: the largest difference of two logits; nan or inf where one of them is
        within: whether every difference is within the tolerance
    """

    images: int
    same_class: int
    largest: float
    within: bool


def compare(trained: Answering, exported: Answering, batches: Iterable[Tensor]) -> Agreement:
    """Compare the logits of both on every batch of pixels `[N, C, H, W]`.

    Raises:
        RuntimeError: the exported student answers in another shape
    """
    images, same_class, largest, within = 0, 0, 0.0, True
    for pixels in batches:
        with torch.no_grad():
            wanted, given = trained(pixels), exported(pixels)
        if given.shape != wanted.shape:
            raise RuntimeError(f"logits of shape {tuple(given.shape)} instead of {tuple(wanted.shape)}")
        difference = (given - wanted).abs()
        allowed = ATOL + RTOL * wanted.abs().amax(1, keepdim=True)
        images += len(pixels)
        same_class += int((given.argmax(1) == wanted.argmax(1)).sum())
        largest = torch.tensor([largest, difference.max()]).max().item()  # max() of Python loses a nan
        within = within and bool((difference <= allowed).all()) and bool(wanted.isfinite().all())
    return Agreement(images, same_class, largest, within)
