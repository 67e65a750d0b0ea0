"""The charts of a report: each function gives one inline SVG, drawn with matplotlib.

Colours are drawn with the hexadecimal values below and replaced by CSS variables, so one drawing serves light and dark
pages. Direct labels keep out of each other's way.
"""

from __future__ import annotations

import html
import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from unixkd.errors import missing_extra
from unixkd.names import methods
from unixkd.report.numbers import percent
from unixkd.report.records import Epoch
from unixkd.report.runs import Group, Spread, curve
from unixkd.report.wording import Measure, matched_to

_MARKERS = "oDs^vPX*<>h"


def styles_of(groups: Sequence[Group]) -> dict[str, Style]:
    """Known methods have their own style, others take the next free ones in order; `kd@X` looks like X, but hollow."""
    names = [matched_to(group.method) or group.method for group in groups]
    known = sorted(methods(), key=lambda name: name != "unix")  # which has the first colour
    taken = {name: known.index(name) for name in names if name in known}
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
) -> Markup | None:
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
) -> Markup | None:
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


def times_kept(group: Group, style: Style, shares: Sequence[float], name: str) -> Markup:
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


_HEIGHT = 13.0


_CHARACTER = 6.8


_LONGEST = 20


_SYMBOLS = {"keep": "k=", "mix_from": "b=", "steepness": "w=", "scorer": "", "curve": ""}


def spread_out(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as keeps them `gap` apart and, where they fit, between low and high.

    >>> spread_out([10.0, 12.0, 40.0], gap=10, low=0, high=50)
    [6.0, 16.0, 40.0]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    clusters: list[list[float]] = []  # wanted positions, each cluster evenly spaced around their mean
    for i in order:
        clusters.append([positions[i]])
        while len(clusters) > 1 and _top(clusters[-2], gap) + gap > _bottom(clusters[-1], gap):
            last = clusters.pop()
            clusters[-1] += last
    placed = [_bottom(cluster, gap) + gap * k for cluster in clusters for k in range(len(cluster))]
    for k in range(len(placed)):
        placed[k] = max(placed[k], low + gap * k)
    for k in range(len(placed)):
        placed[-1 - k] = min(placed[-1 - k], high - gap * k)
    result = [0.0] * len(positions)
    for rank, i in enumerate(order):
        result[i] = placed[rank]
    return result


def end_labels(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (y, text, colour) to the right of the axes, which shrink to make room."""
    width = max(len(shortened(text)) for _, text, _ in ends) * _CHARACTER
    figure = axes.figure
    box = axes.get_position()
    room = (width + 12) / figure.bbox.width
    axes.set_position((box.x0, box.y0, 0.99 - room - box.x0, box.height))
    heights = [float(axes.transData.transform((0, y))[1]) for y, _, _ in ends]
    bottom, top = axes.bbox.y0, axes.bbox.y1
    for at, (_, text, colour) in zip(spread_out(heights, _HEIGHT, bottom, top + 6), ends, strict=True):
        axes.annotate(
            shortened(text),
            (1, (at - bottom) / (top - bottom)),
            (8, 0),
            "axes fraction",
            "offset points",
            color=colour,
            va="center",
        )


def point_labels(
    axes: Any,
    points: Sequence[tuple[float, float, str, str]],
    bars: Sequence[tuple[float, float]],
    steps: Sequence[tuple[float, float]] = (),
) -> None:
    """Write (x, y, text, colour) beside each point that has a text.

    Labels keep clear of all points, of their error bars (as long to each side in x and in y) and of steps that go
    right and then up.
    """
    axes.autoscale_view()  # the limits are settled lazily, and labels are placed in pixels
    where = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    ends = [
        axes.transData.transform((x + across, y + up))
        for (x, y, *_), (across, up) in zip(points, bars, strict=True)
    ]
    taken = []
    for (x, y), (right, top) in zip(where, ends, strict=True):
        reach, width = max(7.0, float(top - y)), max(7.0, float(right - x))
        taken.append((float(x) - 7, float(y) - reach, float(x) + 7, float(y) + reach))
        taken.append((float(x) - width, float(y) - 4, float(x) + width, float(y) + 4))
    corners = [axes.transData.transform(step) for step in steps]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        taken += [
            (float(x0), float(y0) - 1, float(x1), float(y0) + 1),
            (x1 - 1, float(y0), x1 + 1, float(y1)),
        ]
    bounds = axes.bbox
    for (x, y, text, colour), at in zip(points, where, strict=True):
        if not text:
            continue
        width = len(shortened(text)) * _CHARACTER
        choices = [(10, 0, "left"), (-10, 0, "right"), (10, 11, "left"), (-10, 11, "right")]
        choices += [(10, -11, "left"), (-10, -11, "right"), (0, 18, "center"), (0, -18, "center")]
        boxes = [_box(float(at[0]) + dx, float(at[1]) + dy, width, side) for dx, dy, side in choices]
        clashes = [
            sum(_overlap(box, other) for other in taken)
            + 1000 * (box[0] < bounds.x0 or box[2] > bounds.x1 + 8 or box[1] < bounds.y0)
            for box in boxes
        ]
        best = clashes.index(min(clashes))
        taken.append(boxes[best])
        dx, dy, side = choices[best]
        axes.annotate(
            shortened(text), (x, y), (dx, dy), textcoords="offset points", color=colour, ha=side, va="center"
        )


def shortened(text: str) -> str:
    """A method's name with the paper's symbols for its options, cut where it is still long.

    >>> shortened("unix:keep=0.5:steepness=1000")
    'unix k=0.5 w=1000'
    """
    for option, symbol in _SYMBOLS.items():
        text = text.replace(f":{option}=", f" {symbol}")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _bottom(cluster: Sequence[float], gap: float) -> float:
    return sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _top(cluster: Sequence[float], gap: float) -> float:
    return _bottom(cluster, gap) + gap * (len(cluster) - 1)


def _box(x: float, y: float, width: float, side: str) -> tuple[float, float, float, float]:
    left = x - {"left": 0.0, "right": width, "center": width / 2}[side]
    return left, y - _HEIGHT / 2, left + width, y + _HEIGHT / 2


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    across = min(a[2], b[2]) - max(a[0], b[0])
    up = min(a[3], b[3]) - max(a[1], b[1])
    return across * up if across > 0 and up > 0 else 0.0


INK, MUTED, GRID, CARD = "#1f2328", "#57606b", "#d9dfe5", "#fffffe"


# in this order distinguishable with any one kind of colour blindness; markers differ as well
SERIES = ("#0a56a4", "#c4460b", "#00806a", "#a03a8c", "#2878b4", "#3d444c", "#8a6a01")


LIGHT = {"ink": INK, "muted": MUTED, "grid": GRID, "card": CARD}


DARK = {"ink": "#e8ecf1", "muted": "#9da7b3", "grid": "#30363d", "card": "#161b22"}


_DARK_SERIES = ("#5aa9ff", "#ff9a5c", "#3fd4ac", "#ee8fd0", "#a6dcff", "#cfd6de", "#e6c04a")


LIGHT |= {f"c{i}": colour for i, colour in enumerate(SERIES)}


DARK |= {f"c{i}": colour for i, colour in enumerate(_DARK_SERIES)}


_STYLE = {
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # a method's name may hold dollar signs
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 2,
    "svg.fonttype": "none",
    "svg.hashsalt": "unixkd",
}


@dataclass(frozen=True)
class Style:
    """Colour and marker of a method, the same in every chart; hollow: plain KD at the cost of the method so styled."""

    colour: str
    marker: str
    hollow: bool = False

    @property
    def variable(self) -> str:
        """The CSS variable of its colour, without the dashes."""
        return next(name for name, colour in LIGHT.items() if colour == self.colour)

    @property
    def marks(self) -> dict[str, str]:
        """How matplotlib draws its marker."""
        filled = {"markeredgecolor": CARD, "markerfacecolor": self.colour}
        return {"markeredgecolor": self.colour, "markerfacecolor": CARD} if self.hollow else filled


def draw(
    plot: Callable[[Any], None], name: str, title: str, said: str, size: tuple[int, int] = (430, 280)
) -> Markup:
    """Draw one chart as an `<svg>` element to stand inside an HTML page.

    Args:
        plot: draws on the matplotlib axes it is given; coordinates are pixels (72 dpi)
        name: prefix of every id in the SVG, different for each chart of a page
        title: what the chart is of
        said: what it shows, for those who cannot see it
        size: width and height in pixels

    Raises:
        UserError: matplotlib is not installed
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "plots", "report pages") from error
    out = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's own matplotlibrc must not change the page
        mpl.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser's fonts have it
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        figure.patch.set_visible(False)
        axes = figure.add_axes((44 / size[0], 42 / size[1], 1 - 60 / size[0], 1 - 70 / size[1]))
        axes.patch.set_visible(False)
        plot(axes)
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    return Markup(_inline(out.getvalue(), name, title, said))


def _inline(svg: str, name: str, title: str, said: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: _slim(tag.group(), name), svg)
    svg = re.sub(r">\s+<", "><", svg)
    told = f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(said)}</desc>'
    svg = svg.replace("<svg ", f'<svg role="img" aria-labelledby="{name}-title {name}-desc" ', 1)
    return svg.replace(">", f">{told}", 1).strip()


def _round(number: re.Match[str]) -> str:
    value = float(number.group())
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 1 else f"{value:.2f}"


def _slim(tag: str, name: str) -> str:
    """Round numbers, prefix ids, name colours, leave fonts and sizes to the page."""
    tag = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", tag).replace("xlink:href", "href")
    if tag.startswith("<svg"):
        tag = re.sub(r'\s(width|height|version)="[^"]*"', "", tag)
    tag = re.sub(r"-?\d+\.\d+", _round, tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    # nothing points at groups; what is pointed at gets an id of its own in the page
    tag = re.sub(r' id="[^"]*"', "", tag) if tag.startswith("<g") else tag.replace(' id="', f' id="{name}-')
    tag = tag.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for variable, colour in LIGHT.items():
        tag = tag.replace(colour, f"var(--{variable})")
    tag = re.sub(r"font: (?:\w+ )*?([\d.]+px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"font-family:[^;\"]*;?", "", tag)
    return re.sub(r"\s+", " ", tag)
