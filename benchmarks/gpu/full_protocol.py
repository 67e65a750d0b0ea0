"""The protocol of `full_scale.py`: the paper's schedule and pairs, and the contenders of `evidence_contenders.py`.

CIFAR-100 as it is, crops with 4 pixels of padding and flips (162 views of each image), and each pair's recipe: 240
epochs, batches of 64, SGD, lr 0.05 (0.01 for the small students) x 0.1 at epochs 150, 180 and 210, T = 4, KD alone.
All networks run in bf16, by autocast. Every epoch is evaluated on the test set, as the paper prints the best of them;
ours is the last.
- teachers: all 50,000 images, labels, seed 0; what they are rounded to afterwards (`kept.py`) teaches
- students: all 50,000 images, seeds 0 to 3

A contender that trains on the first views of each image has them all answered by its teacher before it starts, in
a store that it shares, and is charged for the whole of it. Plain KD on 32 views would ask for exactly those answers
in its first 32 epochs; those who leave images out would ask for a few less.

Runs name their data, teacher and store by paths relative to the folder of all runs: it may be moved between pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import evidence_contenders
from evidence_contenders import Contender
from unixkd.cli import recipes
from unixkd.cli.recipes import Pair
from unixkd.config import (
    AnswersConfig,
    DataConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)

PAIRS = {pair.name.removeprefix("cifar100/"): pair for pair in recipes.PAIRS}
FIRST_PAIRS = ("wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "wrn_40_2-ShuffleV1")
SEEDS = (0, 1, 2, 3)
VIEWS = 32
DATA = Path("cifar100")
"""Link to the images, in the folder of all runs."""


@dataclass(frozen=True)
class Scale:
    """How much is trained, and how; `--quick` is another one.

    Args:
        epochs: of plain KD and of teachers; None: the recipe's
        views: of each image, for those who limit them
        checkpoint_every: epochs that a run can lose at most
        data: the images
        threads: of the CPU
        precision: of all networks
    """

    epochs: int | None = None
    views: int = VIEWS
    checkpoint_every: int = 5
    data: DataConfig = field(default_factory=lambda: DataConfig("cifar100", root=str(DATA)))
    threads: int | None = None
    precision: str = "bf16"


FULL = Scale()
QUICK = Scale(
    epochs=2,
    views=2,
    checkpoint_every=1,
    data=DataConfig("digits", limit=64, holdout=0.05),
    threads=1,
    precision="fp32",
)


def contenders(views: int = VIEWS) -> tuple[Contender, ...]:
    """Who competes: all of `evidence_contenders.CONTENDERS`, limited views in the proportion of these to its own.

    Stores of all views are left out: filled before a run as here, they cost more than the run would ask for.
    """
    found = []
    for contender in evidence_contenders.CONTENDERS:
        if contender.views is not None:
            scaled = round(contender.views * views / evidence_contenders.VIEWS)
            found.append(replace(contender, views=max(1, scaled)))
        elif not contender.stored:
            found.append(contender)
    return tuple(found)


def part(settings: dict[str, Any], group: str) -> dict[str, Any]:
    """The settings of one group of a recipe, by the names of its fields."""
    return {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{group}.")}


def training(settings: dict[str, Any], scale: Scale, seed: int, share: float = 1.0) -> TrainConfig:
    """A recipe's schedule, in the share of its epochs; its milestones are shares of the run."""
    train = TrainConfig(**part(settings, "train"))
    return replace(
        train,
        epochs=max(1, round(share * (scale.epochs or train.epochs))),
        seed=seed,
        precision=scale.precision,  # type: ignore[arg-type]
        teacher_precision=scale.precision,  # type: ignore[arg-type]
        threads=scale.threads,
        eval_batch_size=1000,  # few large batches: an evaluation is not captured, its launches hold up all runs
        checkpoint_every=scale.checkpoint_every,
    )


def data(scale: Scale, views: int | None = None) -> DataConfig:
    """The images of a run."""
    return replace(scale.data, views=views)


def teacher(pair: Pair, scale: Scale) -> RunConfig:
    """A pair's teacher, trained on labels."""
    settings = recipes.teacher_recipe(pair.name)
    return RunConfig(
        ModelConfig(pair.teacher),
        None,
        MethodConfig("student-alone"),
        data=data(scale),
        train=training(settings, scale, seed=0),
    )


def student(contender: Contender, pair: Pair, seed: int, scale: Scale) -> RunConfig:
    """One run of a contender."""
    settings = recipes.recipe(pair.name)
    train = training(settings, scale, seed, contender.epochs)
    return RunConfig(
        ModelConfig(pair.student),
        ModelConfig(str(teacher_folder(pair.teacher))),
        contender.method,
        LossConfig(**part(settings, "loss")),
        data(scale, contender.views),
        AnswersConfig(str(store(pair.teacher, contender)) if contender.stored else None, fill="epoch"),
        train,
        label=contender.name,
        reference_epochs=training(settings, scale, seed).epochs,
    )


def teacher_folder(name: str) -> Path:
    """Where the teacher that teaches lies."""
    return Path("teachers") / name


def teacher_run(name: str) -> Path:
    """Where it is trained."""
    return Path("teachers") / f"{name}-run"


def store(teacher: str, contender: Contender) -> Path:
    """Where a teacher's answers lie, for all runs on as many views."""
    return Path("answers") / f"{teacher}-{contender.views}-views"
