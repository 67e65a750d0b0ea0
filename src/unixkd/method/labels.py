"""What a caller's batch may hold: class numbers, of which −100 says that a sample has none, and finite pixels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.named_inputs import Inputs, NamedInputs

UNLABELLED = -100
"""The label of a sample that has none, as torch's `ignore_index` and transformers have it."""


def check_labels(labels: object, samples: int, *, classes: bool) -> None:
    """Raise where labels are no tensor with a row for each sample, or, to be read as classes, no integers `[N]`."""
    if not isinstance(labels, Tensor):
        raise UserError(f"the labels are a {type(labels).__name__}: give a tensor of class numbers")
    if labels.ndim == 0 or len(labels) != samples:
        raise UserError(
            f"labels of shape {list(labels.shape)} for {samples} samples: give a class number each"
        )
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if classes and (labels.ndim > 1 or not whole):
        raise UserError(
            f"labels of {labels.dtype} and shape {list(labels.shape)} (row 0 has {str(labels[0].tolist())[:40]}) are "
            "no class numbers: give integers [N], such as labels.long(), or labels.argmax(1) of one-hot or soft labels"
        )


def check_range(labels: Integer[Tensor, " n"], classes: int) -> None:
    """Raise where a label is no class of the student's; reads the labels back."""
    for row in outside(labels, classes).nonzero().flatten().tolist():
        raise UserError(
            f"row {row} of the batch has label {int(labels[row])}, but labels must be integers in 0..{classes - 1} "
            f"({UNLABELLED}: no label)"
        )


def outside(labels: Integer[Tensor, " n"], classes: int) -> Bool[Tensor, " n"]:
    """Which labels are neither a class nor −100."""
    labels = labels.long()  # uint8 has no −100
    return ((labels < 0) | (labels >= classes)) & (labels != UNLABELLED)


def check_pixels(inputs: Inputs) -> None:
    """Raise where numbers but masks' are not finite; on a CPU only, elsewhere the loss shows it and no device stops."""
    named = inputs.tensors if isinstance(inputs, NamedInputs) else {"images": inputs}
    for name, tensor in named.items():
        if tensor.device.type != "cpu" or not tensor.is_floating_point() or name.endswith("mask"):
            continue
        # The sum is far faster to look at than every number; it may overflow by itself.
        if tensor.sum(dtype=torch.float32).isfinite():
            continue
        finite = tensor.isfinite().reshape(len(tensor), -1).all(dim=1)
        if rows := (~finite).nonzero().flatten().tolist():
            raise UserError(
                f"the batch's {name} hold NaN or inf in {len(rows)} of {len(tensor)} rows (batch positions "
                f"{', '.join(map(str, rows[:8]))}): look at how these samples are read or normalised"
            )
