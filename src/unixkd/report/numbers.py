"""How a report writes statistics of several runs."""

from __future__ import annotations

from unixkd.names import NONE
from unixkd.report.runs import Spread


def percent(spread: Spread | None, digits: int = 2, sd: bool = True) -> str:
    """A fraction in percent, with its deviation where there is one.

    >>> percent(Spread(0.979, 0.0012, 3))
    '97.90 ± 0.12'
    """
    if spread is None:
        return NONE
    text = f"{100 * spread.mean:.{digits}f}"
    return f"{text} ± {100 * spread.sd:.{digits}f}" if sd and spread.sd is not None else text


def points(spread: Spread | None, sd: bool = True) -> str:
    """A difference of fractions in points, signed.

    >>> points(Spread(-0.002, None, 1))
    '−0.20'
    """
    if spread is None:
        return NONE
    text = f"{100 * spread.mean:+.2f}".replace("-", "−")
    text = "0.00" if text in ("+0.00", "−0.00") else text
    return f"{text} ± {100 * spread.sd:.2f}" if sd and spread.sd is not None else text
