"""Weights files: read without executing anything, checked against the network before they are loaded."""

from __future__ import annotations

import argparse
import logging
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from unixkd.errors import UserError, first_line
from unixkd.run_files import check_unchanged

_log = logging.getLogger("unixkd")
_WRAPPER_KEYS = ("model", "state_dict")
# What torch.load raises, for instance, where it reads something else than it expects.
_DAMAGED = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, struct.error)
# Beside the weights RepDistiller keeps its options, a plain namespace, and its descendants the best accuracy as a
# number of NumPy, under the name that NumPy 1 or 2 has for it. Reading them runs nothing.
_NUMBER: Any = np.float64(0).__reduce__()[0]  # what NumPy's numbers are made by when they are read
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
]
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and DDP; torch.compile


def load_weights(net: nn.Module, path: str | Path, *, strict_head: bool = True) -> None:
    """Load a weights file into a network, or raise and leave the network as it was.

    Files may hold the tensors themselves or a dict with them under `model` or `state_dict`, with or
    without the prefix of DataParallel, DDP or torch.compile.

    Args:
        net: the network to fill
        path: a .safetensors file, or a torch file (read with `weights_only`)
        strict_head: False: where only the class count differs, leave the classifier as it is, load all else
            and log a warning

    Raises:
        UserError: missing, damaged or foreign file; weights of another architecture or class count
    """
    copy_weights(read_weights(path), net, source=str(path), strict_head=strict_head)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU. Raises UserError where it is missing, damaged or none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file at '{path}'")
    check_unchanged(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(content, Mapping):
        wrapped = (content[key] for key in _WRAPPER_KEYS if isinstance(content.get(key), Mapping))
        content = next(wrapped, content)
    if not _is_state(content):
        raise UserError(
            f"'{path}' holds no weights: expected named tensors, at the top, under 'model' or 'state_dict'"
        )
    return _strip_prefixes(dict(content))


def copy_weights(state: Mapping[str, Tensor], net: nn.Module, *, source: str, strict_head: bool) -> None:
    """Copy named tensors into a network as `load_weights` does; `source` is where they come from, for messages."""
    wanted = net.state_dict()
    reshaped = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    mismatch = _first_mismatch(state, wanted)
    if mismatch:
        counts = _class_counts(state, wanted, reshaped)
        if counts is None:
            raise UserError(f"'{source}' holds weights of another architecture: {mismatch}")
        if strict_head:
            raise UserError(
                f"'{source}' holds weights for {counts[0]} classes, {counts[1]} are needed ({mismatch})"
            )
        _log.warning(
            "'%s' holds weights for %d classes: the classifier (%s) starts afresh with %d",
            *(source, counts[0], ", ".join(reshaped), counts[1]),
        )
    net.load_state_dict({**wanted, **{name: value for name, value in state.items() if name not in reshaped}})


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"'{path}' is damaged or no safetensors file: {first_line(error)}") from error


def _read_torch(path: Path) -> object:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' is damaged or holds more than weights, which could execute code when read: "
            "refused; if you trust it, save its state_dict() alone with torch.save and give that file"
        ) from error
    except _DAMAGED as error:
        raise UserError(f"'{path}' is damaged or no weights file: {first_line(error)}") from error


def _is_state(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _first_mismatch(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    for name, value in wanted.items():
        if name in state and state[name].shape != value.shape:
            return f"'{name}' is {tuple(state[name].shape)} there and {tuple(value.shape)} here"
        # Old checkpoints do not count batches, and nothing here needs the count.
        if name not in state and not name.endswith("num_batches_tracked"):
            return f"it has no '{name}' {tuple(value.shape)}"
    unexpected = next((name for name in state if name not in wanted), None)
    return None if unexpected is None else f"'{unexpected}' is not in this network"


def _class_counts(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], reshaped: list[str]
) -> tuple[int, int] | None:
    """Class counts (file, network) where nothing differs but the first dimension of the classifier."""
    if _first_mismatch({**state, **{name: wanted[name] for name in reshaped}}, wanted):
        return None
    pairs = [(state[name].shape, wanted[name].shape) for name in reshaped]
    if any(min(len(a), len(b)) == 0 or a[1:] != b[1:] for a, b in pairs):
        return None
    counts = {(a[0], b[0]) for a, b in pairs}
    return counts.pop() if len(counts) == 1 else None
