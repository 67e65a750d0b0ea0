"""Checkpoint folders of RepDistiller and mdistiller: which network, and which of their files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from unixkd.config import ModelConfig
from unixkd.errors import UserError
from unixkd.models.registry import model_names

_log = logging.getLogger("unixkd")
_ALSO = {"mobile_half": "MobileNetV2"}
"""Their name of a network -> ours."""
_NUMBERED = re.compile(r"(?:ckpt_epoch_|student_)(\d+)(?:\.pth)?")
_LAST = re.compile(r".+_last\.pth|student_latest")
_BEST = re.compile(r".+_best\.pth|student_best")


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is a file they write, or a folder that holds one.

    mdistiller's `latest`, `best` and `epoch_N` hold the teacher too; `student_latest` and so on are taken.
    """
    path = Path(path)
    return bool(_files(path) if path.is_dir() else path.is_file() and _is_known(path.name))


def as_weights(config: ModelConfig) -> ModelConfig:
    """The configuration with a checkpoint's architecture as its name and the file as its weights.

    Any other configuration is returned as it is. Which file was taken is logged; it is a warning where there
    is only the best epoch's, as the test set has chosen that.

    Raises:
        UserError: the architecture or the file is not clear

    >>> as_weights(ModelConfig("resnet8")).weights is None
    True
    """
    if not config.name or config.name in model_names() or not is_checkpoint(config.name):
        return config
    path = Path(config.name)
    file = _chosen(path) if path.is_dir() else path
    name = _architecture(file)
    if _BEST.fullmatch(file.name):
        _log.warning(
            "'%s' are the weights of the epoch that was best on its test set: taken as %s", file, name
        )
    else:
        _log.info("'%s': the last epoch's weights, taken as %s", file, name)
    return replace(config, name=name, weights=str(file))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and _is_known(path.name))


def _is_known(filename: str) -> bool:
    return any(pattern.fullmatch(filename) for pattern in (_NUMBERED, _LAST, _BEST))


def _chosen(folder: Path) -> Path:
    """The last epoch's file, else the best one's."""
    files = _files(folder)
    last = [path for path in files if _LAST.fullmatch(path.name)]
    numbered = {path: int(match[1]) for path in files if (match := _NUMBERED.fullmatch(path.name))}
    latest = [path for path, number in numbered.items() if number == max(numbered.values())]
    chosen = last or latest or files
    if len(chosen) > 1:
        raise UserError(
            f"'{folder}' holds several networks ({', '.join(path.name for path in chosen)}): name one of the files"
        )
    return chosen[0]


def _architecture(file: Path) -> str:
    """The network that the folder or the file is named after."""
    folder = file.absolute().parent.name
    # RepDistiller calls a student's folder S:STUDENT_T:TEACHER_…
    found = {name for text in (folder.removeprefix("S:"), file.name) if (name := _longest(text)) is not None}
    if len(found) == 1:
        return found.pop()
    wrong = (
        f"names {' and '.join(sorted(found))}"
        if found
        else f"does not begin with one of {', '.join(model_names())}"
    )
    raise UserError(
        f"'{file}': which network is it? '{folder}' {wrong}; give --teacher ARCHITECTURE --teacher.weights {file} "
        "(and so for student and model)"
    )


def _longest(text: str) -> str | None:
    """The longest known name that a text begins with, as a whole word.

    >>> _longest("resnet32x4_vanilla"), _longest("wrn_40_2_cifar100_lr_0.05"), _longest("resnet8x2_vanilla")
    ('resnet32x4', 'wrn_40_2', None)
    """
    names: Iterable[str] = (*model_names(), *_ALSO)
    known = [name for name in names if re.match(re.escape(name) + r"(?![0-9A-Za-z])", text)]
    longest = max(known, key=len, default=None)
    return None if longest is None else _ALSO.get(longest, longest)
