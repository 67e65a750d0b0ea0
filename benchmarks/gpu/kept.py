"""What is kept of a full-scale comparison: summaries, and small teachers with a card and checksums.

A teacher teaches as it is kept: convolutions and linear layers rounded to fp16, the rest as it was. So one that was
trained a minute ago and one that was fetched with the repository give the same answers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from common import RESULTS
from unixkd.errors import UserError, sha256
from unixkd.training.checkpoint import checkpoints, find_damage

SUMMARIES = RESULTS / "full-scale"
TEACHERS = RESULTS.parent / "teachers"
MAX_BYTES = 5_000_000
WEIGHTS, CHECKSUMS = "model.safetensors", "SHA256SUMS"

CARD = """# {name}

A teacher on CIFAR-100, for the comparisons of this project.

| | |
|---|---|
| test accuracy after the last epoch | {last:.2%} |
| best of all epochs | {best:.2%} |
| trained on | the 50,000 training images and their labels, {epochs} epochs, seed {seed}, {precision}, on {device} |
| schedule | the paper's recipe for teachers: SGD, lr 0.05, x 0.1 at epochs 150, 180 and 210 |
| trained by | `{command}` |
| weights | convolutions and linear layers rounded to fp16, the rest fp32; the accuracies are those before rounding |

`unixkd distill --teacher` and `unixkd.load_student` take this folder; `sha256sum -c {checksums}` checks it.
"""


def round_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of layers in fp16; BatchNorm's, biases and counters are small and stay.

    Raises:
        UserError: one is too large for fp16
    """
    rounded = {n: t.half() if t.ndim > 1 and t.is_floating_point() else t for n, t in state.items()}
    wrong = [name for name, tensor in rounded.items() if not tensor.isfinite().all()]
    if wrong:
        raise UserError(f"weights are not finite or too large for fp16: {', '.join(wrong)}")
    return rounded


def publish_teacher(run: Path, folder: Path, command: str) -> None:
    """A finished run's network as it teaches: rounded weights, configuration, summary, card, checksums.

    Args:
        run: folder of its training
        folder: made here, whole or not at all
        command: that trained it
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(round_weights(load_file(run / WEIGHTS)), temporary / WEIGHTS)
    for name in ("config.json", "summary.json"):
        shutil.copy(run / name, temporary / name)
    summary = json.loads((run / "summary.json").read_text())
    facts = {**summary["accuracy"], **summary["environment"]}
    facts |= {"epochs": summary["epochs"], "seed": summary["seed"], "command": command}
    (temporary / "README.md").write_text(CARD.format(name=folder.name, checksums=CHECKSUMS, **facts))
    sums = [f"{sha256(path)}  {path.name}\n" for path in sorted(temporary.iterdir())]
    (temporary / CHECKSUMS).write_text("".join(sums))
    temporary.rename(folder)


def check_teacher(folder: Path) -> None:
    """Raise where a published teacher is not what it was.

    Raises:
        UserError: a file is missing or has another checksum
    """
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
        wrong = [name for total, name in map(str.split, lines) if sha256(folder / name) != total]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no published teacher: {error}; remove it to train it again") from None
    if wrong or not lines:
        raise UserError(
            f"{folder} has changed, by its {CHECKSUMS}: {', '.join(wrong) or 'no file is listed'}; "
            "remove it to train it again"
        )


def fetch(results: Path, teachers: Path) -> None:
    """What was kept before, to where a comparison finds it; teachers are checked."""
    for path in SUMMARIES.glob("*/*.json"):
        copy_new(path, results / path.parent.name / path.name)
    for path in TEACHERS.glob("*/"):
        check_teacher(path)
        copy_new(path, teachers / path.name)


def keep(results: Path, teachers: Path) -> list[str]:
    """Summaries and small teachers into the repository; says of which teachers the weights are too large."""
    for path in results.glob("*/*.json"):
        copy_new(path, SUMMARIES / path.parent.name / path.name)
    large = []
    for path in sorted(teachers.glob(f"*/{CHECKSUMS}")):
        if (path.parent / WEIGHTS).stat().st_size > MAX_BYTES:
            large.append(path.parent.name)
        else:
            copy_new(path.parent, TEACHERS / path.parent.name)
    return large


def copy_new(source: Path, target: Path) -> None:
    """Copy a file or a folder to where there is none."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def trim(run: Path) -> None:
    """Leave of a run what it needs to go on, or, where it is finished, its figures: the folder may have to travel."""
    saved = checkpoints(run / "checkpoints")
    if (run / "summary.json").exists():
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (run / WEIGHTS).unlink(missing_ok=True)
    elif saved and find_damage(saved[-1]) is None:
        for old in saved[:-1]:
            shutil.rmtree(old)
