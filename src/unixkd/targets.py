"""What a plan is to reach, and the order in which ways to distil reach it; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unixkd.errors import UsageError
from unixkd.ways import Way


@dataclass(frozen=True)
class Group:
    """Ways of one kind, best first.

    Args:
        heading: what they have in common
        ways: the ways
        eligible: whether they reach the target
    """

    heading: str
    ways: list[Way]
    eligible: bool


@dataclass(frozen=True)
class Budget:
    """Spend at most this share of plain KD's cost.

    Args:
        share: in (0, 1], with the backward pass counted as 2 forwards
    """

    share: float

    def groups(self, ways: Sequence[Way], cost: Mapping[str, float]) -> list[Group]:
        """Those within the budget, the most accurate first, then the cheapest; those over it, the cheapest first.

        Args:
            ways: to rank
            cost: of each as a share of plain KD's, by name
        """

        def accuracy_then_cost(way: Way) -> tuple[bool, float, float]:
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

    def groups(self, ways: Sequence[Way], cost: Mapping[str, float]) -> list[Group]:
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
