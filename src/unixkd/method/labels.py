"""What a caller's batch may hold: class numbers, of which −100 says that a sample has none, and finite pixels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.named_inputs import Inputs, NamedInputs

UNLABELLED = -100
"""The label of a sample that has none, as torch's `ignore_index` and transformers have it."""


def check_rows(labels: object, samples: int) -> None:
    """Raise where labels are not a tensor with one row for each of N samples."""
    if not isinstance(labels, Tensor):
        raise UserError(
            f"the labels are a {type(labels).__name__}, not a tensor: give a tensor of class numbers"
        )
    if labels.ndim == 0 or len(labels) != samples:
        raise UserError(f"{labels.numel() if labels.ndim < 2 else len(labels)} labels for {samples} samples")


def check_class_numbers(labels: Tensor) -> None:
    """Raise where labels are not integers `[N]`; no value is looked at, so no device is waited for."""
    shape = list(labels.shape)
    if labels.ndim > 1:
        kind = "soft or one-hot labels" if shape[1:] != [1] else "labels"
        advice = "argmax(1)" if shape[1:] != [1] else "squeeze(1)"
        raise UserError(
            f"{kind} {shape} (row 0 has {labels[0].tolist()}): the losses take class numbers [{shape[0]}], "
            f"give labels.{advice}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(
            f"labels of {labels.dtype} (row 0 has {labels[0].item()}) are no class numbers: give integers, "
            "labels.long() where they are whole numbers"
        )


def check_range(labels: Integer[Tensor, " n"], classes: int) -> None:
    """Raise where a label is no class of the student's; reads the labels back."""
    if (wrong := outside(labels, classes).nonzero().flatten()).numel():
        row = int(wrong[0])
        raise UserError(
            f"row {row} of the batch has label {int(labels[row])}, but labels must be integers in 0..{classes - 1} "
            f"({UNLABELLED}: no label)"
        )


def outside(labels: Integer[Tensor, " n"], classes: int) -> Bool[Tensor, " n"]:
    """Which labels are neither a class nor −100."""
    labels = labels.long()
    return ((labels < 0) | (labels >= classes)) & (labels != UNLABELLED)


def check_pixels(inputs: Inputs) -> None:
    """Raise where numbers in a batch are not finite; on a CPU only, where looking at them stops no device.

    Elsewhere the loss is not finite either. Masks may hold −inf.
    """
    named = inputs.tensors if isinstance(inputs, NamedInputs) else {"images": inputs}
    for name, tensor in named.items():
        if tensor.device.type != "cpu" or not tensor.is_floating_point() or name.endswith("mask"):
            continue
        # A sum is far faster than isfinite on every number; it may overflow by itself.
        if not tensor.sum(dtype=torch.float32).isfinite() and len(rows := faulty_rows(tensor)):
            shown = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
            raise UserError(
                f"the batch's {name} hold NaN or inf in {len(rows)} of {len(tensor)} rows (batch positions {shown}): "
                "look at how these samples are read or normalised"
            )


def faulty_rows(tensor: Tensor) -> list[int]:
    """Rows of a batch that hold NaN or inf."""
    return (~tensor.isfinite().reshape(len(tensor), -1).all(dim=1)).nonzero().flatten().tolist()
