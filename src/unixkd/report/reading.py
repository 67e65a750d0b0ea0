"""Read and check one run folder; whatever is wrong is named with its file."""

from __future__ import annotations

import base64
import binascii
import json
import math
from pathlib import Path
from typing import Any

import yaml

from unixkd.errors import UserError
from unixkd.report.records import Epoch, Kept, Picture, Run, Selection

SCHEMA = 1
_COUNTS = ("scored", "teacher_forwarded", "teacher_cached", "trained", "evaluated")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Args:
        folder: a run folder that holds `summary.json`; the other files may be missing

    Raises:
        UserError: a file cannot be parsed or a value is missing or impossible
    """
    where = folder / "summary.json"
    data = _json(_text(where), str(where))
    schema = _value(data, "schema", where)
    if schema != SCHEMA:
        raise UserError(f"{where}: schema {schema!r}, this version reads schema {SCHEMA}: update unixkd")
    cost_1x = _number(data, "cost.relative_to_kd.backward_1x", where)
    config_text, config = _config(folder / "run.yaml")
    return Run(
        folder=folder,
        method=_string(data, "method", where),
        seed=_whole(data, "seed", where),
        epochs=_whole(data, "epochs", where),
        accuracy=_share(data, "accuracy.last", where, required=True),
        best_accuracy=_share(data, "accuracy.best", where),
        teacher_accuracy=_share(data, "accuracy.teacher", where),
        images={name: _whole(data, f"cost.images.{name}", where) for name in _COUNTS},
        parameters=_optional_whole(data, "parameters", where),
        agreement=_share(data, "agreement", where),
        calibration_error=_share(data, "calibration_error", where),
        reference=(
            _optional_whole(data, "cost.reference.epochs", where),
            _optional_whole(data, "cost.reference.images", where),
        ),
        cost_1x=cost_1x,
        cost_2x=_number(data, "cost.relative_to_kd.backward_2x", where),
        train_seconds=_number(data, "time.train_seconds", where),
        evaluate_seconds=_number(data, "time.evaluate_seconds", where),
        environment=_mapping(data, "environment"),
        history=_history(folder / "metrics.jsonl"),
        selection=_selection(folder / "selection.json"),
        config=config,
        config_text=config_text,
        is_teacher=folder.name == "teacher" and cost_1x is None,
    )


def _history(file: Path) -> tuple[Epoch, ...]:
    if not file.is_file():
        return ()
    lines = [line for line in enumerate(_text(file).split("\n"), start=1) if line[1].strip()]
    epochs: dict[int, Epoch] = {}
    for number, line in lines:
        where = f"{file} line {number}"
        try:
            data = _json(line, where)
        except UserError:
            if number == lines[-1][0]:
                break  # a killed run may have been writing its last line
            raise
        epoch = _epoch(data, where)
        epochs[epoch.epoch] = epoch  # a resumed run may repeat an epoch: the later line holds
    return tuple(epochs[number] for number in sorted(epochs))


def _epoch(data: dict[str, Any], where: str) -> Epoch:
    kept = None
    if isinstance(data.get("selection"), dict):
        shares = ("kept", "distinct", "hard_kept", "hard_dropped")
        scores = ("score_kept", "score_dropped")
        values = {name: _share(data, f"selection.{name}", where) for name in shares}
        values |= {name: _number(data, f"selection.{name}", where) for name in scores}
        visited = _share(data, "selection.visited", where)  # before 0.2, every epoch visited all
        if visited is not None and values["kept"] is not None:
            values["kept"] *= visited
        kept = Kept(**values)
    return Epoch(
        epoch=_whole(data, "epoch", where),
        accuracy=_share(data, "accuracy", where),
        agreement=_share(data, "agreement", where),
        cost_1x=_number(data, "cost.backward_1x", where),
        cost_2x=_number(data, "cost.backward_2x", where),
        kept=kept,
    )


def _selection(file: Path) -> Selection | None:
    if not file.is_file():
        return None
    data = _json(_text(file), str(file))
    bins, images = _value(data, "histogram.times_kept", file), _value(data, "histogram.images", file)
    for values in (bins, images):
        if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
            raise UserError(
                f"{file}: the histogram's 'times_kept' and 'images' must be lists of whole numbers"
            )
    if len(bins) != len(images):
        raise UserError(f"{file}: {len(bins)} times_kept for {len(images)} images in the histogram")
    most, least = _pictures(data, "most_kept", file), _pictures(data, "least_kept", file)
    return Selection(_whole(data, "epochs", file), tuple(bins), tuple(images), most, least)


def _pictures(data: dict[str, Any], name: str, file: Path) -> tuple[Picture, ...]:
    pictures = []
    for entry in data.get(name) or []:
        png = _string(entry, "png", file)
        try:
            is_png = base64.b64decode(png, validate=True).startswith(_PNG)
        except (binascii.Error, ValueError):
            is_png = False
        if not is_png:
            raise UserError(f"{file}: an image of '{name}' is no base64 PNG")
        label = entry.get("label")
        index, times = _whole(entry, "index", file), _whole(entry, "times", file)
        pictures.append(Picture(index, None if label is None else str(label), times, png))
    return tuple(pictures)


def _config(file: Path) -> tuple[str, dict[str, Any]]:
    if not file.is_file():
        return "", {}
    text = _text(file)
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no readable YAML: {str(error).splitlines()[0]}") from error
    return text, config if isinstance(config, dict) else {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is no readable JSON ({error}); repair it or remove the run") from error
    if not isinstance(data, dict):
        raise UserError(f"{where} holds no JSON object; repair it or remove the run")
    return data


def _value(data: Any, path: str, where: object, required: bool = True) -> Any:
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            if required:
                raise UserError(f"{where}: '{path}' is missing; repair it or remove the run")
            return None
        data = data[key]
    return data


def _number(data: Any, path: str, where: object, required: bool = False) -> float | None:
    value = _value(data, path, where, required)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: '{path}' must be a number or null, not {value!r}")
    return float(value) if math.isfinite(value) else None  # a diverged run writes NaN


def _share(data: Any, path: str, where: object, required: bool = False) -> float | None:
    value = _number(data, path, where, required)
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{where}: '{path}' must lie between 0 and 1, not {value:g}")
    return value


def _whole(data: Any, path: str, where: object) -> int:
    value = _value(data, path, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where}: '{path}' must be a whole number from 0, not {value!r}")
    return value


def _optional_whole(data: Any, path: str, where: object) -> int | None:
    return None if _value(data, path, where, required=False) is None else _whole(data, path, where)


def _string(data: Any, path: str, where: object) -> str:
    value = _value(data, path, where)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: '{path}' must be a text, not {value!r}")
    return value


def _mapping(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}
