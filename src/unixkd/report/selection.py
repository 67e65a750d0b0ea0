"""The sections on selection: what was kept over time, how often each image was, histograms of scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from unixkd.names import NONE, plural
from unixkd.report.charts import MUTED, Figure, Style, draw, frame, legend_below
from unixkd.report.runs import Group, MeanStd, curve
from unixkd.report.table import PageTable
from unixkd.report.wording import hero_of, percent
from unixkd.run_files import Epoch, Histogram, Picture

MAX_BARS = 500
"""Of a chart; more are drawn as one shape."""


def what_was_kept(groups: Sequence[Group], styles: dict[str, Style]) -> dict[str, Any] | None:
    """Hard share, mean score and histograms of kept and dropped images; None if nothing was dropped."""
    selecting = [group for group in groups if _drops(group)]
    sections = {
        "hard": _kept_and_dropped(selecting, styles, "hard", "hard images, %"),
        "scores": _kept_and_dropped(selecting, styles, "score", "mean score"),
        "by_score": by_score(selecting, styles),
    }
    return sections | {"last_epoch": _last_epoch(selecting, styles)} if any(sections.values()) else None


def _kept_and_dropped(
    groups: Sequence[Group], styles: dict[str, Style], quantity: str, title: str
) -> list[Figure]:
    """A chart over the epochs for each method of which `QUANTITY_kept` is known."""
    figures = []
    for number, group in enumerate(groups):
        lines = {which: curve(group, _selected(f"{quantity}_{which}")) for which in ("kept", "dropped")}
        if len(lines["kept"]) > 1:
            svg = _over_epochs(group, styles[group.method], lines, title, f"{quantity}{number}")
            figures.append(Figure(svg, group.method))
    return figures


def _over_epochs(
    group: Group, style: Style, lines: dict[str, list[tuple[int, MeanStd]]], title: str, name: str
) -> Markup:
    scale = 100 if title.endswith("%") else 1

    def plot(axes: Any) -> None:
        shown = []
        for which, points in lines.items():
            if points:
                dashed = "-" if which == "kept" else (0, (4, 2))
                x, y = [epoch for epoch, _ in points], [scale * stat.mean for _, stat in points]
                shown += [(line, which) for line in axes.plot(x, y, color=style.colour, linestyle=dashed)]
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        frame(axes, title, "epoch")
        legend_below(axes, shown)

    description = ", ".join(f"{which} ends at {p[-1][1].mean * scale:.3g}" for which, p in lines.items() if p)
    return draw(plot, name, f"{group.method}: {title} by epoch", description, size=(330, 230))


def how_often(groups: Sequence[Group], styles: dict[str, Style]) -> dict[str, Any] | None:
    """Histograms of how often each image was kept, and images from both ends."""
    figures, rows, shown = [], [], []
    for number, group in enumerate(groups):
        shares = kept_shares(group)
        if shares is None:
            continue
        shown.append(styles[group.method])
        mean = f"{sum(times * share for times, share in enumerate(shares)):.1f} of {len(shares) - 1}"
        svg = _times_kept(group, shown[-1], shares, mean, f"times{number}")
        figures.append(Figure(svg, group.method))
        rows.append([group.method, mean, f"{100 * shares[0]:.1f} %", f"{100 * shares[-1]:.1f} %"])
    streams = [group.method for group in groups if _drops(group) and _is_stream(group)]
    if not figures and not streams:
        return None
    headers = ["method", "times kept, mean", "never kept", "kept every time"]
    table = PageTable("How often images were kept", headers, rows, shown) if figures else None
    return {"figures": figures, "table": table, "pictures": _pictures(groups), "streams": streams}


def _times_kept(group: Group, style: Style, shares: Sequence[float], mean: str, name: str) -> Markup:
    def plot(axes: Any) -> None:
        heights = [100 * share for share in shares]
        if len(heights) <= MAX_BARS:
            axes.bar(range(len(heights)), heights, width=0.86, color=style.colour)
        else:  # one shape, as thousands take minutes
            axes.stairs(
                heights, [times - 0.5 for times in range(len(heights) + 1)], fill=True, color=style.colour
            )
        axes.grid(visible=False, axis="x")
        axes.xaxis.get_major_locator().set_params(integer=True)
        frame(axes, "images, %", "times kept")

    title = f"{group.method}: how often each image was kept"
    return draw(plot, name, title, f"on average {mean} times", size=(330, 220))


def kept_shares(group: Group) -> list[float] | None:
    """Share of the images that were kept 0, 1, 2, ... times, mean over the runs; None if unknown."""
    known = (run.selection for run in group.runs if run.selection)
    selections = [one for one in known if sum(one.histogram.images)]
    if not selections:
        return None
    top = max(max(*one.histogram.times_kept, one.epochs) for one in selections)
    shares = [0.0] * (top + 1)
    for one in selections:
        for times, images in zip(one.histogram.times_kept, one.histogram.images, strict=True):
            shares[times] += images / sum(one.histogram.images) / len(selections)
    return shares


def _selected(name: str) -> Callable[[Epoch], float | None]:
    """Reads a field of `run_files.Selected` from an epoch."""
    return lambda epoch: None if epoch.selection is None else getattr(epoch.selection, name)


def _drops(group: Group) -> bool:
    kept = [line.selection.kept_of_all for run in group.runs for line in run.history if line.selection]
    return any(share is not None and share < 1 for share in kept)


def _is_stream(group: Group) -> bool:
    """Whether its images come from a stream, which has no numbers to count them by."""
    data = [run.config.get("data") for run in group.runs]
    return all(isinstance(each, dict) and str(each.get("name")).startswith("stream:") for each in data)


def _last_epoch(groups: Sequence[Group], styles: dict[str, Style]) -> PageTable:
    columns = {
        "images\nkept": _selected("kept_of_all"),
        "training images\nused at least once": _selected("distinct"),
        "hard among\nkept": _selected("hard_kept"),
        "hard among\ndropped": _selected("hard_dropped"),
    }
    rows = []
    for group in groups:
        curves = [curve(group, value) for value in columns.values()]
        ends = [f"{percent(points[-1][1], 1, sd=False)} %" if points else NONE for points in curves]
        rows.append([group.method, *ends])
    marks = [styles[group.method] for group in groups]
    return PageTable("What was kept in the last epoch", ["last epoch", *columns], rows, marks)


def _pictures(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Rows of pictures, of one run: of the method the report is about, else of the first that has any."""
    for run in (run for group in (hero_of(groups), *groups) for run in group.runs):
        if run.selection and run.selection.most_kept:
            break
    else:
        return []
    selection, whose = run.selection, f"({run.method}, seed {run.seed})"
    never = dict(zip(selection.histogram.times_kept, selection.histogram.images, strict=True)).get(0, 0)
    least = "Kept least often"
    if never:
        others = any(picture.times for picture in selection.least_kept)
        more = "; then those kept least often" if others else f", {len(selection.least_kept)} of them shown"
        least = f"Never kept: {plural(never, 'image')}{more}"
    rows = [
        ("Kept most often", [_picture(each, f"{each.times}×") for each in selection.most_kept]),
        (least, [_picture(each, f"{each.times}×") for each in selection.least_kept]),
        ("Mixed most strongly", [_picture(each, _mixed(each)) for each in selection.most_mixed]),
    ]
    return [{"title": f"{title} {whose}", "pictures": pictures} for title, pictures in rows if pictures]


def _picture(picture: Picture, figure: str) -> dict[str, Any]:
    """A picture as the page shows it: its address, what it is in words, its label and a figure below it."""
    label = str(picture.label) if picture.label is not None else f"#{picture.index}"
    mixed = f", {_mixed(picture)} of its rows was given to partners" if picture.mixed else ""
    named = f", {picture.file}" if picture.file else ""
    words = f"training image {picture.index}{named}, {label}, kept {plural(picture.times, 'time')}{mixed}"
    address, pixelated = picture.address, picture.png is not None
    return {"address": address, "pixelated": pixelated, "words": words, "label": label, "figure": figure}


def _mixed(picture: Picture) -> str:
    """How much of the image's rows, on average, was its partners'."""
    return f"{100 * (picture.mixed or 0) / max(1, picture.times):.0f} %"


Shares = tuple[float, ...]


class Bars(NamedTuple):
    """An epoch's images in each bin as shares of all its images, mean over the runs; hard: zeros where unknown."""

    epoch: int
    bins: Histogram  # of one of the runs; all have the same bins
    kept: Shares
    dropped: Shares
    kept_hard: Shares
    dropped_hard: Shares


def bars_over_time(group: Group) -> list[Bars]:
    """At the first, the middle and the last epoch in which every run has a histogram over the same bins."""
    by_epoch: dict[int, list[Histogram]] = {}
    for line in (line for run in group.runs for line in run.history):
        if line.selection and line.selection.histogram:
            by_epoch.setdefault(line.epoch, []).append(line.selection.histogram)
    epochs = sorted(epoch for epoch, histograms in by_epoch.items() if len(histograms) == len(group.runs))
    chosen = sorted({epochs[0], epochs[(len(epochs) - 1) // 2], epochs[-1]}) if epochs else []
    means = [_bars(epoch, by_epoch[epoch]) for epoch in chosen]
    return [bars for bars in means if bars is not None]


def by_score(groups: Sequence[Group], styles: dict[str, Style]) -> list[list[Figure]]:
    """The histograms of every method that leaves images out and knows their scores, a list for each method."""
    rows = []
    for number, group in enumerate(groups):
        bars, style = bars_over_time(group), styles[group.method]
        if any(sum(each.dropped) for each in bars):
            top = 100 * max(max(each.kept) for each in bars)
            bottom = 100 * max(max(each.dropped) for each in bars)
            charts = [
                chart(group, style, each, top, bottom, f"bins{number}x{i}") for i, each in enumerate(bars)
            ]
            rows.append(charts)
    return rows


def chart(group: Group, style: Style, bars: Bars, top: float, bottom: float, name: str) -> Figure:
    """One epoch's histogram; `top` and `bottom` in % are those of all epochs of the method."""
    bins, size = bars.bins, len(bars.kept)
    step = (bins.high - bins.low) / size
    centres = [bins.low + (i + 0.5) * step for i in range(size)]
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

    description = ", ".join(
        f"{100 * sum(shares):.0f} % {word}, {100 * sum(hard):.0f} % {word} and hard"
        for word, _, _, shares, hard in halves
    )
    title = f"{group.method}, epoch {bars.epoch}, images by {bins.score}"
    svg = draw(plot, name, title, description, (330, 240))
    return Figure(svg, group.method, f"epoch {bars.epoch}{', remembered' * bins.remembered}")


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
