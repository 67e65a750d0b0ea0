"""The charts of a report: each function gives one `<svg>` element, drawn with matplotlib, to stand inside the page.

Colours are drawn with the hexadecimal values below and replaced by CSS variables, so one drawing serves light and dark
pages. A legend stands below where a chart shows more than one thing.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from unixkd.errors import missing_extra
from unixkd.names import methods
from unixkd.report.runs import Group, MeanStd, curve, matched_to
from unixkd.report.wording import Measure, percent
from unixkd.run_files import Epoch

INK, MUTED, GRID, CARD = "#1f2328", "#57606b", "#d9dfe5", "#fffffe"
# In this order distinguishable with any one kind of colour blindness; markers differ as well.
SERIES = ("#0a56a4", "#c4460b", "#00806a", "#a03a8c", "#2878b4", "#3d444c", "#8a6a01")
_DARK_SERIES = ("#5aa9ff", "#ff9a5c", "#3fd4ac", "#ee8fd0", "#a6dcff", "#cfd6de", "#e6c04a")
_MARKERS = "oDs^vPX*<>h"

LIGHT = {"ink": INK, "muted": MUTED, "grid": GRID, "card": CARD}
LIGHT |= {f"c{i}": colour for i, colour in enumerate(SERIES)}
DARK = {"ink": "#e8ecf1", "muted": "#9da7b3", "grid": "#30363d", "card": "#161b22"}
DARK |= {f"c{i}": colour for i, colour in enumerate(_DARK_SERIES)}

_LEGEND_ROW = 16
"""Pixels."""
_LONGEST = 20
"""Characters of a name in a legend."""
_SYMBOLS = {"keep": "k=", "mix_from": "b=", "steepness": "w=", "scorer": "", "curve": ""}

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
}


class Figure(NamedTuple):
    """A chart under its caption; the remark stands beside the caption."""

    svg: Markup
    caption: str
    remark: str = ""


@dataclass(frozen=True)
class Style:
    """Colour and marker of a method, the same in every chart; hollow: plain KD at the cost of the method so styled."""

    number: int
    hollow: bool = False

    @property
    def variable(self) -> str:
        """The CSS variable of its colour, without the dashes."""
        return f"c{self.number % len(SERIES)}"

    @property
    def colour(self) -> str:
        """Its colour on a light page."""
        return LIGHT[self.variable]

    @property
    def marks(self) -> dict[str, str]:
        """Matplotlib's options for its marker."""
        edge, face = (self.colour, CARD) if self.hollow else (CARD, self.colour)
        marker = _MARKERS[self.number % len(_MARKERS)]
        return {"marker": marker, "markeredgecolor": edge, "markerfacecolor": face}


def styles_of(groups: Sequence[Group]) -> dict[str, Style]:
    """Known methods have their own style, others take the next free ones in order; `kd@X` looks like X, but hollow."""
    names = {group.method: matched_to(group.method) or group.method for group in groups}
    known = sorted(methods(), key=lambda name: name != "unix")  # which has the first colour
    absent = [number for number, name in enumerate(known) if name not in names.values()]
    free = iter([*absent, *range(len(known), len(known) + len(names))])
    distinct = dict.fromkeys(names.values())
    numbers = {name: known.index(name) if name in known else next(free) for name in distinct}
    return {method: Style(numbers[name], hollow=name != method) for method, name in names.items()}


def training_curves(
    groups: Sequence[Group],
    styles: dict[str, Style],
    measure: Measure,
    teacher: MeanStd | None,
    by_cost: bool,
) -> Markup | None:
    """Mean over the seeds after every epoch, with a band of one standard deviation."""
    lines = [(group, _line(group, measure.of_epoch, by_cost)) for group in groups]
    lines = [(group, points) for group, points in lines if len(points) > 1]
    if not lines:
        return None
    along = "computation so far" if by_cost else "epoch"

    def plot(axes: Any) -> None:
        shown = [(_band(axes, points, styles[group.method]), group.method) for group, points in lines]
        low, high = focus([[stat.mean for _, stat in points] for _, points in lines])
        if teacher is not None and measure.name == "accuracy":
            high = max(high, teacher.mean)
            level = axes.axhline(100 * teacher.mean, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            shown.append((level, "teacher"))
        gap = 0.05 * (high - low) or 0.01  # curves that are level, all at one height
        axes.set_ylim(100 * (low - gap), 100 * (high + gap))
        frame(axes, f"{measure.name}, %", f"{along}, % of plain KD" if by_cost else along)
        legend_below(axes, shown)

    description = ", ".join(f"{g.method} ends at {percent(p[-1][1])}" for g, p in lines)
    return draw(plot, f"curve{int(by_cost)}", f"{measure.name} in % by {along}", description)


def focus(lines: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Limits that give half of the height to the second half of training.

    >>> focus([[0.1, 0.5, 0.9, 0.92]])
    (0.88, 0.92)
    """
    high = max(max(line) for line in lines)
    settled = min(min(line[len(line) // 2 :]) for line in lines)
    span = max(2 * (high - settled), 0.01)
    return round(max(high - span, min(min(line) for line in lines), 0.0), 6), high


def _line(group: Group, value: Callable[[Epoch], float | None], by_cost: bool) -> list[tuple[float, MeanStd]]:
    points = curve(group, value)
    costs = dict(curve(group, lambda epoch: epoch.cost.backward_2x if epoch.cost else None))
    if by_cost:
        return [(100 * costs[epoch].mean, stat) for epoch, stat in points if epoch in costs]
    return [(epoch, stat) for epoch, stat in points]


def _band(axes: Any, points: Sequence[tuple[float, MeanStd]], style: Style) -> Any:
    x = [at for at, _ in points]
    y = np.array([100 * stat.mean for _, stat in points])
    sd = np.array([100 * (stat.sd or 0) for _, stat in points])
    if sd.any():
        axes.fill_between(x, y - sd, y + sd, color=style.colour, alpha=0.15, linewidth=0)
    every = max(1, len(x) // 5)
    (line,) = axes.plot(
        x,
        y,
        color=style.colour,
        linestyle=(0, (5, 2)) if style.hollow else "-",
        markevery=list(range(len(x) - 1, -1, -every)),
        markersize=6,
        markeredgewidth=0.8,
        **style.marks,
    )
    return line


def frame(axes: Any, above: str, below: str) -> None:
    """Name the axes; the vertical one in plain reading direction above it."""
    axes.annotate(above, (0, 1), (-38, 12), "axes fraction", "offset points", color=MUTED, fontsize=11)
    axes.set_xlabel(below, fontsize=11)
    axes.locator_params(axis="y", nbins=6)
    axes.locator_params(axis="x", nbins=7)


def legend_below(axes: Any, shown: Sequence[tuple[Any, str]]) -> None:
    """Name what is shown, in two columns below the axes; the figure grows by the rows of the legend."""
    figure = axes.figure
    width, height = figure.bbox.width, figure.bbox.height
    rows = _LEGEND_ROW * ((len(shown) + 1) // 2) + 4
    left, bottom, across, high = axes.bbox.bounds  # in pixels, before the figure grows
    grown = height + rows
    figure.set_size_inches(width / 72, grown / 72)
    axes.set_position((left / width, (bottom + rows) / grown, across / width, high / grown))
    figure.legend(
        [line for line, _ in shown],
        [shortened(text) for _, text in shown],
        loc="lower left",
        bbox_to_anchor=(left / width, 0),
        borderaxespad=0,
        borderpad=0,
        labelspacing=(_LEGEND_ROW - 11) / 11,
        ncols=2,
        columnspacing=3,  # on a phone the page sets larger letters
        frameon=False,
    )


def shortened(text: str) -> str:
    """A method's name with the paper's symbols for its options, cut where it is still long.

    >>> shortened("unix:keep=0.5:steepness=1000")
    'unix k=0.5 w=1000'
    """
    for option, symbol in _SYMBOLS.items():
        text = text.replace(f":{option}=", f" {symbol}")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def draw(
    plot: Callable[[Any], None], name: str, title: str, description: str, size: tuple[int, int] = (430, 280)
) -> Markup:
    """Draw one chart as an `<svg>` element to stand inside an HTML page.

    Args:
        plot: draws on the matplotlib axes it is given; coordinates are pixels (72 dpi)
        name: different for each chart of a page, so that their ids differ
        title: what the chart is of
        description: what it shows, for those who cannot see it
        size: width and height in pixels

    Raises:
        UserError: matplotlib is not installed
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Drawing
    except ImportError as error:
        raise missing_extra("matplotlib", "plots", "report pages") from error
    out = io.StringIO()
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's own matplotlibrc must not change the page
        mpl.rcParams.update(_STYLE | {"svg.hashsalt": name})
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser's fonts have it
        drawing = Drawing(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        axes = drawing.add_axes((44 / size[0], 42 / size[1], 1 - 60 / size[0], 1 - 70 / size[1]))
        plot(axes)
        drawing.savefig(out, format="svg", transparent=True)
    width, height = drawing.bbox.size
    return Markup(
        '<svg role="img" aria-labelledby="{0}-title {0}-desc" viewBox="0 0 {1:g} {2:g}">'
        '<title id="{0}-title">{3}</title><desc id="{0}-desc">{4}</desc>\n{5}'
    ).format(name, width, height, title, description, _for_page(out.getvalue()))


def _for_page(svg: str) -> Markup:
    """Matplotlib's drawing from its first group on; no group has an id, as another chart has the same; CSS colours."""
    svg = svg[
        svg.index('<g id="figure_1">') :
    ]  # before it: namespaces, and rules that would be the whole page's
    svg = re.sub('<g id="[^"]*"', "<g", svg).replace("<use xlink:href", "<use href")
    for variable, colour in LIGHT.items():
        svg = svg.replace(f": {colour}", f": var(--{variable})")
    return Markup(svg)
