"""Checkpoints: tensors in safetensors, everything else in JSON, no pickle.

A checkpoint is written to a temporary folder, synced, sealed with a manifest of checksums and renamed
into place; older ones are removed only then. A kill at any moment leaves the previous one intact.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unixkd.errors import UserError, checksum, first_line, matches, parse_json, read_json, read_text
from unixkd.run_files import CHECKPOINT, aside, sync, usual_mode
from unixkd.training.distributed.sharding import shard_like

FILES = ("state.safetensors", "state.json")
MANIFEST = "manifest.json"
KEPT_AND_NEW = 3
_KERNELS = ("foreach", "fused", "capturable")
"""Options of an optimiser that decide how a step is computed, not what."""
Check = Callable[[dict[str, Any], Path], None]
"""Raises a UserError, which names the file, where a state is not what a run has saved."""


def _unchecked(state: dict[str, Any], file: Path) -> None:
    pass


def checkpoint_name(epoch: int, steps: int = 0) -> str:
    """The name of the checkpoint after so many epochs and steps of the next; later ones sort after it.

    >>> checkpoint_name(3), checkpoint_name(3, 17)
    ('epoch-00003', 'epoch-00003-step-0000017')
    """
    return f"epoch-{epoch:05d}" + (f"-step-{steps:07d}" if steps else "")


def save_checkpoint(folder: Path, name: str, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint and remove all but the previous one; `state` is anything that JSON can hold.

    Raises:
        UserError: it cannot be written, for want of space say; those that are there stay
    """
    final = folder / name
    # Copied, as safetensors refuses tensors that share memory (tied weights).
    copies = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    try:
        with aside(final) as temporary:
            temporary.mkdir(parents=True)
            with usual_mode(temporary / FILES[0]):
                save_file(copies, temporary / FILES[0])
            (temporary / FILES[1]).write_text(json.dumps(state))
            manifest = {name: checksum(temporary / name) for name in FILES}
            (temporary / MANIFEST).write_text(json.dumps(manifest))
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            discard(final)
        sync(folder)
        for old in checkpoints(folder)[:-2]:
            discard(old)
    except (OSError, SafetensorError) as error:
        kept = checkpoints(folder)
        raise UserError(
            f"cannot save a checkpoint in {folder}: {error}; "
            + (f"{kept[-1].name} is kept, make room and resume" if kept else "none was saved before")
        ) from None
    return final


def check_space(folder: Path, size: int) -> None:
    """Raise where the disk has no room for a run's checkpoints of `size` bytes: two kept and one being written."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    used = sum(path.lstat().st_size for saved in checkpoints(folder) for path in saved.iterdir())
    need, free = KEPT_AND_NEW * size - used, shutil.disk_usage(there).free
    if need > free:
        raise UserError(
            f"{there} has {free / 1e6:,.0f} MB free, but the checkpoints of this run need {need / 1e6:,.0f} MB: make "
            "room, or give an --out on another disk"
        )


def load_checkpoint(
    folder: Path, check: Check = _unchecked
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The newest checkpoint whose checksums hold: (tensors, checked state, damaged ones that were passed over).

    Those are removed, as later checkpoints would be counted with them.

    Raises:
        UserError: there is none
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        problem = find_damage(path)
        if problem is None:
            try:
                loaded = load_file(path / FILES[0]), read_state(path / FILES[1], check)
            except (SafetensorError, OSError, UserError) as error:  # under right checksums
                problem = f"unreadable ({first_line(error)})"
            else:
                for later in checkpoints(folder)[::-1][: len(damaged)]:
                    discard(later)
                return *loaded, damaged
        damaged.append(f"{path}: {problem}")
    detail = "; ".join(damaged) if damaged else "none was saved"
    raise UserError(f"no valid checkpoint in {folder}: {detail}")


def newest_state(folder: Path, check: Check = _unchecked) -> dict[str, Any] | None:
    """The state in the newest checkpoint that is whole, without its tensors; None where there is none."""
    for path in reversed(checkpoints(folder)):
        if find_damage(path, FILES[1:]) is None:
            with suppress(UserError):  # `load_checkpoint` passes it over as well, and says so
                return read_state(path / FILES[1], check)
    return None


def read_state(file: Path, check: Check) -> dict[str, Any]:
    """The checked state in a checkpoint."""
    state = parse_json(read_text(file), f"'{file}'", parse_constant=_no_constant)
    check(state, file)
    return state


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number that a run saves")


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first; what else lies there is somebody's own."""
    named = (path for path in folder.glob("epoch-*") if re.fullmatch(CHECKPOINT, path.name))
    return sorted(path for path in named if path.is_dir() and not path.is_symlink() and _is_ours(path))


def _is_ours(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return not names or not names.isdisjoint((*FILES, MANIFEST))


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint; files of somebody's own in it stay, and so does its folder then."""
    with suppress(OSError):  # a folder under a file's name; not empty, or not there
        for name in (*FILES, MANIFEST):
            (checkpoint / name).unlink(missing_ok=True)
        checkpoint.rmdir()


def find_damage(checkpoint: Path, files: Sequence[str] = FILES) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
        wrong = [name for name in files if not matches(checkpoint / name, manifest[name])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable ({error})"
    return f"checksum of {', '.join(wrong)} does not match" if wrong else None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and plain values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            target: dict[str, Any] = tensors if isinstance(value, Tensor) else values
            target[f"{number}.{key}"] = value
    groups = [
        {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in state["param_groups"]
    ]
    return tensors, {"values": values, "groups": groups}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Load what `pack_optimizer` packed; the optimiser's options stay its own, and its learning rate is each step's."""
    entries: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **state["values"]}.items():
        number, key = name.split(".", 1)
        entries.setdefault(int(number), {})[key] = value
    own = optimizer.state_dict()["param_groups"]
    check_groups(state["groups"], own)
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": entries, "param_groups": own})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # In the weights' own memory layout: a fused step walks through all of them in one go.
                values[key] = torch.empty_like(parameter).copy_(shard_like(value, parameter))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # the same tensor, where it is one, as a captured step holds on to it


def check_groups(saved: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """Raise a ValueError where the optimiser that was saved had other options."""
    for theirs, ours in zip(saved, own, strict=True):
        for name in theirs.keys() & ours.keys() - {"lr", *_KERNELS}:
            value = list(ours[name]) if isinstance(ours[name], tuple) else ours[name]
            if theirs[name] != value:
                raise ValueError(f"the optimiser's {name} was {str(theirs[name])[:40]!r}, and is {value!r}")
