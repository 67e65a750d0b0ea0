"""A run's store of teacher answers: the key of what they depend on, opening it, filling it ahead of an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unixkd.data.split import Split
from unixkd.errors import UserError
from unixkd.method.losses import FeatureLoss
from unixkd.models.card import ModelCard, PixelModel
from unixkd.teacher.store import AnswerStore
from unixkd.teacher.teacher import Teacher
from unixkd.training.precision import TEACHER_PRECISION
from unixkd.training.resolved import Resolved
from unixkd.training.used import uses_answers


def open_store(run: Resolved, path: str, note: Callable[[str], None]) -> AnswerStore | None:
    """Open the store of this teacher's answers, or make it; None where no step of the run can use one.

    Raises:
        UserError: losses that need more than logits, views without end, no space, or answers of something else
    """
    config, split = run.config, run.data.train
    if run.teacher is None or not any(term.loss.needs_teacher for term in run.objective):
        return None
    if any(isinstance(term.loss, FeatureLoss) for term in run.objective):
        raise UserError("stored answers hold logits only: at and sp compare features, give no --answers.path")
    if not uses_answers(config, run.method, run.objective):
        note(
            f"{run.method.name} mixes every image it keeps, so stored answers would never be read: no store is opened"
        )
        return None
    if split.num_views is None:
        raise UserError(
            "random resized crops have no fixed number of views, so their answers cannot be stored: give "
            "--data.views, how many of each image to train on"
        )
    return AnswerStore.open(
        Path(path).expanduser(),
        store_key(run.teacher, run.data.fingerprint, split.views_key(), config.train.teacher_precision),
        images=len(split),
        views=split.num_views,
        classes=run.teacher.card.num_classes,
        precision=config.answers.precision,
        top_k=config.answers.top_k,
        temperature=config.loss.temperature,
        announce=note,
    )


def network_fingerprint(module: nn.Module) -> str:
    """SHA-256 of a network: its layers' classes and plain settings, its parameters and buffers.

    Neither the device nor the memory layout nor the train/eval flags change it. What the code of a
    `forward` does is covered by its class's name alone.

    >>> network_fingerprint(nn.Linear(1, 1)) == network_fingerprint(nn.Linear(1, 1))  # random weights
    False
    """
    digest = hashlib.sha256()
    for name, layer in module.named_modules():
        digest.update(repr((name, type(layer).__name__, _settings(layer))).encode())
    # Buffers once more, as a state dict leaves out those that are not persistent.
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    for name, value in sorted(tensors.items()):
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        # reshape copies channels_last into logical order; bytes, as NumPy knows no bfloat16
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _settings(layer: nn.Module) -> list[tuple[str, object]]:
    """Stride, padding, eps and the like: public attributes that are plain numbers or text, or tuples of them."""

    def is_plain(value: object) -> bool:
        return isinstance(value, bool | int | float | str) or (
            isinstance(value, tuple) and all(map(is_plain, value))
        )

    return sorted(
        (name, value)
        for name, value in vars(layer).items()
        if name != "training" and not name.startswith("_") and is_plain(value)
    )


def preprocessing_fingerprint(card: ModelCard) -> str:
    """SHA-256 of what a model does to pixels: mean, standard deviation, size, channels."""
    # float: the repr of NumPy's numbers is another
    numbers = (list(map(float, card.mean)), list(map(float, card.std)), card.size, card.in_channels)
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def store_key(teacher: PixelModel, data_fingerprint: str, views: str, precision: str) -> dict[str, str]:
    """The key of an `AnswerStore`: all that decides the teacher's answer to (image index, view number).

    `views` (`Split.views_key`) says what a view's number means.
    """
    return {
        "teacher weights": network_fingerprint(teacher.net),
        "teacher preprocessing": preprocessing_fingerprint(teacher.card),
        TEACHER_PRECISION: precision,
        "data": data_fingerprint,
        "kind of views": views,
    }


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
