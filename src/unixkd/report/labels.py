"""Direct labels that keep out of each other's way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

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
