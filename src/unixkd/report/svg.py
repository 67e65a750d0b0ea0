"""Draw with matplotlib and give back small SVG that takes its colours from the page.

Colours are drawn with the hexadecimal values below and replaced by CSS variables, so one drawing
serves light and dark pages.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unixkd.errors import missing_extra

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
    def marks(self) -> dict[str, str]:
        """How matplotlib draws its marker."""
        filled = {"markeredgecolor": CARD, "markerfacecolor": self.colour}
        return {"markeredgecolor": self.colour, "markerfacecolor": CARD} if self.hollow else filled


def palette_css(palette: dict[str, str]) -> str:
    """The palette as CSS variables: `--ink:#1f2328;...`."""
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())


def draw(
    plot: Callable[[Any], None], name: str, title: str, said: str, size: tuple[int, int] = (430, 280)
) -> str:
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
    return _inline(out.getvalue(), name, title, said)


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
