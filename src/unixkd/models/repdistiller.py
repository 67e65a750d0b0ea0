"""Files of weights and checkpoint folders of other projects: which network, and which of a folder's files."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unixkd.config import ModelConfig
from unixkd.errors import UserError
from unixkd.models import published
from unixkd.models.registry import model_names
from unixkd.models.weights import SUFFIXES, read_content
from unixkd.names import local_path

_log = logging.getLogger("unixkd")
_OTHER_NAMES = {"mobile_half": "MobileNetV2"}  # their name of a network -> ours
_NUMBERED = re.compile(r"(?:ckpt_epoch_|student_)(\d+)(?:\.pth)?")
_LAST = re.compile(r"(?:.+_)?last\.pth|student_latest")
_BEST = re.compile(r"(?:.+_)?best\.pth|student_best")
_WITHIN = "ckpt"  # where the reference code of UNIX keeps the files of teacher_ARCHITECTURE


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is a file of weights, or a folder that holds one under a name that RepDistiller and others give.

    mdistiller's `latest`, `best` and `epoch_N` hold the teacher too; `student_latest` and so on are taken.
    """
    return bool(_checkpoints(Path(path)))


def as_weights(config: ModelConfig) -> ModelConfig:
    """The configuration with a checkpoint's architecture as its name and the file as its weights; others as they are.

    `ARCHITECTURE:FILE` is split. Which file was taken is logged; it is a warning where there is only the best
    epoch's, as the test set has chosen that. Raises UserError where the architecture or the file is not clear.

    >>> as_weights(ModelConfig("resnet8")).weights is None
    True
    """
    config = split(config)
    if not config.name or config.name in model_names() or not is_checkpoint(config.name):
        return config
    file = _last_checkpoint(Path(config.name))
    name = _architecture(file)
    if _BEST.fullmatch(file.name):
        _log.warning(
            "'%s' are the weights of the epoch that was best on its test set: taken as %s", file, name
        )
    else:
        _log.info("'%s': the last epoch's weights, taken as %s", file, name)
    return replace(config, name=name, weights=str(file))


def split(config: ModelConfig) -> ModelConfig:
    """The configuration with the file of `ARCHITECTURE:FILE` as its weights; others, and own code, as they are.

    >>> split(ModelConfig("timm:resnet18:best.pth")).weights
    'best.pth'
    """
    if config.weights is not None or Path(config.name).exists():
        return config
    for colon in re.finditer(":(?=.)", config.name):
        name, file = config.name[: colon.start()], config.name[colon.end() :]
        # One of the family has nothing but a file after its colon; another's name may itself hold colons.
        exists = name.startswith(published.PREFIXES) and local_path(file).is_file()
        is_name = re.fullmatch(r"(?!.*\.py(:|$))[\w.:-]+", name) and f"{name}:" not in published.PREFIXES
        if name in model_names() or (is_name and (exists or file.lower().endswith(SUFFIXES))):
            return replace(config, name=name, weights=file)
    return config


def _rank(name: str) -> tuple[int, int] | None:
    """How late a checkpoint's weights are by its name: the last epoch's, a numbered one's, the best one's."""
    if _LAST.fullmatch(name):
        return 2, 0
    if match := _NUMBERED.fullmatch(name):
        return 1, int(match[1])
    return (0, 0) if _BEST.fullmatch(name) else None


def _checkpoints(path: Path) -> dict[Path, tuple[int, int]]:
    """The rank of the file itself, or the ranks of a folder's files that are named as checkpoints."""
    if path.is_file() and path.name.lower().endswith(SUFFIXES):
        return {path: _rank(path.name) or (0, 0)}
    folders = [path, path / _WITHIN] if path.is_dir() else []
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir())] or [path]
    return {file: rank for file in files if file.is_file() and (rank := _rank(file.name))}


def _last_checkpoint(path: Path) -> Path:
    ranks = _checkpoints(path)
    latest = [file for file, rank in ranks.items() if rank == max(ranks.values())]
    if len(latest) > 1:
        raise UserError(
            f"'{path}' holds several networks ({', '.join(file.name for file in latest)}): name one of the files"
        )
    return latest[0]


def _architecture(file: Path) -> str:
    """The network that the folder or the file is named after, else the one that the file itself names."""
    place = file.absolute().parent
    folder = (place.parent if place.name == _WITHIN else place).name
    # RepDistiller calls a student's folder S:STUDENT_T:TEACHER_…, the reference code a teacher's teacher_ARCHITECTURE
    texts = (re.sub("^(S:|teacher_|student_)", "", folder), file.name)
    names = sorted({name for text in texts if (name := _longest_name(text))}) or _named_inside(file)
    if len(names) == 1:
        return names[0]
    problem = f"does not begin with one of {', '.join(model_names())}"
    if names:
        problem = f"names {' and '.join(names)}"
    raise UserError(
        f"'{file}': which network is it? '{folder}' {problem}; give --teacher ARCHITECTURE --teacher.weights {file} "
        "(and so for student and model)"
    )


def _named_inside(file: Path) -> list[str]:
    """The network of the family that a checkpoint names as its `arch`."""
    content = read_content(file)
    name = content.get("arch") if isinstance(content, Mapping) else None
    return [name] if name in model_names() else []


def _longest_name(text: str) -> str | None:
    """Our name of the network that a text begins with as a whole word, the longest if there are several.

    >>> _longest_name("resnet32x4_vanilla"), _longest_name("mobile_half_1"), _longest_name("resnet8x2_vanilla")
    ('resnet32x4', 'MobileNetV2', None)
    """
    names = {name: name for name in model_names()} | _OTHER_NAMES
    matches = [name for name in names if re.match(re.escape(name) + r"(?![0-9A-Za-z])", text)]
    return names[max(matches, key=len)] if matches else None
