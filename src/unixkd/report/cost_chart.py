"""Results against what they cost, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from unixkd.report.charts import MUTED, Figure, Style, draw, frame, legend_below
from unixkd.report.runs import Group, MeanStd, matched_to
from unixkd.report.wording import Measure, hero_of, measure_of, percent

MANY = 10
"""With more methods than these only plain KD, the method of the report and those on the front are named."""


class Price(NamedTuple):
    """What a result may be set against: an id, caption and remark of the chart, a method's price, the axis."""

    key: str
    caption: str
    remark: str
    of: Callable[[Group], MeanStd | None]
    axis: str = "computation, % of plain KD"
    scale: int = 100


PRICES = (
    Price("cost1", "backward = 1 forward", "as in the UNIX paper", lambda group: group.cost(1)),
    Price("cost2", "backward = 2 forwards", "nearer to what convolutions cost", lambda group: group.cost(2)),
    Price(
        "seconds", "training time", "as measured, without evaluation",
        lambda group: group.train_seconds, "training time, s", scale=1,
    ),
)  # fmt: skip


def accuracy_against_cost(groups: Sequence[Group], styles: dict[str, Style]) -> dict[str, Any] | None:
    """Computation in both conventions and the time side by side; None where no computation is known."""
    measure = measure_of(groups)
    charts = [(price, chart(groups, styles, measure, price)) for price in PRICES]
    if all(svg is None for _, svg in charts[:2]):
        return None
    return {
        "figures": [Figure(svg, price.caption, price.remark) for price, svg in charts if svg is not None],
        "controls": any(matched_to(group.method) for group in groups),
    }


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which (price, result) no other beats, cheapest first: none is as cheap and as good, and better in one.

    >>> front([(1.0, 0.9), (0.5, 0.8), (0.6, 0.7)])
    [1, 0]
    """
    best = [
        i
        for i, (price, result) in enumerate(points)
        if not any(p <= price and r >= result and (p, r) != (price, result) for p, r in points)
    ]
    return sorted(best, key=lambda i: points[i])


def chart(groups: Sequence[Group], styles: dict[str, Style], measure: Measure, price: Price) -> Markup | None:
    """Result against a price, with error bars over the seeds; None where the price is not known."""
    points: list[tuple[Group, MeanStd, MeanStd]] = []
    for group in groups:
        cost, result = price.of(group), group.mean_std(measure.of_run)
        if cost is not None and result is not None:
            points.append((group, cost, result))
    if not points:
        return None
    means = [(price.scale * cost.mean, 100 * result.mean) for _, cost, result in points]
    alike = [i for i, (group, _, _) in enumerate(points) if group.setting == hero_of(groups).setting]
    unbeaten = [alike[i] for i in front([means[i] for i in alike])]
    named = {group.method for group in groups}
    if len(points) > MANY:
        named = {group.method for group in groups if group.name == "kd"}
        named |= {hero_of(groups).method, *(points[i][0].method for i in unbeaten)}

    def plot(axes: Any) -> None:
        if price.scale == 100:  # computation
            axes.axvline(100, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        x, y = zip(*(means[i] for i in unbeaten), strict=True)
        axes.plot(x, y, color=MUTED, linewidth=1, drawstyle="steps-post", zorder=1)
        _join_controls(axes, {g.method: at for (g, _, _), at in zip(points, means, strict=True)}, styles)
        shown = [
            (_error_bar(axes, cost, result, styles[group.method], price.scale), group.method)
            for group, cost, result in points
        ]
        axes.margins(x=0.16, y=0.14)
        frame(axes, f"{measure.name}, %", price.axis)
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        legend_below(axes, [(marker, method) for marker, method in shown if method in named])

    description = ", ".join(
        f"{g.method} {percent(r)} at {at[0]:.1f}" for at, (g, _, r) in zip(means, points, strict=True)
    )
    best = ", ".join(points[i][0].method for i in unbeaten)
    title = f"{measure.name} in % against {price.axis} ({price.caption})"
    return draw(plot, price.key, title, f"{description}; not beaten: {best}")


def _join_controls(axes: Any, at: dict[str, tuple[float, float]], styles: dict[str, Style]) -> None:
    """A dotted line from each method to plain KD at its cost."""
    for method, place in at.items():
        target = matched_to(method)
        if target in at:
            x, y = zip(at[target], place, strict=True)
            axes.plot(x, y, color=styles[method].colour, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)


def _error_bar(axes: Any, cost: MeanStd, result: MeanStd, style: Style, scale: float) -> Any:
    """The marker, for the legend."""
    marker, *_ = axes.errorbar(
        scale * cost.mean,
        100 * result.mean,
        xerr=scale * cost.sd if cost.sd else None,
        yerr=100 * result.sd if result.sd else None,
        color=style.colour,
        markersize=9,
        **style.marks,
        elinewidth=1.6,
        capsize=3,
        linestyle="none",
    )
    return marker
