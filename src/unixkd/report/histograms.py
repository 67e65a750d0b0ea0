"""Kept and dropped images by their score, at the beginning, in the middle and at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from unixkd.report.charts import frame
from unixkd.report.markup import details, figure
from unixkd.report.records import Histogram
from unixkd.report.runs import Group
from unixkd.report.svg import MUTED, Style, draw

SHOWN = 4
"""So many methods are drawn at once, the others are folded away."""

Shares = tuple[float, ...]


@dataclass(frozen=True)
class Bars:
    """Share of an epoch's images in each bin, mean over the runs.

    Args:
        epoch: number of the epoch, from 1
        bins: the histogram of one of the runs; all have the same bins
        kept: of all images, those kept
        dropped: of all images, those dropped
        kept_hard: of all images, those kept and hard; zeros where that is unknown
        dropped_hard: of all images, those dropped and hard
    """

    epoch: int
    bins: Histogram
    kept: Shares
    dropped: Shares
    kept_hard: Shares
    dropped_hard: Shares


def bars_over_time(group: Group) -> list[Bars]:
    """At the first, the middle and the last epoch in which every run has a histogram over the same bins."""
    per_run = [
        {line.epoch: line.kept.histogram for line in run.history if line.kept and line.kept.histogram}
        for run in group.runs
    ]
    epochs = sorted(set(per_run[0]).intersection(*per_run[1:]))
    if not epochs:
        return []
    chosen = sorted({epochs[0], epochs[(len(epochs) - 1) // 2], epochs[-1]})
    found = [_bars(epoch, [run[epoch] for run in per_run]) for epoch in chosen]
    return [bars for bars in found if bars is not None]


def by_score(groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """The charts of every method that leaves images out and knows their scores; empty if there is none."""
    rows = []
    for number, group in enumerate(groups):
        bars = bars_over_time(group)
        if any(sum(each.dropped) for each in bars):
            charts = [
                figure(
                    chart(group, styles[group.method], bars, i, f"bins{number}x{i}"), *_caption(group, each)
                )
                for i, each in enumerate(bars)
            ]
            rows.append(f'<div class="charts small">{"".join(charts)}</div>')
    if not rows:
        return ""
    more = details("The same for the other methods", "".join(rows[SHOWN:])) if rows[SHOWN:] else ""
    note = (
        "Upwards the images that were kept, downwards those that were dropped; solid: hard, pale: easy (all pale "
        "where that is unknown). Remembered: the epoch’s images were chosen beforehand, by scores of their last visits."
    )
    title = f"<h3>{escape('Kept and dropped images by their score')}</h3>"
    return f'{title}<p class="note">{escape(note)}</p>{"".join(rows[:SHOWN])}{more}'


def chart(group: Group, style: Style, over_time: Sequence[Bars], number: int, name: str) -> str:
    """One epoch's histogram, on the scale that all epochs of the method share."""
    bars = over_time[number]
    bins, size = bars.bins, len(bars.kept)
    step = (bins.high - bins.low) / size
    centres = [bins.low + (i + 0.5) * step for i in range(size)]
    top = 100 * max(max(each.kept) for each in over_time)
    bottom = 100 * max(max(each.dropped) for each in over_time)
    halves = (
        ("kept", 1, style.colour, bars.kept, bars.kept_hard),
        ("dropped", -1, MUTED, bars.dropped, bars.dropped_hard),
    )

    def plot(axes: Any) -> None:
        for _, sign, colour, shares, hard in halves:
            heights, solid = ([100 * sign * share for share in values] for values in (shares, hard))
            axes.bar(centres, heights, width=0.88 * step, color=colour, alpha=0.4)
            axes.bar(centres, solid, width=0.88 * step, color=colour)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.grid(visible=False, axis="x")
        axes.set_xlim(bins.low, bins.high)
        room = 0.13 * (top + bottom)  # for the words
        axes.set_ylim(-bottom - room, top + room)
        axes.yaxis.set_major_formatter(lambda height, _: f"{abs(height):g}")
        for word, sign, colour, *_ in halves:
            axes.annotate(
                word, (1, sign > 0), (0, -2 * sign), "axes fraction", "offset points",
                color=colour, ha="right", va="top" if sign > 0 else "bottom",
            )  # fmt: skip
        frame(axes, "images, %", bins.score)

    parts = [
        f"{100 * sum(shares):.0f} % {word}, {100 * sum(hard):.0f} % {word} and hard"
        for word, _, _, shares, hard in halves
    ]
    return draw(
        plot,
        name,
        f"{group.method}, epoch {bars.epoch}, images by {bins.score}",
        ", ".join(parts),
        (330, 240),
    )


def _caption(group: Group, bars: Bars) -> tuple[str, str]:
    remark = f"epoch {bars.epoch}" + (", remembered" if bars.bins.remembered else "")
    return group.method, remark


def _bars(epoch: int, runs: Sequence[Histogram]) -> Bars | None:
    if len({(one.score, one.low, one.high, len(one.kept)) for one in runs}) > 1:
        return None
    totals = [sum(one.kept) + sum(one.dropped) for one in runs]
    if not all(totals):
        return None

    def mean(name: str) -> Shares:
        lists = [getattr(one, name) or (0,) * len(one.kept) for one in runs]
        shares = ([count / total for count in counts] for counts, total in zip(lists, totals, strict=True))
        return tuple(sum(column) / len(runs) for column in zip(*shares, strict=True))

    return Bars(epoch, runs[0], mean("kept"), mean("dropped"), mean("kept_hard"), mean("dropped_hard"))
