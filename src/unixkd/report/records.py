"""A run folder as a report reads it: its records, checked; whatever is wrong is named with its file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from unixkd.config import check_types
from unixkd.errors import UserError, is_unchanged, parse_json, parse_yaml, read_text, shown
from unixkd.run_files import SCHEMA, Disagreements, Epoch, Planned, RelativeCost, Selection, Summary

R = TypeVar("R")

READ = ("summary.json", "run.yaml", "plan.json", "metrics.jsonl", "selection.json", "disagreements.json")
"""The files of a run that a report reads."""
SETTING = ("data", "student", "teacher")
"""What runs have to be alike in to be averaged and compared."""
_TOLD = ("size", "limit", "holdout", "evaluate_on", "weights", "pretrained")


class Command(NamedTuple):
    """A command that makes runs of a report again: which runs, and the text to be pasted into a shell."""

    what: str
    text: str


@dataclass(frozen=True)
class Run:
    """One finished run.

    Args:
        folder: where it was read from
        method: as in its summary, followed by the folder where two runs would be one otherwise
        summary: its figures
        planned: what it was expected to cost; None in a run of an early version, and without a teacher
        history: one entry per epoch, in order
        selection: how often its images were kept; None where its method keeps all
        disagreements: on which images student and teacher disagree; None without a teacher, and in early versions
        config: the resolved configuration, `config_text` as it was written
        is_teacher: the run that trained the teacher, listed apart
        setting: its data, student and teacher in words, empty where it does not say
        is_checked: its files have the checksums that it left at its end; runs of earlier versions left none
    """

    folder: Path
    method: str
    summary: Summary
    planned: Planned | None = None
    history: tuple[Epoch, ...] = ()
    selection: Selection | None = None
    disagreements: Disagreements | None = None
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    is_teacher: bool = False
    setting: tuple[str, ...] = ("", "", "")
    is_checked: bool = False

    @property
    def seed(self) -> int:
        """The seed of everything that is drawn in it."""
        return self.summary.seed

    @property
    def is_plain_kd(self) -> bool:
        """Whether it is kd by name or, under a label, by configuration: as long as what costs are relative to."""
        method, epochs = self.config.get("method"), self.summary.cost.reference.epochs
        values = method.values() if isinstance(method, dict) else [self.summary.method]
        changed = {*map(str, values)} - {"None", "kd"}
        return self.summary.method == "kd" or (not changed and epochs in (None, self.summary.epochs))

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy after the last epoch, 0..1; None without labels."""
        return self.summary.accuracy.last

    def cost(self, backward: int) -> float | None:
        """Training FLOPs over those of plain KD, a backward counted as 1 or 2 forwards; None without a teacher."""
        relative = self.summary.cost.relative_to_kd or RelativeCost()
        return relative.backward_1x if backward == 1 else relative.backward_2x

    def flops(self, backward: int) -> float | None:
        """Training FLOPs, a backward counted as 1 or 2 forwards; None where they were not written."""
        return self.summary.cost.flops.training(backward)

    def kd_flops(self, backward: int) -> float | None:
        """Training FLOPs of the plain KD that costs are relative to."""
        ours, relative = self.flops(backward), self.cost(backward)
        return ours / relative if ours and relative else None


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Args:
        folder: a run folder that holds `summary.json`; the other files may be missing

    Raises:
        UserError: a file cannot be parsed or a value is missing or impossible
    """
    where = folder / "summary.json"
    values = parse(read_text(where), where)
    if (schema := values.get("schema")) != SCHEMA:
        raise UserError(f"{where}: schema {schema!r}, this version reads schema {SCHEMA}: update unixkd")
    summary = convert(values, Summary, where)
    config_text, config = _config(folder / "run.yaml")
    return Run(
        folder,
        shown(summary.method),
        summary,
        planned=_read(folder / "plan.json", Planned),
        history=_history(folder / "metrics.jsonl"),
        selection=_read(folder / "selection.json", Selection),
        disagreements=_read(folder / "disagreements.json", Disagreements),
        config=config,
        config_text=config_text,
        is_teacher=folder.name == "teacher" and summary.cost.relative_to_kd is None,
        setting=(
            _in_words(config.get("data"), summary.cost.reference.images, "images"),
            _in_words(config.get("student", config.get("model")), summary.parameters, "parameters"),
            _in_words(config.get("teacher")),
        ),
        is_checked=bool(is_unchanged(where)),
    )


def _in_words(values: object, size: float | None = None, unit: str = "") -> str:
    """A data set or a network: its name, those options that are set, its size; empty where nothing is known."""
    values = values if isinstance(values, dict) else {}
    options = [f"{key} {values[key]}" for key in _TOLD if values.get(key) not in (None, False, "auto")]
    words = [str(values.get("name") or ""), *options, f"{size:,} {unit}" if size else ""]
    return shown(", ".join(filter(None, words)))


def convert(values: dict[str, Any], kind: type[R], where: object) -> R:
    """The record that these values are.

    Raises:
        UserError: a field is missing, of another type or out of range
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        named = f"'{path.rstrip('`')}': " if path else ""
        raise UserError(f"{where}: {named}{what}; repair it or remove the run") from None


def _read(file: Path, kind: type[R]) -> R | None:
    return convert(parse(read_text(file), file), kind, file) if file.is_file() else None


def _history(file: Path) -> tuple[Epoch, ...]:
    if not file.is_file():
        return ()
    lines = read_text(file).split("\n")
    epochs: dict[int, Epoch] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            values = parse(line, where)
        except UserError:
            if number == len(lines):
                break  # it has no end: a killed run was writing it
            raise
        epoch = convert(values, Epoch, where)
        epochs[epoch.epoch] = epoch  # a resumed run may repeat an epoch: the later line holds
    return tuple(epochs[number] for number in sorted(epochs))


def _config(file: Path) -> tuple[str, dict[str, Any]]:
    if not file.is_file():
        return "", {}
    text = read_text(file, "YAML")
    config = parse_yaml(text, file, "is no readable YAML")
    if not isinstance(config, dict):
        return text, {}
    check_types(config, file)
    return text, config


def parse(text: str, where: object) -> dict[str, Any]:
    """The object that a JSON text holds, without what is null or, as in a run that diverged, not finite."""
    hooks = {"parse_float": _finite, "parse_constant": _finite, "object_hook": _known}
    try:
        return parse_json(text, where, "is no readable JSON", **hooks)
    except UserError as error:
        raise UserError(f"{error}; repair it or remove the run") from None


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None
