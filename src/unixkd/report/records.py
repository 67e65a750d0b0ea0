"""A run folder as a report reads it: records of checked values; whatever is wrong is named with its file."""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unixkd.errors import UserError, first_line


@dataclass(frozen=True)
class Histogram:
    """An epoch's images by their score, in bins of equal width.

    Args:
        score: which score it is
        low: where the first bin begins
        high: where the last one ends
        kept: kept images in each bin
        dropped: dropped images in each bin
        kept_hard: of those kept, the ones the student got wrong; None without labels
        dropped_hard: of those dropped, the ones the student got wrong
        remembered: the epoch's images were chosen before it by scores of their last visits
    """

    score: str
    low: float
    high: float
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    kept_hard: tuple[int, ...] | None = None
    dropped_hard: tuple[int, ...] | None = None
    remembered: bool = False


@dataclass(frozen=True)
class Kept:
    """What the selection kept in one epoch; every field is a mean or a share, None where unknown.

    Args:
        kept: share of the training images that was kept, 0..1
        distinct: share of the training images used at least once in the epoch, 0..1
        score_kept: mean score of the kept images
        score_dropped: mean score of the dropped images
        hard_kept: share of the kept images that the student got wrong, 0..1
        hard_dropped: share of the dropped images that the student got wrong, 0..1
        histogram: the epoch's images by their score
    """

    kept: float | None = None
    distinct: float | None = None
    score_kept: float | None = None
    score_dropped: float | None = None
    hard_kept: float | None = None
    hard_dropped: float | None = None
    histogram: Histogram | None = None


@dataclass(frozen=True)
class Epoch:
    """One line of `metrics.jsonl`; shares are 0..1 and None where nothing was evaluated.

    Args:
        epoch: number of the epoch, from 1
        accuracy: top-1 accuracy after the epoch
        agreement: share of evaluated images where student and teacher agree
        cost_1x: training FLOPs so far over those of the reference KD run, backward = 1 forward
        cost_2x: the same with backward = 2 forwards
        kept: what the selection kept in this epoch
    """

    epoch: int
    accuracy: float | None = None
    agreement: float | None = None
    cost_1x: float | None = None
    cost_2x: float | None = None
    kept: Kept | None = None


@dataclass(frozen=True)
class Picture:
    """A training image that was kept very often or very rarely, or mixed strongly.

    Args:
        index: its position in the training set
        label: its class, None where there is none
        times: how often it was kept
        png: what it looks like, base64
        mixed: how many images' worth its rows gave to their partners in the whole run; None where unknown
    """

    index: int
    label: str | None
    times: int
    png: str
    mixed: float | None = None


@dataclass(frozen=True)
class Selection:
    """How often the images of a run were kept: `images[i]` of them `times_kept[i]` times."""

    epochs: int
    times_kept: tuple[int, ...]
    images: tuple[int, ...]
    most_kept: tuple[Picture, ...] = ()
    least_kept: tuple[Picture, ...] = ()
    most_mixed: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Planned:
    """What was worked out when the run started, before anything was measured.

    Args:
        exact: whether it must come out so; else it is what was expected
        cost_1x: training FLOPs over those of plain KD, backward = 1 forward
        cost_2x: the same with backward = 2 forwards
        images: scored, teacher_forwarded, trained
    """

    exact: bool
    cost_1x: float
    cost_2x: float
    images: dict[str, int]


@dataclass(frozen=True)
class Command:
    """A command that makes runs of a report again.

    Args:
        what: which runs
        text: to be pasted into a shell
    """

    what: str
    text: str


@dataclass(frozen=True)
class Run:
    """One finished run; accuracies, agreement and costs are fractions, None where unknown.

    Args:
        folder: where it was read from
        method: name of the method, or a label like `kd@unix`
        images: counted images: scored, teacher_forwarded, teacher_cached, trained, evaluated
        reference: epochs and images per epoch of the plain KD run that costs are relative to
        cost_1x: training FLOPs over those of plain KD, backward = 1 forward
        cost_2x: the same with backward = 2 forwards
        flops_1x: training FLOPs, backward = 1 forward
        flops_2x: the same with backward = 2 forwards
        planned: what it was expected to cost
        history: one entry per epoch, in order
        config: the resolved configuration, `config_text` as it was written
        is_teacher: the run that trained the teacher, listed apart
    """

    folder: Path
    method: str
    seed: int
    epochs: int
    accuracy: float | None
    best_accuracy: float | None
    teacher_accuracy: float | None
    images: dict[str, int]
    parameters: int | None = None
    agreement: float | None = None
    calibration_error: float | None = None
    reference: tuple[int | None, int | None] = (None, None)
    cost_1x: float | None = None
    cost_2x: float | None = None
    flops_1x: float | None = None
    flops_2x: float | None = None
    planned: Planned | None = None
    train_seconds: float | None = None
    evaluate_seconds: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    history: tuple[Epoch, ...] = ()
    selection: Selection | None = None
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    is_teacher: bool = False

    @property
    def kd_flops_1x(self) -> float | None:
        """Training FLOPs of the plain KD that costs are relative to, backward = 1 forward."""
        return self.flops_1x / self.cost_1x if self.flops_1x and self.cost_1x else None

    @property
    def kd_flops_2x(self) -> float | None:
        """The same with backward = 2 forwards."""
        return self.flops_2x / self.cost_2x if self.flops_2x and self.cost_2x else None


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
        raise UserError(f"{file} is no readable YAML: {first_line(error)}") from error
    return text, config if isinstance(config, dict) else {}


def read_text(file: Path) -> str:
    """A file's text."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def parse_json(text: str, where: str) -> dict[str, Any]:
    """The object that a JSON text holds."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is no readable JSON ({error}); repair it or remove the run") from error
    if not isinstance(data, dict):
        raise UserError(f"{where} holds no JSON object; repair it or remove the run")
    return data


def entry(data: Any, path: str, where: object, required: bool = True) -> Any:
    """What stands at a dotted path; None where nothing has to."""
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            if required:
                raise UserError(f"{where}: '{path}' is missing; repair it or remove the run")
            return None
        data = data[key]
    return data


def number(data: Any, path: str, where: object, required: bool = False) -> float | None:
    """A number, None where there is none or it is not finite."""
    value = entry(data, path, where, required)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: '{path}' must be a number or null, not {value!r}")
    return float(value) if math.isfinite(value) else None  # a diverged run writes NaN


def share(data: Any, path: str, where: object, required: bool = False) -> float | None:
    """A number in [0, 1], or None."""
    value = number(data, path, where, required)
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{where}: '{path}' must lie between 0 and 1, not {value:g}")
    return value


def whole(data: Any, path: str, where: object) -> int:
    """A whole number from 0."""
    value = entry(data, path, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where}: '{path}' must be a whole number from 0, not {value!r}")
    return value


def whole_or_none(data: Any, path: str, where: object) -> int | None:
    """A whole number from 0, or None."""
    return None if entry(data, path, where, required=False) is None else whole(data, path, where)


def string(data: Any, path: str, where: object) -> str:
    """A text that is not empty."""
    value = entry(data, path, where)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: '{path}' must be a text, not {value!r}")
    return value


def mapping(data: dict[str, Any], key: str) -> dict[str, Any]:
    """An object; empty where there is none."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def counts(data: Any, path: str, where: object) -> tuple[int, ...]:
    """A list of whole numbers from 0."""
    values = entry(data, path, where)
    if not isinstance(values, list) or not all(type(one) is int and one >= 0 for one in values):
        raise UserError(f"{where}: '{path}' must be a list of whole numbers from 0")
    return tuple(values)


def counts_or_none(data: Any, path: str, where: object) -> tuple[int, ...] | None:
    """A list of whole numbers from 0, or None."""
    return None if entry(data, path, where, required=False) is None else counts(data, path, where)
