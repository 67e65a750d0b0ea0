"""The teacher of a run that its folder names: taken where it lies here, runs no code, and is what it was."""

from __future__ import annotations

from pathlib import Path

from unixkd.config import ModelConfig, read_yaml
from unixkd.data.load import Data
from unixkd.errors import UserError, check_unchanged, first_line
from unixkd.models.card import PixelModel
from unixkd.models.folder import is_run_folder, read_card
from unixkd.models.registry import model_names
from unixkd.models.repdistiller import as_weights, split
from unixkd.names import is_code, local_path
from unixkd.training.checkpoint import newest_state
from unixkd.training.fingerprint import teacher_fingerprint
from unixkd.training.resolved import build_network

_LIBRARIES = ("timm:", "torchvision:")
"""Whose networks are made without asking anybody, where a local file has the weights."""


class LeftOutError(UserError):
    """Why the teacher that a run folder names is not taken."""


def teacher_of_run(folder: Path, data: Data) -> tuple[PixelModel, str] | None:
    """The teacher of a run, for its data's classes, and how run.yaml names it; None where the run had none.

    A run folder may be anybody's: nothing that it names is downloaded or run as code.

    Raises:
        LeftOutError: there was one, but it is not here, or not known to be what it was
    """
    path = folder / "run.yaml"
    if not path.is_file():
        return None
    try:
        check_unchanged(path)
        named = read_yaml(path).get("teacher")
        if named is None:
            return None
        config = local_teacher(ModelConfig(**named))
        then = known_fingerprint(folder)
        teacher = build_network(config, data, "teacher")
        check_same(then, teacher)
    except LeftOutError:
        raise
    except (UserError, TypeError, AttributeError, ValueError) as error:
        raise LeftOutError(first_line(error)) from error
    return teacher, str(named["name"])


def local_teacher(config: ModelConfig) -> ModelConfig:
    """The configuration where it means local weights of a network that needs no code; else raises `LeftOutError`."""
    if is_code(config.name) or config.code is not None:
        raise LeftOutError(f"it is code, {config.code or config.name}, which a folder cannot name to be run")
    if is_run_folder(config.name):
        if is_code(name := read_card(config.name).name):
            raise LeftOutError(f"it is code, {name}, which a folder cannot name to be run")
        return config
    weights = as_weights(split(config))
    is_known = weights.name in model_names() or weights.name.startswith(_LIBRARIES)
    if config.pretrained or config.name.startswith("transformers:"):
        raise LeftOutError(f"{config.name} may have to be downloaded, which a folder cannot ask for")
    if weights.weights is None or not is_known or not local_path(weights.weights).is_file():
        raise LeftOutError(f"{weights.weights or config.name} is not here")
    return weights


def known_fingerprint(folder: Path) -> dict[str, str]:
    """What the run's newest checkpoint says of its teacher, by name; raises `LeftOutError` where it says nothing."""
    networks = (newest_state(folder / "checkpoints") or {}).get("networks")
    if not isinstance(networks, dict) or not networks.get("the teacher's weights"):
        raise LeftOutError("no checkpoint says which weights it had")
    prefix = "the teacher's "
    return {name.removeprefix(prefix): str(n) for name, n in networks.items() if name.startswith(prefix)}


def check_same(then: dict[str, str], teacher: PixelModel) -> None:
    """Raise `LeftOutError` where a teacher is not what it was."""
    now = teacher_fingerprint(teacher)
    if changed := [name for name in {**now, **then} if now.get(name) != then.get(name)]:
        verb = "is" if changed in (["mean"], ["std"], ["size"]) else "are"
        raise LeftOutError(f"its {' and '.join(changed)} {verb} not what the run asked")
