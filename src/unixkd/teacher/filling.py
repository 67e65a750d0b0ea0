"""A teacher's answers for a whole epoch, fetched before it in large batches."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.data import Split
from unixkd.network import Network
from unixkd.teacher.store import AnswerStore

FILL_BATCH = 512


def fetch_answers(
    network: Network, store: AnswerStore, split: Split, epoch: int, order: Int[Tensor, " m"]
) -> tuple[Float[Tensor, "m classes"], int]:
    """The answers on an epoch's images in its views `[M, classes]`, and how many had to be asked first.

    Args:
        network: the teacher
        store: where its answers lie; it is filled with those it lacks
        split: the training images
        epoch: number of the epoch, which decides the views
        order: images to visit `[M]`
    """
    views, place = split.epoch_views(epoch, order).cpu(), order.cpu()
    device = next(network.module.parameters()).device
    answers, known = store.read(place, views)
    missing = (~known).nonzero().flatten()
    if not len(missing):
        return answers.to(device), 0
    batches = split.train_batches(epoch, order[missing.to(order.device)], FILL_BATCH)
    for batch, rows in zip(batches, missing.split(FILL_BATCH), strict=True):
        with torch.no_grad():
            logits = network(batch.images.to(device)).logits.float()
        store.write(place[rows], views[rows], logits)
        answers[rows] = store.rounded(logits).cpu()
    return answers.to(device), len(missing)
