"""The protocol of `pareto.py`, written down before the search: what is trained, on what, and who competes.

CIFAR-100 at 16 pixels (the mean of 2 x 2), crops with 2 pixels of padding and flips (50 views of each image),
batches of 64, SGD with the paper's rate of 0.05 and a cosine, T = 4, KD alone. A tenth of the training images is held
out, by class; nobody trains on it. All networks run in bf16, by autocast.
- teachers: the other 45,000 images, labels, 20 epochs
- students: 500 of these, 640 epochs
- search: seeds 0 and 1, evaluated on the 5,000 held-out images
- confirmation: once, seeds 10 to 14, evaluated on the 10,000 test images after the last epoch

A contender's cost is counted from its run's own ledger: every forward, the filling of its store included, over plain
KD's 640 epochs. To save the experiment's time, not the contenders', answers to images as they are come from a store
that all runs share (`answers.lender`): they are charged as if each run had asked for itself.

Few images, often: a short schedule says nothing, as longer training alone then beats whatever is compared. 500 images
are what two cores can saturate at the paper's rate: with 1,000 and 2,500 of them, and with larger rates on the smaller
student, doubling plain KD's epochs still gained points. What was tried on plain KD before, on held-out images, is in
`results/pareto/protocol.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from unixkd.config import AnswersConfig, DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig

PAIRS = {"vgg13-vgg8": ("vgg13", "vgg8"), "wrn_40_2-wrn_16_1": ("wrn_40_2", "wrn_16_1")}
STAGES = {"search": ("auto", (0, 1)), "confirm": ("test", (10, 11, 12, 13, 14))}
"""What is evaluated on, and the seeds."""
VIEWS = 50
"""Of those that store answers: all there are, each shown a dozen times in 640 epochs."""


@dataclass(frozen=True)
class Scale:
    """How much is trained; `--quick` is another one."""

    images: int | None = 500
    teacher_images: int | None = None
    epochs: int = 640
    teacher_epochs: int = 20
    holdout: float = 0.1


TIMED = Scale(teacher_images=5000, teacher_epochs=4)
"""To measure seconds: what a teacher knows takes no time."""
QUICK = Scale(images=256, teacher_images=512, epochs=2, teacher_epochs=1, holdout=0.01)


KD = MethodConfig("kd")


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Args:
        name: of the line
        method: who is scored, kept, mixed
        epochs: share of the protocol's epochs
        views: how many views of each image are trained on; None: all
        stored: whether the teacher's answers are stored, in a store of the run's own
    """

    name: str
    method: MethodConfig = KD
    epochs: float = 1.0
    views: int | None = None
    stored: bool = False


SMALL = MethodConfig("kd", size=0.75, full_last=0.5)
"""12 pixels for the first half of the run, 16 for the second."""

CONTENDERS = (
    Contender("student-alone", MethodConfig("student-alone")),
    Contender("kd"),
    Contender("kd, epochs x2", epochs=2.0),
    Contender("kd, epochs x0.75", epochs=0.75),
    Contender("kd, epochs x0.5", epochs=0.5),
    Contender("kd, epochs x0.33", epochs=0.33),
    Contender("random", MethodConfig("random")),
    Contender("unix-random", MethodConfig("unix-random")),
    Contender("hard", MethodConfig("hard")),
    Contender("mixup", MethodConfig("mixup")),
    Contender("mixup, epochs x0.5", MethodConfig("mixup"), 0.5),
    Contender("mixup, epochs x0.33", MethodConfig("mixup"), 0.33),
    Contender("mixup, epochs x0.2", MethodConfig("mixup"), 0.2),
    Contender("unix-random, epochs x0.44", MethodConfig("unix-random"), 0.44),
    Contender("unix, epochs x0.4", MethodConfig("unix"), 0.4),
    Contender("unix", MethodConfig("unix")),
    Contender("unix, step", MethodConfig("unix", curve="step")),
    Contender("infobatch", MethodConfig("infobatch")),
    Contender("selective-backprop", MethodConfig("selective-backprop")),
    Contender("unix, scored at half the side", MethodConfig("unix", scoring_size=0.5)),
    Contender("hard, scored every 4th epoch", MethodConfig("hard", scoring_every=4)),
    Contender("stale", MethodConfig("stale")),
    Contender("kd, views", views=VIEWS, stored=True),
    Contender("kd, views, epochs x0.9", epochs=0.9, views=VIEWS, stored=True),
    Contender("kd, views, epochs x0.75", epochs=0.75, views=VIEWS, stored=True),
    Contender("kd, views, epochs x0.6", epochs=0.6, views=VIEWS, stored=True),
    Contender("kd, views, epochs x0.5", epochs=0.5, views=VIEWS, stored=True),
    Contender("random-epoch, views", MethodConfig("random-epoch"), views=VIEWS, stored=True),
    Contender("stale, views", MethodConfig("stale"), views=VIEWS, stored=True),
    Contender("infobatch, views", MethodConfig("infobatch"), views=VIEWS, stored=True),
    Contender(
        "mixup, views, mixed answers", MethodConfig("mixup", mixes_answers=True), views=VIEWS, stored=True
    ),
    Contender(
        "mixup, views, mixed answers, epochs x0.75",
        MethodConfig("mixup", mixes_answers=True),
        0.75,
        views=VIEWS,
        stored=True,
    ),
    Contender(
        "mixup, views, mixed answers, epochs x0.6",
        MethodConfig("mixup", mixes_answers=True),
        0.6,
        views=VIEWS,
        stored=True,
    ),
    Contender("kd, views, small first", SMALL, views=VIEWS, stored=True),
)

RECIPE = "mixup, views, mixed answers, epochs x0.6"
"""The candidate, frozen on 2026-11-25 after the search and before any run of the confirmation."""
RIVALS = ("kd, views, epochs x0.6", "random-epoch, views", "kd, epochs x0.33", "mixup, epochs x0.33")
"""What it has to beat, at about its cost."""


def data(root: str, scale: Scale, limit: int | None, evaluate_on: str = "auto") -> DataConfig:
    """The images of a run."""
    return DataConfig(
        "cifar100",
        root=root,
        size=16,
        limit=limit,
        holdout=scale.holdout,
        evaluate_on=evaluate_on,  # type: ignore[arg-type]
    )


def teacher(name: str, root: str, scale: Scale) -> RunConfig:
    """A pair's teacher, trained on labels."""
    return RunConfig(
        ModelConfig(name),
        None,
        MethodConfig("student-alone"),
        data=data(root, scale, scale.teacher_images),
        train=TrainConfig(
            epochs=scale.teacher_epochs, schedule="onecycle", precision="bf16", threads=1, eval_every=5
        ),
    )


def student(
    contender: Contender, pair: str, seed: int, stage: str, root: str, out: Path, scale: Scale
) -> RunConfig:
    """One run of a contender, its teacher and its store below `out`."""
    _, name = PAIRS[pair]
    epochs = max(1, round(contender.epochs * scale.epochs))
    base = data(root, scale, scale.images, STAGES[stage][0])
    return RunConfig(
        ModelConfig(name),
        ModelConfig(str(out / pair / "teacher")),
        contender.method,
        data=replace(base, views=contender.views),
        answers=AnswersConfig(
            str(store(contender, pair, seed, stage, out)) if contender.stored else None,
            lender=str(out / pair / stage / f"lent-{contender.views or VIEWS}-views"),
        ),
        train=TrainConfig(
            epochs=epochs,
            seed=seed,
            precision="bf16",
            teacher_precision="bf16",
            threads=1,
            eval_every=160,
            checkpoint_every=80,
        ),
        label=contender.name,
        reference_epochs=scale.epochs,
    )


SAMPLE = 16
"""Of a run that is only timed, epochs and views are divided by this."""


def sample(contender: Contender, pair: str, root: str, out: Path, path: Path) -> RunConfig:
    """A shortened run at `path` that asks the teacher itself, to be timed."""
    short = replace(
        contender, views=None if contender.views is None else max(1, round(contender.views / SAMPLE))
    )
    config = student(short, pair, 0, "search", root, out, replace(Scale(), epochs=Scale().epochs // SAMPLE))
    answers = AnswersConfig(str(path.with_name(f"{path.name}.answers")) if contender.stored else None)
    return replace(config, answers=answers)


def folder(contender: Contender, pair: str, seed: int, stage: str, out: Path) -> Path:
    """Where a run lies."""
    return out / pair / stage / f"{contender.name.replace(', ', '+').replace(' ', '-')}-seed{seed}"


def store(contender: Contender, pair: str, seed: int, stage: str, out: Path) -> Path:
    """A run's own store of answers, so that it pays for all of them."""
    run = folder(contender, pair, seed, stage, out)
    return run.with_name(f"{run.name}.answers")
