"""The strategies that `plan` ranks, the evidence for each, and the targets to rank them by; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from unixkd.config import MethodConfig
from unixkd.errors import UsageError

EVIDENCE_REACH = 2
"""Evidence counts for training sets of at most this many times the images that it was measured with, and for at least
as much of its epochs."""

LEAST_MEAN, LEAST_BOUND = -0.2, -0.5
"""Points against plain KD that the mean difference, and its one-sided 90 % lower bound, must not fall below."""

_T90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372, 1.363, 1.356, 1.350, 1.345)
"""Student's t at 90 %, one-sided, for 1, 2, … degrees of freedom; with more the last is a little too careful."""


@dataclass(frozen=True)
class Evidence:
    """Measured differences in accuracy between a strategy and plain KD, seed by seed.

    Args:
        difference: mean difference in points
        sd: standard deviation of the differences
        n: number of differences
        images: training images they were measured with
        where: data, pair and epochs they were measured on
        epochs: of plain KD there; 0: it counts for any number

    >>> Evidence(difference=-0.1, sd=0.3, n=4, images=500, where="…").matches, Evidence(-0.1, 0.3, 2, 500, "…").matches
    (True, False)
    """

    difference: float
    sd: float
    n: int
    images: int
    where: str
    epochs: int = 0

    def counts_for(self, images: int, epochs: int | None) -> bool:
        """Whether it counts for so many images and epochs of plain KD; None: any number of epochs.

        What helps few images may not help many, and what a long training can do without a short one may need.
        """
        long_enough = epochs is None or EVIDENCE_REACH * epochs >= self.epochs
        return images <= EVIDENCE_REACH * self.images and long_enough

    @property
    def lower_bound(self) -> float:
        """One-sided 90 % lower bound of the mean difference; −inf for a single one."""
        if self.n < 2:
            return -math.inf
        return self.difference - _T90[min(self.n - 1, len(_T90)) - 1] * self.sd / math.sqrt(self.n)

    @property
    def matches(self) -> bool:
        """Whether it shows the strategy to be as good as plain KD."""
        return self.difference >= LEAST_MEAN and self.lower_bound >= LEAST_BOUND


@dataclass(frozen=True)
class Strategy:
    """A way to distil, for runs of any number of epochs.

    Args:
        name: shown in the ranking
        method: how samples are scored, kept and mixed
        views_share: fixed views of each image as a share of the epochs; None: all views
        stored: whether the teacher's answers are stored and shared by the runs
        epochs_share: its epochs as a share of those planned; the learning rate is fully decayed in them
        relies_on: what must hold for it to be as accurate as plain KD; empty: nothing
        exact: the same training as plain KD's, but for rounding: nothing has to be shown
        mixed: whether its fixed views are fixed mixes of two images
        evidence: what was measured with about as many images; None: nothing yet
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
        """Its epochs where plain KD would have `planned`, at least 1."""
        return max(1, round(self.epochs_share * planned))

    def views(self, planned: int, available: int | None) -> int | None:
        """Views, or mixes, of each image that it is limited to; None: all that are available.

        Answers to views without end cannot be stored: a few are taken then.

        Args:
            planned: epochs
            available: views that an image has; None: without end

        >>> few = find_strategy("kd, few views")
        >>> few.views(128, 162), few.views(128, 9), find_strategy("kd").views(128, 162)
        (18, None, None)
        """
        if self.views_share is None:
            return few_views(planned) if self.stored and available is None else None
        wanted = few_views(planned, self.views_share)
        return wanted if self.mixed or available is None or wanted < available else None

    def for_images(self, images: int, epochs: int | None = None) -> Strategy:
        """The same strategy for so many images and epochs of plain KD, with its evidence where that counts."""
        measured = self.evidence or self.elsewhere
        counts = measured is not None and measured.counts_for(images, epochs)
        return replace(self, evidence=measured if counts else None, elsewhere=None if counts else measured)

    @property
    def difference(self) -> float | None:
        """Measured accuracy difference to plain KD in points, or None."""
        if self.exact:
            return 0.0
        return None if self.evidence is None else self.evidence.difference

    @property
    def matches(self) -> bool | None:
        """Whether it is as good as plain KD, or None if that was not measured."""
        return True if self.exact else None if self.evidence is None else self.evidence.matches


FEW_VIEWS_SHARE = 0.14
"""Fixed views of each image, as a share of the epochs."""


def few_views(epochs: int, share: float = FEW_VIEWS_SHARE) -> int:
    """Fixed views of each image to store the answers to, for so many epochs of plain KD; at least 1.

    >>> few_views(128), few_views(240), few_views(2)
    (18, 34, 1)
    """
    return max(1, round(share * epochs))


# Evidence comes from the dated result files of `benchmarks/`: several seeds against plain KD under one protocol.
# A strategy without evidence is shown as not measured, and is never reported to match plain KD.
_MEASURED = "CIFAR-100 at 16 pixels, 640 epochs, vgg13 → vgg8 and wrn_40_2 → wrn_16_1 (the worse of the two)"


def _measured(difference: float, sd: float) -> Evidence:
    return Evidence(difference, sd, 5, 500, _MEASURED, epochs=640)


def _few_views(name: str, method: MethodConfig, relies_on: str = "", *, mixed: bool = False) -> Strategy:
    """A strategy that trains on stored answers to a few views of each image."""
    mixes = "a few fixed mixes of each image teaching as well as the image itself"
    reasons = "; ".join(
        filter(None, (mixes if mixed else "a few views being augmentation enough", relies_on))
    )
    return Strategy(name, method, FEW_VIEWS_SHARE, stored=True, relies_on=reasons, mixed=mixed)


_STRATEGIES = (
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
        evidence=_measured(-0.99, 0.24),
    ),
    _few_views("kd, few views", MethodConfig("kd")),
    _few_views(
        "kd, few views, small first",
        MethodConfig("kd", size=0.625, size_end=1.0),
        "small images teaching early on",
    ),
    _few_views("kd, few mixes", MethodConfig("kd"), mixed=True),
    Strategy(
        "remix, 60% of the epochs",
        MethodConfig("remix"),
        stored=True,
        epochs_share=0.6,
        relies_on="mixes of answers being near enough to answers to mixes; mixing making up for images",
        evidence=_measured(1.76, 0.65),
    ),
    Strategy(
        "mixup, 33% of the epochs",
        MethodConfig("mixup"),
        epochs_share=0.33,
        relies_on="mixing making up for images and epochs",
        evidence=_measured(0.44, 0.81),
    ),
    Strategy(
        "random",
        MethodConfig("random"),
        relies_on="a quarter of the images being dispensable",
        evidence=_measured(-0.08, 0.48),
    ),
    Strategy(
        "unix",
        MethodConfig("unix"),
        relies_on="hard images mattering more; mixing doing good",
        evidence=_measured(6.58, 1.01),
    ),
    Strategy(
        "unix, half-size scoring",
        MethodConfig("unix", scoring_size=0.5),
        relies_on="as unix; small images ranking alike",
    ),
    _few_views("unix, step, few views", MethodConfig("unix", curve="step"), "as unix"),
    _few_views("infobatch, few views", MethodConfig("infobatch"), "easy images counting for others"),
    _few_views("stale, few views", MethodConfig("stale"), "old scores telling hard images"),
    _few_views(
        "random-epoch, few views", MethodConfig("random-epoch"), "a quarter of the images being dispensable"
    ),
)


def strategies(images: int = 0, epochs: int | None = None) -> list[Strategy]:
    """Every strategy with the evidence that counts for so many images and epochs of plain KD, which comes first."""
    return [each.for_images(images, epochs) for each in _STRATEGIES]


def find_strategy(name: str) -> Strategy:
    """The strategy of that name."""
    return next(each for each in _STRATEGIES if each.name == name)


class Group(NamedTuple):
    """Strategies of one kind, best first, under a heading; eligible: whether they reach the target."""

    heading: str
    strategies: list[Strategy]
    eligible: bool


@dataclass(frozen=True)
class Budget:
    """Spend at most this share of plain KD's cost, in (0, 1], with the backward pass counted as 2 forwards."""

    share: float

    def groups(self, strategies: Sequence[Strategy], cost: Mapping[str, float]) -> list[Group]:
        """Those within the budget, the most accurate first, then those not measured; those over it, the cheapest first.

        Of what was not measured, what has all epochs of plain KD comes first, and fixed mixes after views, as fewer
        epochs and mixes lost most with 10,000 images (docs/recipe.md); then plain KD's own step, which leaves nothing
        out; then what takes most of the budget: cheaper training is seldom better.

        Args:
            strategies: to rank
            cost: of each as a share of plain KD's, by name
        """
        ordered = sorted(strategies, key=lambda each: cost[each.name])
        within = [each for each in ordered if cost[each.name] <= self.share]
        within.sort(
            key=lambda each: (
                each.difference is None,
                -(each.difference or 0.0),
                each.epochs_share < 1,
                each.mixed,
                each.method != MethodConfig("kd"),
                -cost[each.name],
            )
        )
        over = [each for each in ordered if cost[each.name] > self.share]
        heading = f"within {100 * self.share:.4g}% of kd's cost"
        groups = [Group(heading, within, True), Group("over the budget", over, False)]
        return [group for group in groups if group.strategies]


@dataclass(frozen=True)
class MatchKD:
    """Be as accurate as plain KD, for the least cost."""

    def groups(self, strategies: Sequence[Strategy], cost: Mapping[str, float]) -> list[Group]:
        """Those that match plain KD, those not measured, those measured not to match; the cheapest first."""
        ordered = sorted(strategies, key=lambda each: cost[each.name])
        matching, unknown, worse = (
            [each for each in ordered if each.matches is matches] for matches in (True, None, False)
        )
        groups = [
            Group("as accurate as plain KD", matching, True),
            Group("not measured yet", unknown, False),
            Group("measured, and no match", worse, False),
        ]
        return [group for group in groups if group.strategies]


def parse_target(budget: str | None, match_kd: bool) -> Budget | MatchKD | None:
    """The target that the options name.

    Raises:
        UsageError: both are set, or the budget is no share in (0, 1]

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
