"""Weights files: read without executing anything, checked against the network before they are loaded."""

from __future__ import annotations

import argparse
import datetime
import logging
import pathlib
import pickle
import re
import struct
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unixkd.errors import UserError, check_unchanged, first_line
from unixkd.names import local_path

_log = logging.getLogger("unixkd")
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors")
"""Of weights files, as people name them."""
State = Mapping[str, Tensor]
_KEYS = ("", "model", "state_dict", "net", "network", "model_state_dict")  # the first that fits is taken
# torch's averages and profilers leave these in a state dict.
_COUNTERS = {"n_averaged", "total_ops", "total_params"}
# What torch.load raises, for instance, where it reads something else than it expects.
_DAMAGED = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError),
    struct.error,
)


def _plain_dict(*_factory: object) -> dict[object, object]:
    """In place of a `defaultdict`, which torch's reader cannot fill."""
    return {}


# What trainers keep beside the weights: options, times, histories, paths, figures of NumPy. Making these runs nothing.
# A path of another system cannot be made here, a pure one can; what makes NumPy's arrays has two names.
_NUMBER, _ARRAY = (value.__reduce__()[0] for value in (np.float64(0), np.zeros(0)))
_NAMED: dict[str, Any] = {
    "collections.defaultdict": _plain_dict,
    **dict.fromkeys(("pathlib.PosixPath", "pathlib._local.PosixPath"), pathlib.PurePosixPath),
    **dict.fromkeys(("pathlib.WindowsPath", "pathlib._local.WindowsPath"), pathlib.PureWindowsPath),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _NUMBER),
    **dict.fromkeys(("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _ARRAY),
}
_HARMLESS: list[Any] = [
    *(argparse.Namespace, types.SimpleNamespace, list, tuple, dict, str, int, float, bool),
    *(datetime.datetime, datetime.date, datetime.timedelta, np.ndarray, np.dtype),
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdU"},
    *((made, name) for name, made in _NAMED.items()),
]


def load_weights(net: nn.Module, path: str | Path, *, strict_head: bool = True) -> None:
    """Load a weights file into a network, or raise and leave the network as it was.

    Files may hold the tensors themselves or dictionaries with them (`model`, `state_dict`, `net`, ...), under the
    network's own names with or without a prefix (`module.`, `student.`, ...). Where several fit, that of the network in
    training is taken, not its average (`state_dict_ema`), which is logged.

    Args:
        net: the network to fill
        path: a .safetensors file, or a torch file (read with `weights_only`)
        strict_head: False: where only the class count differs, leave the classifier as it is, load all else
            and log a warning

    Raises:
        UserError: missing, damaged or foreign file; weights of another architecture or class count; several networks;
            tensors that are sparse, quantised, complex or whole numbers where the network's are not, or not finite
    """
    found = read_weights(path, net.state_dict())
    if found.passed_over:
        _log.warning("'%s': %s", path, found.passed_over)
    copy_weights(found.tensors, net, source=str(path), strict_head=strict_head)


class Found(NamedTuple):
    """Weights by the names of a network, where they lay in the file, and what was passed over, in words."""

    tensors: State
    place: str = ""
    passed_over: str = ""


def read_weights(path: str | Path, like: State) -> Found:
    """The weights of a file that are a network's with the state `like`, or of another class count; on the CPU.

    Raises:
        UserError: the file is missing or damaged, holds none, or several that fit alike
    """
    content = read_content(path)
    graded = [
        (_misfit(found.tensors, like), _rank(found.place), found) for found in _candidates(content, like)
    ]
    graded.sort(key=lambda each: each[:2])
    keys = _listed(content) if isinstance(content, Mapping) and content else type(content).__name__
    if not graded:
        raise UserError(f"'{path}' holds no weights: expected named tensors, found {keys}")
    misfit, rank, taken = graded[0]
    if misfit == 3:
        inside = f", {taken.place}* is {_listed(taken.tensors)}" if taken.place else ""
        words = f"{_first_mismatch(taken.tensors, like)}; it has {keys}{inside}"
        raise UserError(f"'{path}' holds weights of another architecture: {words}")
    others = [
        (other_rank, other.place.rstrip(".")) for grade, other_rank, other in graded[1:] if grade == misfit
    ]
    if misfit < 2 and others and others[0][0] == rank:
        names = _listed([taken.place.rstrip("."), *(place for _, place in others)])
        raise UserError(
            f"'{path}' holds several networks that fit, {names}: save the state_dict of one alone and give that file"
        )
    passed = " and ".join(filter(None, [*(place for _, place in others), taken.passed_over]))
    named = f"named {taken.place}*" if taken.place else "without a prefix"
    words = f"the weights {named} are taken, not {passed}" if passed else ""
    return taken._replace(passed_over=words)


def copy_weights(state: State, net: nn.Module, *, source: str, strict_head: bool) -> None:
    """Copy named tensors into a network as `load_weights` does; `source` is where they come from, for messages."""
    wanted = net.state_dict()
    reshaped = _reshaped(state, wanted)
    mismatch = _first_mismatch(state, wanted)
    if mismatch:
        counts = _class_counts(state, wanted)
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
    loaded = {name: value for name, value in state.items() if name not in reshaped}
    for name, value in loaded.items():
        if fault := _fault(name, value, wanted[name]):
            raise UserError(f"'{source}': its tensor '{name}' {fault}; give a file of plain, finite weights")
    net.load_state_dict({**wanted, **loaded})


def _fault(name: str, value: Tensor, like: Tensor) -> str | None:
    """Why a tensor cannot take the place of a network's, which torch refuses late or converts without a word."""
    if value.is_meta or value.is_quantized or value.layout != torch.strided:
        kind = "without values (meta)" if value.is_meta else "quantised" if value.is_quantized else "sparse"
        return f"is {kind} ({value.layout if kind == 'sparse' else value.dtype})"
    lossy = value.is_complex() and not like.is_complex()
    if lossy or (like.is_floating_point() and not value.is_floating_point()):
        return f"is {value.dtype} there and {like.dtype} here"
    values = value.to(like.dtype if like.is_floating_point() else value.dtype)
    # A mask may be infinite by design: then it is so in the new network too.
    if not values.isfinite().all() and (is_lazy(like) or like.isfinite().all()):
        return f"is not finite in {values.dtype}"
    return "is negative in places" if name.endswith("running_var") and (values < 0).any() else None


def read_content(path: str | Path) -> object:
    """All that a weights file holds, on the CPU. Raises UserError where it is missing, damaged or not plain."""
    path = local_path(str(path))
    if not path.is_file():
        is_folder = f"'{path}' is a folder: name a weights file in it"
        raise UserError(is_folder if path.is_dir() else f"no weights file at '{path}'")
    check_unchanged(path)
    return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)


def _candidates(content: object, like: State) -> Iterator[Found]:
    """The tensors of each dictionary in the file that has some, under each prefix that its names may have."""
    waiting = [("", content)]
    for keys, value in waiting:  # which grows, up to a limit that a hostile file would pass
        if not isinstance(value, Mapping):
            continue
        named = {key: inner for key, inner in value.items() if isinstance(key, str)}
        waiting += [
            (f"{keys}{key}.", v) for key, v in named.items() if keys.count(".") < 3 and len(waiting) < 10_000
        ]
        state = {key: tensor for key, inner in named.items() if (tensor := _as_tensor(inner)) is not None}
        yield from _under_prefixes(_uncompiled(state, like), like, keys)


def _under_prefixes(state: State, like: State, keys: str) -> list[Found]:
    """The tensors under each prefix; a whole network beside another one's names, as its average, is not part of it."""
    anchor = next(iter(like), "")
    prefixes = {name.removesuffix(anchor) for name in state if f".{name}".endswith(f".{anchor}")}
    founds: list[Found] = []
    whole: tuple[str, ...] = ()
    for prefix in sorted(prefixes or [""] * bool(state), key=len, reverse=True):  # the inner ones first
        under = {n.removeprefix(prefix): n for n in state if n.startswith(prefix)}
        other = {n for n in state if n.startswith(whole) or n.rpartition(".")[2] in _COUNTERS}
        kept = {name: state[n] for name, n in under.items() if name in like or n not in other}
        beside = [n for n in state if not n.startswith(prefix) or n.removeprefix(prefix) not in kept]
        founds.append(Found(kept, keys + prefix, _listed(beside)))
        if _misfit(kept, like) < 2:
            whole = (*whole, prefix)
    return sorted(founds, key=lambda found: found.place)


def _uncompiled(state: State, like: State) -> State:
    """Names without torch.compile's `_orig_mod.`, unless the network has it or two names would become one."""
    plain = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    return state if len(plain) < len(state) or any("_orig_mod." in name for name in like) else plain


def _as_tensor(value: object) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return value if isinstance(value, Tensor) else None


def _listed(names: Iterable[object]) -> str:
    """The first of some names, and how many there are."""
    texts = [repr(str(name)[:60]) for name in names]
    return ", ".join(texts[:4]) + (f", … ({len(texts)})" if len(texts) > 4 else "")


def _rank(place: str) -> tuple[bool, int]:
    """Which of several places is meant: no average, and of `_KEYS` the first."""
    key, words = place.partition(".")[0], re.split(r"[._]", place.lower())
    return not {"ema", "averaged", "swa"}.isdisjoint(words), _KEYS.index(key) if key in _KEYS else len(_KEYS)


def _misfit(state: State, like: State) -> int:
    """0: it is such a network's; 1: but for the class count; 2: but for shapes; 3: it is another's."""
    if _first_mismatch(state, like) is None:
        return 0
    if _class_counts(state, like) is not None:
        return 1
    shaped = {**state, **{name: like[name] for name in _reshaped(state, like)}}
    return 2 if _first_mismatch(shaped, like) is None else 3


def _reshaped(state: State, wanted: State) -> list[str]:
    known = [name for name, value in wanted.items() if name in state and not is_lazy(value)]
    return [name for name in known if state[name].shape != wanted[name].shape]


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
        what = re.search(r"GLOBAL (\S+) was not", str(error))
        raise UserError(
            f"'{path}' is damaged or holds more than weights{f' ({what[1]})' if what else ''}, which could execute "
            "code when read: refused; if you trust it, save its state_dict() alone with torch.save and give that file"
        ) from error
    except _DAMAGED as error:
        raise UserError(f"'{path}' is damaged or no weights file: {first_line(error)}") from error


def _first_mismatch(state: State, wanted: State) -> str | None:
    for name, value in wanted.items():
        if name in state and not is_lazy(value) and state[name].shape != value.shape:
            return f"'{name}' is {tuple(state[name].shape)} there and {tuple(value.shape)} here"
        # Old checkpoints do not count batches, and nothing here needs the count.
        if name not in state and not name.endswith("num_batches_tracked"):
            return f"it has no '{name}' {'' if is_lazy(value) else tuple(value.shape)}"
    unexpected = next((name for name in state if name not in wanted), None)
    return None if unexpected is None else f"'{unexpected}' is not in this network"


def _class_counts(state: State, wanted: State) -> tuple[int, int] | None:
    """Class counts (file, network) where nothing differs but the first dimension of the classifier."""
    reshaped = _reshaped(state, wanted)
    if _first_mismatch({**state, **{name: wanted[name] for name in reshaped}}, wanted):
        return None
    pairs = [(state[name].shape, wanted[name].shape) for name in reshaped]
    if any(min(len(a), len(b)) == 0 or a[1:] != b[1:] for a, b in pairs):
        return None
    counts = {(a[0], b[0]) for a, b in pairs}
    return counts.pop() if len(counts) == 1 else None
