"""The charts of a report: each function gives one inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unixkd.report.figures import percent
from unixkd.report.labels import end_labels
from unixkd.report.records import Epoch
from unixkd.report.runs import Group, Spread, curve
from unixkd.report.svg import MUTED, SERIES, Style, draw
from unixkd.report.words import Measure, matched_to

_KNOWN = ("unix", "kd", "random", "hard", "", "unix-random", "mixup")
_MARKERS = "oDs^vPX*<>h"


def styles_of(groups: Sequence[Group]) -> dict[str, Style]:
    """Known methods have their own style, others take the next free ones in order; `kd@X` looks like X, but hollow."""
    names = [matched_to(group.method) or group.method for group in groups]
    taken = {name: _KNOWN.index(name) for name in names if name in _KNOWN}
    free = (slot for slot in range(1_000_000) if slot not in taken.values())
    slots = {name: taken.get(name, -1) for name in names}
    for name, slot in slots.items():
        slots[name] = next(free) if slot < 0 else slot
    return {
        group.method: Style(
            SERIES[slots[name] % len(SERIES)], _MARKERS[slots[name] % len(_MARKERS)], name != group.method
        )
        for group, name in zip(groups, names, strict=True)
    }


def training_curves(
    groups: Sequence[Group],
    styles: dict[str, Style],
    measure: Measure,
    teacher: Spread | None,
    by_cost: bool,
    name: str,
) -> str | None:
    """Mean over the seeds after every epoch, with a band of one standard deviation."""
    lines = []
    for group in groups:
        points = _line(group, measure.of_epoch, by_cost)
        if len(points) > 1:
            lines.append((group, points))
    if not lines:
        return None

    def plot(axes: Any) -> None:
        for group, points in lines:
            _band(axes, points, styles[group.method])
        low, high = focus([[spread.mean for _, spread in points] for _, points in lines])
        if teacher is not None and measure.name == "accuracy":
            high = max(high, teacher.mean)
            axes.axhline(100 * teacher.mean, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        gap = 0.05 * (high - low)
        axes.set_ylim(100 * (low - gap), 100 * (high + gap))
        frame(axes, f"{measure.name}, %", "computation so far, % of plain KD" if by_cost else "epoch")
        ends = [(100 * p[-1][1].mean, g.method, styles[g.method].colour) for g, p in lines]
        if teacher is not None and measure.name == "accuracy":
            ends.append((100 * teacher.mean, "teacher", MUTED))
        end_labels(axes, ends)

    said = ", ".join(f"{g.method} ends at {percent(p[-1][1])}" for g, p in lines)
    along = "computation so far" if by_cost else "epoch"
    return draw(plot, name, f"{measure.name} in % by {along}", said)


def focus(lines: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Limits that give half of the height to the second half of training.

    >>> focus([[0.1, 0.5, 0.9, 0.92]])
    (0.88, 0.92)
    """
    high = max(max(line) for line in lines)
    settled = min(min(line[len(line) // 2 :]) for line in lines)
    span = max(2 * (high - settled), 0.01)
    return round(max(high - span, min(min(line) for line in lines), 0.0), 6), high


def kept_and_dropped(
    group: Group,
    style: Style,
    kept: Callable[[Epoch], float | None],
    dropped: Callable[[Epoch], float | None],
    title: str,
    name: str,
) -> str | None:
    """A quantity of the kept and of the dropped images of one method over the epochs."""
    lines = {"kept": curve(group, kept), "dropped": curve(group, dropped)}
    if len(lines["kept"]) < 2:
        return None
    scale = 100 if title.endswith("%") else 1

    def plot(axes: Any) -> None:
        ends = []
        for which, points in lines.items():
            if points:
                dashed = "-" if which == "kept" else (0, (4, 2))
                x, y = [epoch for epoch, _ in points], [scale * spread.mean for _, spread in points]
                axes.plot(x, y, color=style.colour, linestyle=dashed)
                ends.append((y[-1], which, style.colour))
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        frame(axes, title, "epoch")
        end_labels(axes, ends)

    said = ", ".join(f"{which} ends at {p[-1][1].mean * scale:.3g}" for which, p in lines.items() if p)
    return draw(plot, name, f"{group.method}: {title} by epoch", said, size=(330, 230))


def times_kept(group: Group, style: Style, shares: Sequence[float], name: str) -> str:
    """Share of the training images that were kept 0, 1, 2, ... times."""

    def plot(axes: Any) -> None:
        axes.bar(range(len(shares)), [100 * share for share in shares], width=0.86, color=style.colour)
        axes.grid(visible=False, axis="x")
        frame(axes, "images, %", "times kept")

    mean = sum(times * share for times, share in enumerate(shares))
    said = f"on average {mean:.1f} of {len(shares) - 1} times"
    return draw(plot, name, f"{group.method}: how often each image was kept", said, size=(330, 220))


def _line(group: Group, value: Callable[[Epoch], float | None], by_cost: bool) -> list[tuple[float, Spread]]:
    points = curve(group, value)
    if not by_cost:
        return [(epoch, spread) for epoch, spread in points]
    costs = {epoch: 100 * cost.mean for epoch, cost in curve(group, lambda epoch: epoch.cost_2x)}
    return [(costs[epoch], spread) for epoch, spread in points if epoch in costs]


def _band(axes: Any, points: Sequence[tuple[float, Spread]], style: Style) -> None:
    x = [at for at, _ in points]
    y = [100 * spread.mean for _, spread in points]
    sd = [100 * (spread.sd or 0) for _, spread in points]
    if any(sd):
        low, high = zip(*((m - d, m + d) for m, d in zip(y, sd, strict=True)), strict=True)
        axes.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0)
    every = max(1, len(x) // 5)
    marks = {"marker": style.marker, "markersize": 6, "markeredgewidth": 0.8, **style.marks}
    dashes = (0, (5, 2)) if style.hollow else "-"
    axes.plot(
        x, y, color=style.colour, linestyle=dashes, markevery=list(range(len(x) - 1, -1, -every)), **marks
    )


def frame(axes: Any, above: str, below: str) -> None:
    """Name the axes; the vertical one in plain reading direction above it."""
    axes.annotate(above, (0, 1), (-38, 12), "axes fraction", "offset points", color=MUTED, fontsize=11)
    axes.set_xlabel(below, fontsize=11)
    axes.locator_params(axis="y", nbins=6)
    axes.locator_params(axis="x", nbins=7)
