"""The model card, README.md in the format of the Hugging Face Hub; a figure that the run does not hold has no line."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unixkd.config import flatten, read_yaml
from unixkd.errors import UserError
from unixkd.export.export import Artefact
from unixkd.export.verify import ATOL, RTOL
from unixkd.models.card import ModelCard, PixelModel
from unixkd.models.folder import is_run_folder, read_card
from unixkd.names import is_code, run_words
from unixkd.run_files import write


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


MOST_NAMES = 20
"""So many class names are listed; more are in config.json."""


IMAGES = {
    "scored": "scored by the student",
    "refreshed": "for BatchNorm's statistics",
    "teacher_forwarded": "asked of the teacher",
    "teacher_cached": "answered from the store instead",
    "trained": "trained on",
    "evaluated": "evaluated (not in the cost)",
}


LOADING = {
    "safetensors": """import unixkd
student = unixkd.load_student("{place}"{code})
logits = student(pixels)""",
    "torch": """import torch
student = torch.export.load("{place}/model.pt2").module()
logits = student(pixels)""",
    "onnx": """import onnxruntime
student = onnxruntime.InferenceSession("{place}/model.onnx")
logits = student.run(["logits"], {{"pixels": pixels.numpy()}})[0]""",
}


def accuracy(facts: Facts) -> str:
    """Accuracies and what they were measured on."""
    rows = {
        "last epoch: the result": facts.number("accuracy.last"),
        "best epoch, chosen by these images": facts.number("accuracy.best"),
        "teacher": facts.number("accuracy.teacher"),
        "agreement of student and teacher": facts.number("agreement"),
        "calibration error": facts.number("calibration_error"),
    }
    shown = [(name, f"{100 * share:.2f} %") for name, share in rows.items() if share is not None]
    if not shown:
        return ""
    seed = facts.number("seed")
    text = f"On {facts.split}" + (f" of `{facts.data}`" if facts.data else "")
    text += "; one run" + (f", seed {seed:.0f}." if seed is not None else ".")
    return f"## Accuracy\n\n{text}\n\n{table(('', 'share'), shown)}"


def cost(facts: Facts) -> str:
    """What training has cost: images, and forward FLOPs against plain KD's."""
    numbers = {words: facts.number(f"cost.images.{key}") for key, words in IMAGES.items()}
    rows = [(words, f"{count:,.0f}") for words, count in numbers.items() if count]
    if not rows:
        return ""
    text = "## Cost of training\n\n" + table(("images", "number"), rows)
    once, twice = (facts.number(f"cost.relative_to_kd.backward_{times}x") for times in (1, 2))
    epochs, images = (facts.number(f"cost.reference.{key}") for key in ("epochs", "images"))
    if once is not None and twice is not None and epochs is not None and images is not None:
        text += (
            f"\n\n{100 * once:.1f} % of plain KD's training FLOPs for {epochs:.0f} epochs of {images:,.0f} images, "
            f"counting a backward pass as 1 forward; {100 * twice:.1f} % counting it as 2. Scoring, teacher and "
            "student are all charged."
        )
    return text


def use(card: ModelCard, artefacts: Iterable[Artefact], place: str, repository: str | None) -> str:
    """How to load each format."""
    code = f', code="{short(card)}"' if is_code(card.name) else ""  # which does not travel with the weights
    text = f"`pixels` is a batch `[N, C, H, W]` of float32 in [0, 1], `{place}` the folder with these files"
    if repository:
        text += f'; `huggingface_hub.snapshot_download("{repository}")` fetches them and returns theirs'
    blocks = [
        f"```python\n{LOADING[artefact.format].format(place=place, code=code)}\n```" for artefact in artefacts
    ]
    return "\n\n".join([f"## Use\n\n{text}.", *blocks])


def files(artefacts: Sequence[Artefact], checked_on: str) -> str:
    """What was exported, and how it was verified."""
    rows = [
        (
            " ".join(f"`{file.name}`" for file in one.files),
            f"{one.agreement.largest:.2g}",
            f"{one.agreement.same_class} of {one.agreement.images}",
        )
        for one in artefacts
    ]
    return (
        f"## Files\n\nEach was loaded again and compared with the trained student on {checked_on}, in fp32 on a CPU. "
        f"A logit may differ by {ATOL:g}, and by {RTOL:g} of the largest of its image.\n\n"
        + table(("file", "largest difference of the logits", "same class on"), rows)
    )


def training(facts: Facts) -> str:
    """The command that makes the run again, and where it ran."""
    command = facts.command()
    where = {
        key.partition(".")[2]: value for key, value in facts.summary.items() if key.startswith("environment.")
    }
    parts = [f"```sh\n{command}\n```"] if command else []
    if where:
        parts.append(", ".join(f"{key} {value}" for key, value in where.items()) + ".")
    return "## Training\n\n" + "\n\n".join(parts) if parts else ""


def licences(weights: str | None, data: str | None) -> str:
    """Licences as far as they were stated."""
    return f"## Licence\n\n- weights: {weights or 'not stated'}\n- data: {data or 'not stated'}"


def limits(card: ModelCard, artefacts: Sequence[Artefact], size: int) -> str:
    """What the model cannot do, and what it expects."""
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in limit_lines(card, artefacts, size))


def limit_lines(card: ModelCard, artefacts: Sequence[Artefact], size: int) -> Iterator[str]:
    """One limit each."""
    names = card.class_names
    if names is None:
        yield f"Its {card.num_classes} classes have no names; it answers with one of them whatever it is shown."
    else:
        listed = ", ".join(names) if len(names) <= MOST_NAMES else "those that config.json lists"
        yield f"It answers with one of its {card.num_classes} classes, whatever it is shown: {listed}."
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (card.mean, card.std))
    yield f"It takes {card.in_channels}-channel pixels in [0, 1]; mean ({mean}) and std ({std}) are applied inside."
    if card.size is not None:
        yield f"It was made for images of {card.size} × {card.size} pixels; `load_student` resizes others."
    if any(artefact.format != "safetensors" for artefact in artefacts):
        yield f"`model.pt2` and `model.onnx` take images of {size} × {size} pixels, any number of them."
    yield "Its accuracy is known for the images named above only."


def short(card: ModelCard) -> str:
    """The network's name; of one that means a file its last part, as paths are nobody else's business."""
    prefix, colon, place = card.name.rpartition(":")
    if is_code(card.name):
        return f"{Path(prefix).name}:{place}"
    return f"{prefix}{colon}{Path(place).name}" if Path(place).is_absolute() else card.name


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
        prefix, _, place = str(self.config.get("data.name")).partition(":")
        on_hub = prefix == "hub" and re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not Path(place).exists()
        return place if on_hub else None

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
        if not self.config:
            return None
        return shlex.join(run_words(self.config))


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
