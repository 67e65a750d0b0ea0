"""Strategies to distil as values, what speaks for each, and the targets they are ranked by; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unixkd.config import MethodConfig
from unixkd.errors import UsageError

REACH = 2
"""Times the images that something was measured with, up to which it is taken to hold."""


LEAST_MEAN, LEAST_BOUND = -0.2, -0.5
"""Points against plain KD that the mean difference, and its one-sided 90 % lower bound, must not fall below."""


_T90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372, 1.363, 1.356, 1.350, 1.345)
"""Student's t at 90 %, one-sided, for 1, 2, … degrees of freedom; with more the last is a little too careful."""


@dataclass(frozen=True)
class Evidence:
    """A way's accuracy less plain KD's, seed by seed, measured.

    Args:
        difference: its mean in points
        sd: standard deviation of the differences
        n: how many there are
        images: training images they were measured with
        where: data, pair and epochs they were measured on

    >>> Evidence(difference=-0.1, sd=0.3, n=4, images=500, where="…").matches, Evidence(-0.1, 0.3, 2, 500, "…").matches
    (True, False)
    """

    difference: float
    sd: float
    n: int
    images: int
    where: str

    def speaks_for(self, images: int) -> bool:
        """Whether it says anything of a training set of so many images: what helps few images may not help many."""
        return images <= REACH * self.images

    @property
    def lower_bound(self) -> float:
        """One-sided 90 % lower bound of the mean difference; −inf for a single one."""
        if self.n < 2:
            return -math.inf
        return self.difference - _T90[min(self.n - 1, len(_T90)) - 1] * self.sd / math.sqrt(self.n)

    @property
    def matches(self) -> bool:
        """Whether it says that the way is as good as plain KD."""
        return self.difference >= LEAST_MEAN and self.lower_bound >= LEAST_BOUND


@dataclass(frozen=True)
class Strategy:
    """A way to distil, for runs of any number of epochs.

    Args:
        name: shown in the ranking
        method: who is scored, kept and mixed
        views_share: fixed views of each image as a share of the epochs; None: all views
        stored: whether the teacher's answers are kept and shared by the runs
        epochs_share: its epochs as a share of those planned; the learning rate is fully decayed in them
        relies_on: what must hold for it to be as accurate as plain KD; empty: nothing
        exact: the same training as plain KD's, but for rounding: nothing has to be shown
        mixed: whether its fixed views are fixed mixes of two images
        evidence: what was measured; None: nothing yet
        elsewhere: what was measured with far fewer images than are planned for
    """

    name: str
    method: MethodConfig
    views_share: float | None = None
    stored: bool = False
    epochs_share: float = 1.0
    relies_on: str = ""
    exact: bool = False
    mixed: bool = False
    evidence: Evidence | None = None
    elsewhere: Evidence | None = None

    def epochs(self, planned: int) -> int:
        """Its epochs where so many are planned, at least 1."""
        return max(1, round(self.epochs_share * planned))

    def views(self, planned: int, available: int | None) -> int | None:
        """How many views, or mixes, of each image it is to be limited to; None: all views that are available.

        Args:
            planned: epochs
            available: views that an image has; None: without end

        >>> way("kd, few views").views(128, 162), way("kd, few views").views(128, 9), way("kd").views(128, 162)
        (18, None, None)
        """
        if self.views_share is None:
            return None
        wanted = max(1, round(self.views_share * planned))
        few_enough = available is None or wanted < available
        return wanted if self.mixed or few_enough else None

    @property
    def difference(self) -> float | None:
        """What it is known to gain over plain KD, in points; None: nothing is known."""
        if self.exact:
            return 0.0
        return None if self.evidence is None else self.evidence.difference

    @property
    def matches(self) -> bool | None:
        """Whether it is as good as plain KD; None: nothing is known."""
        return True if self.exact else None if self.evidence is None else self.evidence.matches


FEW = 0.14
"""Fixed views of each image, as a share of the epochs: 18 in 128, 34 in 240."""


# One entry for each way that was measured against plain KD under one protocol with several seeds, from the dated result
# files of `benchmarks/`. A way without an entry is shown as not measured, and is never said to match plain KD.
_MEASURED = "CIFAR-100 at 16 pixels, 640 epochs, vgg13 → vgg8 and wrn_40_2 → wrn_16_1 (the worse of the two)"


EVIDENCE: dict[str, Evidence | None] = {
    "kd, 75% of the epochs": None,
    "kd, 50% of the epochs": Evidence(-0.99, 0.24, 5, 500, _MEASURED),
    "kd, few views": None,
    "kd, few views, small first": None,
    "kd, few mixes": None,
    "remix, 60% of the epochs": Evidence(1.76, 0.65, 5, 500, _MEASURED),
    "mixup, 33% of the epochs": Evidence(0.44, 0.81, 5, 500, _MEASURED),
    "random": Evidence(-0.08, 0.48, 5, 500, _MEASURED),
    "unix": Evidence(6.58, 1.01, 5, 500, _MEASURED),
    "unix, half-size scoring": None,
    "unix, step, few views": None,
    "infobatch, few views": None,
    "stale, few views": None,
    "random-epoch, few views": None,
}


_VIEWS = "a few views being augmentation enough"


_WAYS = (
    Strategy("kd", MethodConfig("kd"), exact=True),
    Strategy(
        "kd, stored answers",
        MethodConfig("kd"),
        stored=True,
        relies_on="disk space alone: the answers are those that plain KD gets, rounded",
        exact=True,
    ),
    Strategy(
        "kd, 75% of the epochs",
        MethodConfig("kd"),
        epochs_share=0.75,
        relies_on="the epochs being more than are needed",
    ),
    Strategy(
        "kd, 50% of the epochs",
        MethodConfig("kd"),
        epochs_share=0.5,
        relies_on="the epochs being more than are needed",
    ),
    Strategy("kd, few views", MethodConfig("kd"), FEW, stored=True, relies_on=_VIEWS),
    Strategy(
        "kd, few views, small first",
        MethodConfig("kd", size=0.625, size_end=1.0),
        FEW,
        stored=True,
        relies_on=f"{_VIEWS}; small images teaching early on",
    ),
    Strategy(
        "kd, few mixes",
        MethodConfig("kd"),
        FEW,
        stored=True,
        mixed=True,
        relies_on="a few fixed mixes of each image teaching as well as the image itself",
    ),
    Strategy(
        "remix, 60% of the epochs",
        MethodConfig("remix"),
        stored=True,
        epochs_share=0.6,
        relies_on="mixes of answers being near enough to answers to mixes; mixing making up for images",
    ),
    Strategy(
        "mixup, 33% of the epochs",
        MethodConfig("mixup"),
        epochs_share=0.33,
        relies_on="mixing making up for images and epochs",
    ),
    Strategy("random", MethodConfig("random"), relies_on="a quarter of the images being dispensable"),
    Strategy("unix", MethodConfig("unix"), relies_on="hard images mattering more; mixing doing good"),
    Strategy(
        "unix, half-size scoring",
        MethodConfig("unix", scoring_size=0.5),
        relies_on="as unix; small images ranking alike",
    ),
    Strategy(
        "unix, step, few views",
        MethodConfig("unix", curve="step"),
        FEW,
        stored=True,
        relies_on=f"as unix; {_VIEWS}",
    ),
    Strategy(
        "infobatch, few views",
        MethodConfig("infobatch"),
        FEW,
        stored=True,
        relies_on=f"{_VIEWS}; easy images counting for others",
    ),
    Strategy(
        "stale, few views",
        MethodConfig("stale"),
        FEW,
        stored=True,
        relies_on=f"{_VIEWS}; old scores telling hard images",
    ),
    Strategy(
        "random-epoch, few views",
        MethodConfig("random-epoch"),
        FEW,
        stored=True,
        relies_on=f"{_VIEWS}; a quarter of the images being dispensable",
    ),
)


def ways(images: int = 0) -> list[Strategy]:
    """Every way with the evidence that speaks for so many training images, plain KD first."""
    found = []
    for each in _WAYS:
        evidence = EVIDENCE.get(each.name)
        speaks = evidence is not None and evidence.speaks_for(images)
        found.append(
            replace(each, evidence=evidence if speaks else None, elsewhere=None if speaks else evidence)
        )
    return found


def way(name: str) -> Strategy:
    """The way of that name."""
    return next(each for each in ways() if each.name == name)


@dataclass(frozen=True)
class Group:
    """Ways of one kind, best first.

    Args:
        heading: what they have in common
        ways: the ways
        eligible: whether they reach the target
    """

    heading: str
    ways: list[Strategy]
    eligible: bool


@dataclass(frozen=True)
class Budget:
    """Spend at most this share of plain KD's cost.

    Args:
        share: in (0, 1], with the backward pass counted as 2 forwards
    """

    share: float

    def groups(self, ways: Sequence[Strategy], cost: Mapping[str, float]) -> list[Group]:
        """Those within the budget, the most accurate first, then the cheapest; those over it, the cheapest first.

        Args:
            ways: to rank
            cost: of each as a share of plain KD's, by name
        """

        def accuracy_then_cost(way: Strategy) -> tuple[bool, float, float]:
            return way.difference is None, -(way.difference or 0.0), cost[way.name]

        within = [way for way in ways if cost[way.name] <= self.share]
        over = [way for way in ways if cost[way.name] > self.share]
        return _filled(
            Group(
                f"within {100 * self.share:.4g}% of kd's cost", sorted(within, key=accuracy_then_cost), True
            ),
            Group("over the budget", sorted(over, key=lambda way: cost[way.name]), False),
        )


@dataclass(frozen=True)
class MatchKD:
    """Be as accurate as plain KD, for the least cost."""

    def groups(self, ways: Sequence[Strategy], cost: Mapping[str, float]) -> list[Group]:
        """Those known to match plain KD, those of which nothing is known, those known not to; the cheapest first.

        Args:
            ways: to rank
            cost: of each as a share of plain KD's, by name
        """
        headings = {
            True: "as accurate as plain KD",
            None: "not measured yet",
            False: "measured, and no match",
        }
        ordered = sorted(ways, key=lambda way: cost[way.name])
        return _filled(
            *(
                Group(heading, [way for way in ordered if way.matches is known], known is True)
                for known, heading in headings.items()
            )
        )


def parse_target(budget: str | None, match_kd: bool) -> Budget | MatchKD | None:
    """The target that the options name.

    Raises:
        UsageError: both are given, or the budget is no share in (0, 1]

    >>> parse_target("50%", False), parse_target("0.5", False) == parse_target("50%", False)
    (Budget(share=0.5), True)
    """
    if budget is None:
        return MatchKD() if match_kd else None
    if match_kd:
        raise UsageError("plan has one target: give --budget or --match-kd, not both")
    text = budget.strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(
            f"--budget is a share of plain KD's cost such as 50% or 0.5, at most 100%, not '{budget}'"
        )
    return Budget(share)


def _filled(*groups: Group) -> list[Group]:
    return [group for group in groups if group.ways]
