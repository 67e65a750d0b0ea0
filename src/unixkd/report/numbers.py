"""How a report writes numbers."""

from __future__ import annotations

from unixkd.report.runs import MeanStd

NONE = "–"


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


def count(value: float) -> str:
    """A number of images, shortened to three figures.

    >>> count(718), count(28_740), count(1_000_000)
    ('718', '28.7k', '1.00M')
    """
    return _shortened(value, {9: "G", 6: "M", 3: "k"})


def flops(value: float) -> str:
    """Floating-point operations, with three figures.

    >>> flops(718), flops(28_740_000_000), flops(1.2e15)
    ('718 FLOPs', '28.7 GFLOPs', '1.20 PFLOPs')
    """
    text = _shortened(value, {18: " E", 15: " P", 12: " T", 9: " G", 6: " M", 3: " k"})
    return f"{text}{'' if ' ' in text else ' '}FLOPs"


def seconds(value: float) -> str:
    """A time in seconds, or in minutes or hours where it is long.

    >>> seconds(8.24), seconds(95), seconds(1000), seconds(9000)
    ('8.2 s', '95 s', '16.7 min', '2.5 h')
    """
    if value < 10:
        return f"{value:.1f} s"
    if value < 600:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def plural(number: int, what: str) -> str:
    """A number of things.

    >>> plural(1, "run"), plural(2, "run")
    ('1 run', '2 runs')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _shortened(value: float, units: dict[int, str]) -> str:
    """Three figures and the unit of a power of ten, the largest one that fits."""
    for power, unit in units.items():
        if value >= 0.9995 * 10**power:
            scaled = value / 10**power
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{value:.0f}"
