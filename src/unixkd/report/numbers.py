"""How a report writes statistics of several runs."""

from __future__ import annotations

from unixkd.names import NONE
from unixkd.report.runs import MeanStd


def percent(stat: MeanStd | None, digits: int = 2, sd: bool = True) -> str:
    """A fraction in percent, with its deviation where there is one.

    >>> percent(MeanStd(0.979, 0.0012, 3))
    '97.90 ± 0.12'
    """
    if stat is None:
        return NONE
    text = f"{100 * stat.mean:.{digits}f}"
    return f"{text} ± {100 * stat.sd:.{digits}f}" if sd and stat.sd is not None else text


def points(stat: MeanStd | None, sd: bool = True) -> str:
    """A difference of fractions in points, signed.

    >>> points(MeanStd(-0.002, None, 1))
    '−0.20'
    """
    if stat is None:
        return NONE
    text = f"{100 * stat.mean:+.2f}".replace("-", "−")
    text = "0.00" if text in ("+0.00", "−0.00") else text
    return f"{text} ± {100 * stat.sd:.2f}" if sd and stat.sd is not None else text
