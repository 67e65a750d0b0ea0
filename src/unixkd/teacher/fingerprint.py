"""What stored answers depend on, as a key of named parts: where a part differs, so may the answers."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from unixkd.models.pixels import ModelCard, PixelModel

TEACHER_PRECISION = "teacher precision"
"""The part of a key that a probe may have decided."""

_PLAIN = (bool, int, float, str)


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
        digest.update(_bytes(value))
    return digest.hexdigest()


def _settings(layer: nn.Module) -> list[tuple[str, object]]:
    """Stride, padding, eps and the like: public attributes that are plain numbers or text, or tuples of them."""

    def is_plain(value: object) -> bool:
        return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(is_plain, value)))

    return sorted(
        (name, value)
        for name, value in vars(layer).items()
        if name != "training" and not name.startswith("_") and is_plain(value)
    )


def _bytes(value: Tensor) -> memoryview:
    # reshape copies channels_last into logical order; bytes, as NumPy knows no bfloat16
    return value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data


def preprocessing_fingerprint(card: ModelCard) -> str:
    """SHA-256 of what a model does to pixels: mean, standard deviation, size, channels."""
    # float: the repr of NumPy's numbers is another
    numbers = (list(map(float, card.mean)), list(map(float, card.std)), card.size, card.in_channels)
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def store_key(teacher: PixelModel, data_fingerprint: str, views: str, precision: str) -> dict[str, str]:
    """The key of an `AnswerStore`: all that decides what the teacher says about (image index, view number).

    Args:
        teacher: the network and its preprocessing
        data_fingerprint: of the images before they are augmented, in their order (`Data.fingerprint`)
        views: what a view's number means (`Split.views_key`)
        precision: the teacher computes in, e.g. fp32
    """
    return {
        "teacher weights": network_fingerprint(teacher.net),
        "teacher preprocessing": preprocessing_fingerprint(teacher.card),
        TEACHER_PRECISION: precision,
        "data": data_fingerprint,
        "kind of views": views,
    }
