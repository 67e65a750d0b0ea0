"""A teacher's answers for a whole epoch, fetched before it in large batches."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from unixkd.data import Split
from unixkd.teacher.asking import Teacher

FILL_BATCH = 512


def fetch_answers(
    teacher: Teacher, split: Split, epoch: int, order: Int[Tensor, " m"]
) -> tuple[Float[Tensor, "m classes"], int]:
    """The answers on an epoch's images in its views `[M, classes]`, and how many had to be asked first.

    Args:
        teacher: with a store, which is filled with the answers it lacks
        split: the training images
        epoch: number of the epoch, which decides the views
        order: images to visit `[M]`
    """
    store = teacher.store
    assert store is not None
    views, place = split.epoch_views(epoch, order).cpu(), order.cpu()
    device = next(teacher.network.module.parameters()).device
    answers, known = store.read(place, views)
    missing = (~known).nonzero().flatten()
    if not len(missing):
        return answers.to(device), 0
    batches = split.train_batches(epoch, order[missing.to(order.device)], FILL_BATCH)
    for batch, rows in zip(batches, missing.split(FILL_BATCH), strict=True):
        logits = teacher.ask(batch.images.to(device), place[rows], views[rows])
        teacher.keep(store, place[rows], views[rows], logits)
        answers[rows] = store.rounded(logits).cpu()
    return answers.to(device), len(missing)
