"""What a network is, as short strings: by them a checkpoint and a store of answers know their teacher again."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from unixkd.models.card import ModelCard, PixelModel
from unixkd.models.user_code import code_fingerprint
from unixkd.names import is_code


def teacher_fingerprint(teacher: PixelModel) -> dict[str, str]:
    """All of a network that decides its answers, by name; `code` only of one that is the user's own."""
    card = teacher.card
    numbers = {"mean": list(map(float, card.mean)), "std": list(map(float, card.std)), "size": card.size}
    code = {"code": code_fingerprint(card.name)} if is_code(card.name) else {}
    return {"weights": network_fingerprint(teacher.net)} | {key: repr(n) for key, n in numbers.items()} | code


def network_fingerprint(module: nn.Module) -> str:
    """SHA-256 of a network: its layers' classes and plain settings, its parameters and buffers.

    Neither the device nor the memory layout nor the train/eval flags change it. What a `forward` does is covered by
    its class's name alone: see `teacher_fingerprint`.

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
