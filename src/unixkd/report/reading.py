"""Read and check one run folder; whatever is wrong is named with its file."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import yaml

from unixkd.errors import UserError
from unixkd.report.records import Epoch, Histogram, Kept, Picture, Planned, Run, Selection
from unixkd.report.values import (
    counts,
    counts_or_none,
    entry,
    mapping,
    number,
    parse_json,
    read_text,
    share,
    string,
    whole,
    whole_or_none,
)

SCHEMA = 1
_COUNTS = ("scored", "teacher_forwarded", "teacher_cached", "trained", "evaluated")
_PLANNED = ("scored", "teacher_forwarded", "trained")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Args:
        folder: a run folder that holds `summary.json`; the other files may be missing

    Raises:
        UserError: a file cannot be parsed or a value is missing or impossible
    """
    where = folder / "summary.json"
    data = parse_json(read_text(where), str(where))
    schema = entry(data, "schema", where)
    if schema != SCHEMA:
        raise UserError(f"{where}: schema {schema!r}, this version reads schema {SCHEMA}: update unixkd")
    cost_1x = number(data, "cost.relative_to_kd.backward_1x", where)
    config_text, config = _config(folder / "run.yaml")
    return Run(
        folder=folder,
        method=string(data, "method", where),
        seed=whole(data, "seed", where),
        epochs=whole(data, "epochs", where),
        accuracy=share(data, "accuracy.last", where, required=True),
        best_accuracy=share(data, "accuracy.best", where),
        teacher_accuracy=share(data, "accuracy.teacher", where),
        images={name: whole(data, f"cost.images.{name}", where) for name in _COUNTS},
        parameters=whole_or_none(data, "parameters", where),
        agreement=share(data, "agreement", where),
        calibration_error=share(data, "calibration_error", where),
        reference=(
            whole_or_none(data, "cost.reference.epochs", where),
            whole_or_none(data, "cost.reference.images", where),
        ),
        cost_1x=cost_1x,
        cost_2x=number(data, "cost.relative_to_kd.backward_2x", where),
        flops_1x=_training_flops(data, where, 1),
        flops_2x=_training_flops(data, where, 2),
        planned=_planned(folder / "plan.json"),
        train_seconds=number(data, "time.train_seconds", where),
        evaluate_seconds=number(data, "time.evaluate_seconds", where),
        environment=mapping(data, "environment"),
        history=_history(folder / "metrics.jsonl"),
        selection=_selection(folder / "selection.json"),
        config=config,
        config_text=config_text,
        is_teacher=folder.name == "teacher" and cost_1x is None,
    )


def _training_flops(data: dict[str, Any], where: Path, backward: int) -> float | None:
    """FLOPs of the whole run with a backward counted as so many forwards; None where they were not written."""
    names = ("scoring", "refresh", "teacher", "student_forward")
    forward = {name: number(data, f"cost.flops.{name}", where) for name in names}
    if forward["student_forward"] is None:
        return None
    return sum(flops or 0 for flops in forward.values()) + backward * forward["student_forward"]


def _planned(file: Path) -> Planned | None:
    """What the run was expected to cost; None in a run of an earlier version, and without a teacher."""
    if not file.is_file():
        return None
    data = parse_json(read_text(file), str(file))
    cost = [number(data, f"relative_to_kd.backward_{times}x", file, required=True) or 0.0 for times in (1, 2)]
    images = {name: whole(data, f"images.{name}", file) for name in _PLANNED}
    return Planned(data.get("exact") is True, cost[0], cost[1], images)


def _history(file: Path) -> tuple[Epoch, ...]:
    if not file.is_file():
        return ()
    lines = [line for line in enumerate(read_text(file).split("\n"), start=1) if line[1].strip()]
    epochs: dict[int, Epoch] = {}
    for line_number, line in lines:
        where = f"{file} line {line_number}"
        try:
            data = parse_json(line, where)
        except UserError:
            if line_number == lines[-1][0]:
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
        values = {name: share(data, f"selection.{name}", where) for name in shares}
        values |= {name: number(data, f"selection.{name}", where) for name in scores}
        visited = share(data, "selection.visited", where)  # before 0.2, every epoch visited all
        if visited is not None and values["kept"] is not None:
            values["kept"] *= visited
        kept = Kept(**values, histogram=_histogram(data["selection"].get("histogram"), where))
    return Epoch(
        epoch=whole(data, "epoch", where),
        accuracy=share(data, "accuracy", where),
        agreement=share(data, "agreement", where),
        cost_1x=number(data, "cost.backward_1x", where),
        cost_2x=number(data, "cost.backward_2x", where),
        kept=kept,
    )


def _histogram(data: Any, where: str) -> Histogram | None:
    """The epoch's images by their score; None in a run of an earlier version, and where nothing was scored."""
    if not isinstance(data, dict):
        return None
    low, high = (number(data, name, where, required=True) for name in ("low", "high"))
    kept, dropped = (counts(data, name, where) for name in ("kept", "dropped"))
    hard = [counts_or_none(data, name, where) for name in ("kept_hard", "dropped_hard")]
    lists = [one for one in (kept, dropped, *hard) if one is not None]
    if low is None or high is None or not low < high or len({len(one) for one in lists}) > 1 or not kept:
        raise UserError(f"{where}: the histogram's range or lists do not fit together")
    remembered = data.get("remembered") is True
    return Histogram(string(data, "score", where), low, high, kept, dropped, hard[0], hard[1], remembered)


def _selection(file: Path) -> Selection | None:
    if not file.is_file():
        return None
    data = parse_json(read_text(file), str(file))
    bins, images = (counts(data, f"histogram.{name}", file) for name in ("times_kept", "images"))
    if len(bins) != len(images):
        raise UserError(f"{file}: {len(bins)} times_kept for {len(images)} images in the histogram")
    shown = (_pictures(data, name, file) for name in ("most_kept", "least_kept", "most_mixed"))
    return Selection(whole(data, "epochs", file), bins, images, *shown)


def _pictures(data: dict[str, Any], name: str, file: Path) -> tuple[Picture, ...]:
    pictures = []
    for picture in data.get(name) or []:
        png = string(picture, "png", file)
        try:
            is_png = base64.b64decode(png, validate=True).startswith(_PNG)
        except (binascii.Error, ValueError):
            is_png = False
        if not is_png:
            raise UserError(f"{file}: an image of '{name}' is no base64 PNG")
        label = picture.get("label")
        index, times = whole(picture, "index", file), whole(picture, "times", file)
        mixed = number(picture, "mixed", file)
        pictures.append(Picture(index, None if label is None else str(label), times, png, mixed))
    return tuple(pictures)


def _config(file: Path) -> tuple[str, dict[str, Any]]:
    if not file.is_file():
        return "", {}
    text = read_text(file)
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no readable YAML: {str(error).splitlines()[0]}") from error
    return text, config if isinstance(config, dict) else {}
