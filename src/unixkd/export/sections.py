"""The sections of a model card; a figure that the run does not hold has no line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from unixkd.export.artefacts import Artefact
from unixkd.export.facts import Facts
from unixkd.export.verify import ATOL, RTOL
from unixkd.models import ModelCard
from unixkd.named_files import is_code

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
