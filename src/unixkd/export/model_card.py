"""The model card, README.md in the format of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unixkd.errors import UserError
from unixkd.export.artefacts import Artefact
from unixkd.export.facts import Facts
from unixkd.export.sections import accuracy, cost, files, licences, limits, short, training, use
from unixkd.models import ModelCard, PixelModel
from unixkd.runfolder import write


@dataclass(frozen=True)
class Publication:
    """What nobody but its author knows about a model; None: not stated.

    Args:
        licence: of the weights, as the Hub names it
        data_licence: of the data
        repository: on the Hub, OWNER/NAME
    """

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
    parameters = sum(parameter.numel() for parameter in student.parameters())
    sections = (
        f"# {title(student.card, facts)}",
        introduction(student.card, facts, parameters),
        accuracy(facts),
        cost(facts),
        use(student.card, artefacts, out.resolve().name, publication.repository),
        files(artefacts, checked_on),
        training(facts),
        licences(publication.licence, publication.data_licence),
        limits(student.card, artefacts, size),
    )
    head = yaml.safe_dump(front_matter(student.card, facts, publication), sort_keys=False, allow_unicode=True)
    path = out / "README.md"
    try:
        write(path, f"---\n{head}---\n\n" + "\n\n".join(filter(None, sections)) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from None
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
