"""A captured step's batch of images that are loaded: memory of its own, which each batch is copied into."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from unixkd.method.batch import Batch


class StaticBatch:
    """Stands in for a split whose images are in memory, as a captured step sees it.

    Batches are made ahead by threads, cross to the device from pinned memory, and are copied in before each replay, on
    the stream that replays: a copy waits for the step before, and the host for neither.

    Args:
        like: the first batch; all later ones have its fields and shapes
        images: number of training images

    >>> import torch
    >>> static = StaticBatch(Batch(torch.zeros(2, 1, 1, 1), index=torch.tensor([0, 1])), images=5)
    >>> batch = static.batch(torch.tensor([0, 0]), torch.tensor([0, 0]))
    >>> static.fill(Batch(torch.ones(2, 1, 1, 1), index=torch.tensor([4, 3])))
    >>> len(static), batch.pixels.sum().item(), batch.index.tolist()
    (5, 2.0, [4, 3])
    """

    def __init__(self, like: Batch, images: int) -> None:
        self.images = images
        self.fields = {name: value.clone() for name, value in vars(like).items() if isinstance(value, Tensor)}

    def __len__(self) -> int:
        return self.images

    def batch(self, index: Int[Tensor, " n"], view: Int[Tensor, " n"]) -> Batch:
        """The batch that was filled in last, which says itself what its images and views are."""
        return Batch(**self.fields)

    def fill(self, batch: Batch) -> None:
        """Copy the next batch in."""
        for name, mine in self.fields.items():
            mine.copy_(getattr(batch, name), non_blocking=True)
