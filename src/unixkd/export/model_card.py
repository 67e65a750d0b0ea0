"""The model card, README.md in the format of the Hugging Face Hub; a figure that the run does not hold has no line."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from unixkd.config import flatten, read_yaml
from unixkd.errors import UserError
from unixkd.export.export import Artefact, writing
from unixkd.export.verify import ATOL, RTOL
from unixkd.models.card import ModelCard, PixelModel
from unixkd.models.folder import is_run_folder, read_card
from unixkd.names import is_code, run_words
from unixkd.run_files import write

MOST_NAMES = 20
"""So many class names are listed; more are in config.json."""


@dataclass(frozen=True)
class Publication:
    """What nobody but its author knows: licences of weights and data, OWNER/NAME on the Hub; None: not stated."""

    licence: str | None = None
    data_licence: str | None = None
    repository: str | None = None


def write_model_card(
    out: Path,
    student: PixelModel,
    facts: Facts,
    artefacts: Sequence[Artefact],
    publication: Publication,
    checked_on: str,
    size: int,
) -> Path:
    """Write README.md beside the artefacts; every figure is one of the run's or of their verification.

    Args:
        out: the folder of the artefacts
        student: the model
        facts: of its run
        artefacts: that were verified
        publication: licences and repository
        checked_on: the images they were verified on, in words
        size: side of the square images that `torch` and `onnx` take, in pixels
    """
    card, path = student.card, out / "README.md"
    names = ["config.json lists them"] if len(card.class_names or ()) > MOST_NAMES else card.class_names
    page = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    template = files("unixkd.export").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    text = page.from_string(template).render(
        head=yaml.safe_dump(front_matter(card, facts, publication), sort_keys=False, allow_unicode=True),
        title=title(card, facts),
        introduction=introduction(card, facts, sum(each.numel() for each in student.parameters())),
        place=out.resolve().name,
        code=f', code="{short(card)}"' if is_code(card.name) else "",  # does not travel with the weights
        classes=f": {', '.join(names)}" if names else "; they have no names",
        mean=", ".join(f"{value:.4g}" for value in card.mean),
        std=", ".join(f"{value:.4g}" for value in card.std),
        atol=f"{ATOL:g}",
        rtol=f"{RTOL:g}",
        card=card,
        facts=facts,
        artefacts=artefacts,
        publication=publication,
        checked_on=checked_on,
        size=size,
    )
    with writing(out):
        write(path, text)
    return path


def front_matter(card: ModelCard, facts: Facts, publication: Publication) -> dict[str, Any]:
    """What the Hub reads."""
    values: dict[str, Any] = {"license": publication.licence} if publication.licence else {}
    values |= {"library_name": "unixkd", "pipeline_tag": "image-classification"}
    values["tags"] = ["unixkd", *(["knowledge-distillation"] if facts.teacher else [])]
    if facts.hub_data:
        values["datasets"] = [facts.hub_data]
    share = facts.number("accuracy.last")
    if share is None:
        return values
    name = facts.data or "unnamed"
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": name, "type": facts.hub_data or name},
        "metrics": [{"type": "accuracy", "name": "accuracy, last epoch", "value": share}],
    }
    return values | {
        "metrics": ["accuracy"],
        "model-index": [{"name": title(card, facts), "results": [result]}],
    }


def title(card: ModelCard, facts: Facts) -> str:
    """The student, and where it learnt from."""
    return f"{short(card)}, distilled from {facts.teacher}" if facts.teacher else short(card)


def introduction(card: ModelCard, facts: Facts, parameters: int) -> str:
    """What the model is, in a sentence or two."""
    data = f" of `{facts.data}`" if facts.data else ""
    text = (
        f"An image classifier: `{short(card)}`, {parameters:,} parameters, {card.num_classes} classes{data}."
    )
    method = facts.config.get("method.name")
    if facts.teacher:
        text += f" It was distilled from a `{facts.teacher}`"
        text += f" by the method `{method}` of unixkd." if method else " by unixkd."
    elif facts.config:
        text += " It was trained on labels by unixkd."
    return text


def short(card: ModelCard) -> str:
    """The network's name; of one that means a file its last part, as paths are nobody else's business."""
    prefix, colon, place = card.name.rpartition(":")
    if is_code(card.name):
        return f"{Path(prefix).name}:{place}"
    return f"{prefix}{colon}{Path(place).name}" if Path(place).is_absolute() else card.name


@dataclass(frozen=True)
class Facts:
    """A run's result and configuration, keys dotted: `summary["accuracy.last"]`, `config["data.name"]`."""

    summary: dict[str, Any]
    config: dict[str, Any]

    def number(self, key: str) -> float | None:
        """A number of the summary."""
        value = self.summary.get(key)
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return value if known else None

    def numbers(self, keys: Mapping[str, str]) -> dict[str, float]:
        """By their names those numbers that the summary has."""
        return {name: value for name, key in keys.items() if (value := self.number(key)) is not None}

    @property
    def data(self) -> str | None:
        """The data's name; of a folder or file the last part of its path."""
        name = self.config.get("data.name")
        if not isinstance(name, str):
            return None
        prefix, _, place = name.partition(":")
        return Path(place).name if prefix in ("folder", "parquet") else place or prefix

    @property
    def hub_data(self) -> str | None:
        """The data's name on the Hub, where that is where they are from."""
        found = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)", str(self.config.get("data.name")))
        return found[1] if found and not Path(found[1]).exists() else None

    @property
    def split(self) -> str:
        """The images that the accuracy was measured on, in words."""
        holdout = self.config.get("data.holdout")
        if holdout and self.config.get("data.evaluate_on") != "test":
            return f"{100 * holdout:g} % of the training images, held out from training"
        return "the test images"

    @property
    def teacher(self) -> str | None:
        """The architecture of the teacher learnt from, or its given name where that cannot be looked up."""
        name = self.config.get("teacher.name")
        if not isinstance(name, str) or self.config.get("method.name") == "student-alone":
            return None
        try:
            return read_card(name).name if is_run_folder(name) else Path(name).name
        except UserError:
            return Path(name).name

    def command(self) -> str | None:
        """The command that makes the run again, with the options that are not their defaults."""
        return shlex.join(run_words(self.config)) if self.config else None


def read_facts(folder: Path) -> Facts:
    """The facts of a run folder; what it lacks stays empty.

    Raises:
        UserError: a file is damaged
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(summary, dict):
        raise UserError(f"{path} holds no JSON object")
    config = read_yaml(folder / "run.yaml") if (folder / "run.yaml").exists() else {}
    return Facts(flatten(summary), flatten(config))
