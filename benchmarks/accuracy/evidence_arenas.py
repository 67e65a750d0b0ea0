"""Where contenders are compared: arenas (data, teacher, student, schedule), stages and seeds.

One training image seen once by a method is charged as the run's own ledger has it; every run pays for the store it
fills, although runs on one machine lend each other the teacher's forwards (`lending`).

Arenas:
- vgg13-vgg8, wrn_40_2-wrn_16_1: 500 images of CIFAR-100 at 16 pixels, 640 epochs; closed, their results are complete
- 10k-*: 10,000 images, 120 epochs; 45k-*: 45,000 images, 40 epochs; the same images at 16 pixels
- photos-*: a folder of photographs at 160 pixels, 160 epochs in batches of 32, random resized crops and flips; one
  arena has labels (their cross-entropy is added), one has none

All of them: SGD with momentum 0.9, lr 0.05, cosine, T = 4, bf16 on one thread; on CIFAR-100 batches of 64, no labels,
crops with 2 pixels of padding and flips (50 views of an image). `search` looks at the 5,000 training images that a
holdout of 0.1 leaves out (a fifth of the photographs), with seeds 0 and 1; `confirm` at the test set, once, with seeds
from 10 on. The last epoch is the result.

Before the 500-image arenas were chosen, doubling KD's epochs still gained 5.9 points with 2,500 images and 128 epochs:
what makes up for missing epochs would have looked good. `results/pareto/protocol.json` has what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from evidence_contenders import (
    AT_SCALE,
    CONTENDERS,
    MATTERS,
    ON_PHOTOS,
    RECIPE,
    RIVALS,
    VIEWS,
    Contender,
    chosen,
)
from evidence_photos import NETWORK, imagenet_weights
from unixkd.config import (
    AnswersConfig,
    DataConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)

STAGES = ("search", "confirm")
SEARCH_SEEDS = (0, 1)
PHOTOS = "folder:"
"""The name of data that are a folder, which follows it."""


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is trained where none is brought along: on labels, on all images that are not held out.

    Args:
        network: its name
        train: its schedule
        classes: of the new last layer of published weights (`evidence_photos`); None: it starts from nothing
    """

    network: str
    train: TrainConfig
    classes: int | None = None

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return self.network.rpartition(":")[2]


@dataclass(frozen=True)
class Arena:
    """One set of images, one pair of networks, one schedule.

    Args:
        name: of the folder of its results
        title: in tables and figures
        teacher: who teaches
        student: the network that learns
        images: training images; None: all that are not held out
        epochs: of plain KD
        contenders: who competes, the most interesting first
        kd_seconds: a first guess of a plain KD run on one core, until one has been measured
        confirm_seeds: of the stage confirm
        confirmed: names of the contenders of the stage confirm; empty: not frozen yet
        recipe: the candidate that the search has found, frozen before the first run of the confirmation
        rivals: what it has to beat, at about its cost
        closed: complete; nothing is queued unless the arena is named
        data: other options of its images
        train: other options of its schedule
        loss: weights of the losses
        confirm_holdout: share of the training images held out in the stage confirm; None: as in the search
        precision: of both networks
    """

    name: str
    title: str
    teacher: TeacherRecipe
    student: str
    images: int | None
    epochs: int
    contenders: tuple[Contender, ...]
    kd_seconds: float
    confirm_seeds: tuple[int, ...]
    confirmed: tuple[str, ...] = ()
    recipe: str | None = None
    rivals: tuple[str, ...] = ()
    closed: bool = False
    data: DataConfig = field(default_factory=lambda: DataConfig("cifar100", size=16, holdout=0.1))
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    confirm_holdout: float | None = None
    precision: Literal["bf16", "fp32"] = "bf16"

    @property
    def on_photos(self) -> bool:
        """Whether its images are a folder of photographs."""
        return self.data.name == PHOTOS

    def seeds(self, stage: str) -> tuple[int, ...]:
        """Of a stage."""
        return SEARCH_SEEDS if stage == "search" else self.confirm_seeds

    def contender(self, name: str) -> Contender:
        """The contender of that name."""
        return next(each for each in self.contenders if each.name == name)


@dataclass(frozen=True)
class Place:
    """Where things lie on this machine.

    Args:
        root: CIFAR-100; None: not here
        photos: folder of photographs, class folders in `train` and `val`; None: not here
        out: runs, stores, trained teachers
        teachers: run folders of trained teachers, by the network's name; None: teachers are trained in `out`
    """

    root: str | None
    out: Path
    teachers: Path | None = None
    photos: str | None = None

    def has(self, arena: Arena) -> bool:
        """Whether the arena's images are here."""
        return (self.photos if arena.on_photos else self.root) is not None

    def data(self, arena: Arena) -> DataConfig:
        """The arena's images."""
        if arena.on_photos:
            return replace(arena.data, name=f"{PHOTOS}{self.photos}")
        return replace(arena.data, root=self.root)

    def teacher(self, arena: Arena) -> Path:
        """The run folder of an arena's teacher; a closed arena had one of its own."""
        if self.teachers is not None and not arena.closed:
            brought = self.teachers / arena.teacher.folder
            if brought.exists():
                return brought
        return self.out / "teachers" / (arena.name if arena.closed else arena.teacher.folder)

    def run(self, arena: Arena, stage: str, contender: Contender, seed: int) -> Path:
        """The folder of a run."""
        return self.out / arena.name / stage / f"{contender.file_name}-seed{seed}"

    def store(self, arena: Arena, stage: str, contender: Contender, seed: int) -> Path:
        """A run's own store of answers, so that it is charged for all of them."""
        run = self.run(arena, stage, contender, seed)
        return run.with_name(f"{run.name}.answers")

    def lender(self, arena: Arena, contender: Contender) -> Path | None:
        """The answers that runs on the same images in the same views lend each other; None for views without end."""
        if arena.on_photos and contender.views is None and contender.mixes is None:
            return None
        every = "all" if arena.on_photos else VIEWS
        kind = f"{contender.views or every}-views" if contender.mixes is None else f"{contender.mixes}-mixes"
        images = "" if contender.images == 1 else f"-{contender.images:g}-of-images"
        return self.out / arena.name / f"lent-{kind}{images}"


def teacher_run(arena: Arena, place: Place) -> RunConfig:
    """The training of an arena's teacher."""
    recipe, data = arena.teacher, place.data(arena)
    network = ModelConfig(recipe.network)
    if recipe.classes is not None:
        weights = str(imagenet_weights(place.out / "teachers", recipe.classes))
        network = replace(network, weights=weights, mean=[0.5] * 3, std=[0.5] * 3)  # as they were trained
        data = replace(data, holdout=0.0, labels=True)  # all of the few photographs
    return RunConfig(
        network,
        None,
        MethodConfig("student-alone"),
        data=data,
        train=recipe.train,
    )


def student_run(arena: Arena, stage: str, contender: Contender, seed: int, place: Place) -> RunConfig:
    """The configuration of one run of a contender."""
    limit = arena.images
    if contender.images != 1:
        assert limit is not None, "a share of the images needs a known number of them"
        limit = round(contender.images * limit)
    data = place.data(arena)
    data = replace(
        data,
        limit=limit,
        holdout=data.holdout if arena.confirm_holdout is None or stage == "search" else arena.confirm_holdout,
        evaluate_on="test" if stage == "confirm" else "auto",
        views=contender.views,
        mixes=contender.mixes,
    )
    store = str(place.store(arena, stage, contender, seed)) if contender.stored else None
    return RunConfig(
        ModelConfig(arena.student),
        ModelConfig(str(place.teacher(arena))),
        contender.method,
        arena.loss,
        data,
        AnswersConfig(store),
        train=replace(
            arena.train,
            epochs=max(1, round(contender.epochs * arena.epochs)),
            seed=seed,
            precision=arena.precision,
            teacher_precision=arena.precision,
            threads=1,
            graph=False,  # a step may look for lent answers on the host
            eval_every=max(1, arena.epochs // 4),
            checkpoint_every=max(1, arena.epochs // 12),
        ),
        label=contender.name,
        # Costs are those of plain KD on all of the arena's images; a reference counts the run's own.
        reference_epochs=round(arena.epochs / contender.images),
    )


SAMPLE = 16
"""Of a run that is only timed, epochs and views are divided by this."""


def sample_run(arena: Arena, contender: Contender, place: Place, path: Path) -> RunConfig:
    """A shortened run at `path` that asks the teacher itself, to be timed."""

    def less(count: int | None) -> int | None:
        return None if count is None else max(1, round(count / SAMPLE))

    short = replace(contender, views=less(contender.views), mixes=less(contender.mixes))
    config = student_run(replace(arena, epochs=max(1, arena.epochs // SAMPLE)), "search", short, 0, place)
    answers = AnswersConfig(str(path.with_name(f"{path.name}.answers")) if contender.stored else None)
    return replace(config, answers=answers)


def quick(arena: Arena) -> Arena:
    """The same in a few steps, to try the machinery; in fp32, as a CPU without bf16 takes minutes for them."""
    data = arena.data if arena.on_photos else replace(arena.data, holdout=0.01, limit=512)
    images = 64 if arena.on_photos else 128
    teacher = replace(arena.teacher, train=replace(arena.teacher.train, epochs=1, precision="fp32"))
    return replace(arena, images=images, epochs=2, data=data, teacher=teacher, precision="fp32")


_OLD_TEACHER = TrainConfig(epochs=20, schedule="onecycle", precision="bf16", threads=1, eval_every=5)
_TEACHER = TrainConfig(
    epochs=24,
    batch_size=128,
    lr=0.1,
    schedule="onecycle",
    nesterov=True,
    precision="bf16",
    threads=1,
    eval_every=4,
)
_PHOTO_TEACHER = TrainConfig(
    epochs=12, batch_size=32, lr=0.0005, schedule="onecycle", precision="bf16", threads=1, eval_every=4
)


def _old(teacher: str, student: str) -> Arena:
    """An arena with 500 images."""
    return Arena(
        f"{teacher}-{student}",
        f"{teacher} → {student}, 500 images, 640 epochs",
        TeacherRecipe(teacher, _OLD_TEACHER),
        student,
        500,
        640,
        CONTENDERS,
        480.0,
        (10, 11, 12, 13, 14),
        tuple(contender.name for contender in CONTENDERS),
        RECIPE,
        RIVALS,
        closed=True,
    )


def _photos(*, labels: bool) -> Arena:
    """An arena of photographs, with or without their labels."""
    contenders = ON_PHOTOS if labels else ON_PHOTOS[:-1]  # without labels nothing is learnt alone
    return Arena(
        f"photos-{'labels' if labels else 'unlabelled'}",
        f"{NETWORK} → lcnet_050, photographs {'with' if labels else 'without'} labels, 160 epochs",
        TeacherRecipe(f"timm:{NETWORK}", _PHOTO_TEACHER, classes=2),
        "timm:lcnet_050",
        196,
        160,
        contenders,
        900.0,
        (10, 11, 12, 13, 14),
        data=DataConfig(PHOTOS, size=160, holdout=0.2, labels=labels, workers=0),
        train=TrainConfig(batch_size=32),
        loss=LossConfig(ce=1.0 if labels else 0.0),
    )


ARENAS = {
    arena.name: arena
    for arena in (
        _old("vgg13", "vgg8"),
        _old("wrn_40_2", "wrn_16_1"),
        Arena(
            "10k-resnet32x4-resnet8x4",
            "resnet32x4 → resnet8x4, 10,000 images, 120 epochs",
            TeacherRecipe("resnet32x4", _TEACHER),
            "resnet8x4",
            10_000,
            120,
            AT_SCALE,
            4200.0,
            (10, 11, 12),
        ),
        Arena(
            "45k-resnet32x4-resnet8x4",
            "resnet32x4 → resnet8x4, 45,000 images, 40 epochs",
            TeacherRecipe("resnet32x4", _TEACHER),
            "resnet8x4",
            None,
            40,
            chosen(AT_SCALE, MATTERS),
            6500.0,
            (10, 11),
        ),
        Arena(
            "45k-wrn_40_2-wrn_16_2",
            "wrn_40_2 → wrn_16_2, 45,000 images, 40 epochs",
            TeacherRecipe("wrn_40_2", _TEACHER),
            "wrn_16_2",
            None,
            40,
            chosen(AT_SCALE, MATTERS),
            5000.0,
            (10, 11),
        ),
        _photos(labels=True),
        _photos(labels=False),
    )
}
"""By name; the queue takes them in this order."""
FIGURES = {"pareto-confirm": ("vgg13-vgg8", "wrn_40_2-wrn_16_1")}
"""The arenas that are drawn together, one row each, as docs/NAME.svg."""
STORY = (
    "wrn_40_2-wrn_16_1",
    {
        "kd": ("plain KD", "right"),
        "kd, epochs x0.5": ("KD, half of the epochs", "right"),
        "kd, epochs x0.33": ("KD, a third of the epochs", "right"),
        "random": ("a random ¾", "left"),
        "hard": ("the hardest ¾", "right"),
        "unix-random": ("UNIX, ranked at random", "left"),
        "unix": ("UNIX", "right"),
        "mixup": ("mixup", "left"),
        "mixup, epochs x0.33": ("mixup, a third of the epochs", "right"),
        "kd, views, epochs x0.6": ("KD on stored answers, 60 %", "below"),
        RECIPE: ("remix, 60 % of the epochs: the recipe", "right"),
    },
)
"""Of the README's picture, docs/cost-accuracy.svg: the arena; the contenders, their names there, and on which side."""
