"""The sections on selection: what was kept over time, how often each image was, histograms of scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from unixkd.names import NONE, plural
from unixkd.report import charts
from unixkd.report.charts import MUTED, Style, draw, frame
from unixkd.report.numbers import percent
from unixkd.report.parts import Figure, Table
from unixkd.report.records import Run
from unixkd.report.runs import Group, MeanStd, curve
from unixkd.report.wording import hero_of
from unixkd.run_files import Epoch, Histogram, Picture, Selected


def what_was_kept(groups: Sequence[Group], styles: dict[str, Style]) -> dict[str, Any] | None:
    """Hard share, mean score and histograms of kept and dropped images; None if nothing was dropped."""
    selecting = [group for group in groups if _drops(group)]
    hard, scores = [], []
    for number, group in enumerate(selecting):
        style = styles[group.method]
        pair = _of(lambda kept: kept.hard_kept), _of(lambda kept: kept.hard_dropped)
        hard.append((group, charts.kept_and_dropped(group, style, *pair, "hard images, %", f"hard{number}")))
        pair = _of(lambda kept: kept.score_kept), _of(lambda kept: kept.score_dropped)
        scores.append((group, charts.kept_and_dropped(group, style, *pair, "mean score", f"score{number}")))
    drawn = {"hard": _figures(hard), "scores": _figures(scores), "by_score": by_score(selecting, styles)}
    return drawn | {"last_epoch": _last_epoch(selecting, styles)} if any(drawn.values()) else None


def how_often(groups: Sequence[Group], styles: dict[str, Style]) -> dict[str, Any] | None:
    """Histograms of how often each image was kept, and images from both ends."""
    figures, rows, shown = [], [], []
    for number, group in enumerate(groups):
        shares = kept_shares(group)
        if shares is None:
            continue
        style = styles[group.method]
        shown.append(style)
        figures.append(Figure(charts.times_kept(group, style, shares, f"times{number}"), group.method))
        mean = sum(times * share for times, share in enumerate(shares))
        never, always = f"{100 * shares[0]:.1f} %", f"{100 * shares[-1]:.1f} %"
        rows.append([group.method, f"{mean:.1f} of {len(shares) - 1}", never, always])
    if not figures:
        return None
    headers = ["method", "times kept, mean", "never kept", "kept every time"]
    table = Table("How often images were kept", headers, rows, shown)
    return {"figures": figures, "table": table, "pictures": _pictures(groups)}


def kept_shares(group: Group) -> list[float] | None:
    """Share of the images that were kept 0, 1, 2, ... times, mean over the runs; None if unknown."""
    selections = [
        run.selection for run in group.runs if run.selection and sum(run.selection.histogram.images)
    ]
    if not selections:
        return None
    top = max(max(*one.histogram.times_kept, one.epochs) for one in selections)
    shares = [0.0] * (top + 1)
    for one in selections:
        for times, images in zip(one.histogram.times_kept, one.histogram.images, strict=True):
            shares[times] += images / sum(one.histogram.images) / len(selections)
    return shares


def _of(value: Callable[[Selected], float | None]) -> Callable[[Epoch], float | None]:
    return lambda epoch: None if epoch.selection is None else value(epoch.selection)


def _drops(group: Group) -> bool:
    kept = [line.selection.kept_of_all for run in group.runs for line in run.history if line.selection]
    return any(share is not None and share < 1 for share in kept)


def _figures(drawn: Sequence[tuple[Group, Markup | None]]) -> list[Figure]:
    return [Figure(svg, group.method) for group, svg in drawn if svg is not None]


def _last_epoch(groups: Sequence[Group], styles: dict[str, Style]) -> Table:
    columns: list[tuple[str, Callable[[Selected], float | None]]] = [
        ("images\nkept", lambda kept: kept.kept_of_all),
        ("training images\nused at least once", lambda kept: kept.distinct),
        ("hard among\nkept", lambda kept: kept.hard_kept),
        ("hard among\ndropped", lambda kept: kept.hard_dropped),
    ]
    rows = []
    for group in groups:
        ends = [_last(group, _of(value)) for _, value in columns]
        rows.append(
            [group.method, *(NONE if end is None else f"{percent(end, 1, sd=False)} %" for end in ends)]
        )
    headers = ["last epoch", *(header for header, _ in columns)]
    caption = "What was kept in the last epoch"
    return Table(caption, headers, rows, [styles[group.method] for group in groups])


def _last(group: Group, value: Callable[[Epoch], float | None]) -> MeanStd | None:
    points = curve(group, value)
    return points[-1][1] if points else None


@dataclass(frozen=True)
class Shown:
    """A picture as the page shows it: its file in base64, what it is in words, its label and a figure below it."""

    png: str
    words: str
    label: str
    figure: str


@dataclass(frozen=True)
class PictureRow:
    """Pictures under a heading."""

    title: str
    pictures: tuple[Shown, ...]


def _pictures(groups: Sequence[Group]) -> list[PictureRow]:
    """Of one run: of the method the report is about, else of the first that has any."""
    shown = [hero_of(groups), *groups]
    pictured = (run for group in shown for run in group.runs if run.selection and run.selection.most_kept)
    run: Run | None = next(pictured, None)
    if run is None or run.selection is None:
        return []
    whose, selection = f"{run.method}, seed {run.seed}", run.selection
    never = dict(zip(selection.histogram.times_kept, selection.histogram.images, strict=True)).get(0, 0)
    least = "Kept least often"
    if never:
        others = any(picture.times for picture in selection.least_kept)
        more = "; then those kept least often" if others else f", {len(selection.least_kept)} of them shown"
        least = f"Never kept: {plural(never, 'image')}{more}"
    rows = [
        _row(f"Kept most often ({whose})", selection.most_kept, _times),
        _row(f"{least} ({whose})", selection.least_kept, _times),
        _row(f"Mixed most strongly ({whose})", selection.most_mixed, _share),
    ]
    return [row for row in rows if row.pictures]


def _row(title: str, pictures: Sequence[Picture], figure: Callable[[Picture], str]) -> PictureRow:
    shown = []
    for picture in pictures:
        label = str(picture.label) if picture.label is not None else f"#{picture.index}"
        mixed = f", {_share(picture)} of its rows was given to partners" if picture.mixed else ""
        words = f"training image {picture.index}, {label}, kept {picture.times} times{mixed}"
        shown.append(Shown(picture.png, words, label, figure(picture)))
    return PictureRow(title, tuple(shown))


def _times(picture: Picture) -> str:
    return f"{picture.times}×"


def _share(picture: Picture) -> str:
    """How much of the image's rows, on average, was its partners'."""
    return f"{100 * (picture.mixed or 0) / max(1, picture.times):.0f} %"


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
        {
            line.epoch: line.selection.histogram
            for line in run.history
            if line.selection and line.selection.histogram
        }
        for run in group.runs
    ]
    epochs = sorted(set(per_run[0]).intersection(*per_run[1:]))
    if not epochs:
        return []
    chosen = sorted({epochs[0], epochs[(len(epochs) - 1) // 2], epochs[-1]})
    found = [_bars(epoch, [run[epoch] for run in per_run]) for epoch in chosen]
    return [bars for bars in found if bars is not None]


def by_score(groups: Sequence[Group], styles: dict[str, Style]) -> list[list[Figure]]:
    """The histograms of every method that leaves images out and knows their scores, a list for each method."""
    rows = []
    for number, group in enumerate(groups):
        bars, style = bars_over_time(group), styles[group.method]
        if any(sum(each.dropped) for each in bars):
            drawn = (chart(group, style, bars, i, f"bins{number}x{i}") for i in range(len(bars)))
            rows.append(
                [Figure(svg, group.method, _remark(each)) for svg, each in zip(drawn, bars, strict=True)]
            )
    return rows


def chart(group: Group, style: Style, over_time: Sequence[Bars], number: int, name: str) -> Markup:
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


def _remark(bars: Bars) -> str:
    return f"epoch {bars.epoch}" + (", remembered" if bars.bins.remembered else "")


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
