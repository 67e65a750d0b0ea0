"""Who competes for the evidence: a method, its share of the epochs, its views and whether answers are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unixkd.config import MethodConfig

VIEWS = 50
"""All views that an image of 16 pixels has."""
KD = MethodConfig("kd")
SMALL = MethodConfig("kd", size=0.75, full_last=0.5)
"""12 pixels for the first half of the run, 16 for the second."""


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Args:
        name: of the line
        method: who is scored, kept, mixed
        epochs: share of the arena's epochs
        views: how many views of each image are trained on; None: all
        stored: whether the teacher's answers are stored, in a store of the run's own
        images: share of the training images, a fixed subset
        mixes: how many fixed mixes of each image are trained on instead of its views; None: none
    """

    name: str
    method: MethodConfig = KD
    epochs: float = 1.0
    views: int | None = None
    stored: bool = False
    images: float = 1.0
    mixes: int | None = None

    @property
    def file_name(self) -> str:
        """The name as a part of a path."""
        return self.name.replace(", ", "+").replace(" ", "-")


RANDOM_HALF = "random-half"
UNSCORED = MethodConfig("unix", scorer="random")
"""What `unix-random` was when these arenas ran: that method scores its images since, as the reference's does."""

CONTENDERS = (
    Contender("student-alone", MethodConfig("student-alone")),
    Contender("kd"),
    Contender("kd, epochs x2", epochs=2.0),
    Contender("kd, epochs x0.75", epochs=0.75),
    Contender("kd, epochs x0.5", epochs=0.5),
    Contender("kd, epochs x0.33", epochs=0.33),
    Contender("random", MethodConfig("random")),
    Contender("unix-random", UNSCORED),
    Contender("hard", MethodConfig("hard")),
    Contender("mixup", MethodConfig("mixup")),
    Contender("mixup, epochs x0.5", MethodConfig("mixup"), 0.5),
    Contender("mixup, epochs x0.33", MethodConfig("mixup"), 0.33),
    Contender("mixup, epochs x0.2", MethodConfig("mixup"), 0.2),
    Contender("unix-random, epochs x0.44", UNSCORED, 0.44),
    Contender("unix, epochs x0.4", MethodConfig("unix"), 0.4),
    Contender("unix", MethodConfig("unix")),
    Contender("unix, step", MethodConfig("unix", curve="step")),
    Contender("infobatch", MethodConfig("infobatch")),
    Contender("selective-backprop", MethodConfig("selective-backprop")),
    Contender("unix, scored at half the side", MethodConfig("unix", scoring_size=0.5)),
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
"""Of the arenas with 500 images."""

RECIPE = "mixup, views, mixed answers, epochs x0.6"
"""The candidate with 500 images, frozen on 2026-11-25 after the search and before any run of the confirmation."""
RIVALS = ("kd, views, epochs x0.6", "random-epoch, views", "kd, epochs x0.33", "mixup, epochs x0.33")


def few(views: int) -> Contender:
    """Plain KD on a few views of each image, whose answers are stored."""
    return Contender(f"kd, {views} views", views=views, stored=True)


def fixed_mixes(number: int) -> Contender:
    """Plain KD on a few fixed mixes of each image with others, whose answers are stored."""
    return Contender(f"kd, {number} mixes", mixes=number, stored=True)


AT_SCALE = (
    Contender("kd"),
    few(6),
    fixed_mixes(8),
    fixed_mixes(16),
    Contender("unix", MethodConfig("unix")),
    Contender("unix-random", MethodConfig("unix-random")),
    Contender("mixup", MethodConfig("mixup")),
    Contender("random", MethodConfig("random")),
    few(12),
    Contender("remix", MethodConfig("remix"), views=VIEWS, stored=True),
    Contender("kd, 6 views, epochs x0.75", epochs=0.75, views=6, stored=True),
    Contender("kd, epochs x0.33", epochs=0.33),
    Contender("kd, epochs x0.5", epochs=0.5),
    Contender("kd, 6 views, small first", SMALL, views=6, stored=True),
    Contender("random-epoch, 6 views", MethodConfig("random-epoch"), views=6, stored=True),
    Contender("stale, 6 views", MethodConfig("stale"), views=6, stored=True),
    Contender(f"{RANDOM_HALF}, 12 views", images=0.5, views=12, stored=True),
    Contender(RANDOM_HALF, images=0.5),
    Contender("remix, epochs x0.6", MethodConfig("remix"), 0.6, views=VIEWS, stored=True),
    Contender("remix, 12 views", MethodConfig("remix"), views=12, stored=True),
    few(25),
    fixed_mixes(32),
    Contender("kd, 8 mixes, epochs x0.75", epochs=0.75, mixes=8, stored=True),
    Contender("hard", MethodConfig("hard")),
    Contender("unix, step", MethodConfig("unix", curve="step")),
    Contender("mixup, epochs x0.5", MethodConfig("mixup"), 0.5),
    Contender("mixup, epochs x0.33", MethodConfig("mixup"), 0.33),
    Contender("kd, epochs x0.75", epochs=0.75),
    Contender("infobatch", MethodConfig("infobatch")),
    Contender("kd, views", views=VIEWS, stored=True),
    Contender("kd, epochs x2", epochs=2.0),
    Contender("student-alone", MethodConfig("student-alone")),
)
"""Of the arenas with 10,000 images, the order being that of the queue."""

ON_PHOTOS = (
    Contender("kd"),
    few(16),
    fixed_mixes(16),
    Contender("unix", MethodConfig("unix")),
    Contender("unix-random", MethodConfig("unix-random")),
    Contender("random", MethodConfig("random")),
    Contender("mixup", MethodConfig("mixup")),
    few(32),
    fixed_mixes(32),
    Contender("remix, 32 views", MethodConfig("remix"), views=32, stored=True),
    Contender("kd, epochs x0.5", epochs=0.5),
    Contender("kd, epochs x0.33", epochs=0.33),
    Contender("mixup, epochs x0.33", MethodConfig("mixup"), 0.33),
    Contender(RANDOM_HALF, images=0.5),
    Contender(f"{RANDOM_HALF}, 32 views", images=0.5, views=32, stored=True),
    Contender("student-alone", MethodConfig("student-alone")),
)
"""Of the arenas with photographs, the order being that of the queue."""

MATTERS = (
    "kd",
    "kd, 6 views",
    "kd, 8 mixes",
    "unix",
    "unix-random",
    "mixup",
    "random",
    "remix",
    "kd, epochs x0.5",
)


def chosen(contenders: Sequence[Contender], names: Sequence[str]) -> tuple[Contender, ...]:
    """Those of these names, in their order."""
    return tuple(next(each for each in contenders if each.name == name) for name in names)
