"""The effect of one option: runs that share everything else, and their results for each of its values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unixkd.report.charts import Style, draw, end_labels, frame
from unixkd.report.html import figure, section
from unixkd.report.numbers import percent
from unixkd.report.records import Run
from unixkd.report.runs import Group, Spread
from unixkd.report.wording import Measure, measure_of

OPTIONS = {
    "keep": "share kept, k/N",
    "mix_from": "mixed strongly from, b/N",
    "steepness": "steepness of the curve, w",
    "scorer": "score",
    "curve": "mixing curve",
}
"""Options whose effect is drawn, and what stands below the axis."""
CATEGORIES = ("scorer", "curve")
_WORDS = ("entropy", "margin", "least_confidence", "true_loss", "random", "sigmoid", "step", "none")

_PURE = {"scorer": "random", "curve": "none"}
_MIXED = {"mix_from": 0.5, "steepness": 10.0, "curve": "sigmoid", "scoring_mode": "train"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "kd": {**_PURE, "keep": 1.0},
    "unix": {**_MIXED, "keep": 0.75, "scorer": "entropy"},
    "unix-random": {**_MIXED, "keep": 0.75, "scorer": "random"},
    "random": {**_PURE, "keep": 0.75},
    "hard": {**_PURE, "keep": 0.75, "scorer": "entropy", "scoring_mode": "train"},
    "selective-backprop": {**_PURE, "keep": 0.75, "scorer": "true_loss", "scoring_mode": "train"},
    "random-epoch": {"keep": 0.75},
    "stale": {"keep": 0.75, "scorer": "entropy"},
}
"""What the options of a method are where its configuration leaves them open."""
ONE_FAMILY = ("kd", "unix", "unix-random", "random", "hard")
"""Names for settings of one and the same step: with equal options they are the same method."""

Value = float | str


@dataclass(frozen=True)
class Series:
    """Runs that differ in one option only, by its value in rising order."""

    option: str
    name: str
    runs: tuple[tuple[Value, tuple[Run, ...]], ...]

    def spreads(self, value: Callable[[Run], float | None]) -> list[tuple[Value, Spread]]:
        """Mean and deviation over the seeds at every value where it is known."""
        found = [(at, Spread.of(value(run) for run in runs)) for at, runs in self.runs]
        return [(at, spread) for at, spread in found if spread is not None]


def resolved(run: Run) -> dict[str, Any]:
    """The options of a run's method with its defaults filled in; empty where the run does not tell them.

    An option that has no effect under another one (no steepness without a sigmoid) is left at its default.
    """
    given = run.config.get("method")
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        return {}
    options = {**DEFAULTS.get(given["name"], {}), **{k: v for k, v in given.items() if v is not None}}
    if given["name"] in ONE_FAMILY:
        of_curve = {"none": ("mix_from", "steepness"), "step": ("steepness",)}.get(str(options["curve"]), ())
        unused = [*of_curve, *(["scoring_mode"] if options["scorer"] == "random" else [])]
        options = {**_MIXED, **{k: v for k, v in options.items() if k not in unused}, "name": "one family"}
    return options


def find_series(runs: Iterable[Run], option: str) -> list[Series]:
    """All sets of runs that differ in nothing but this option and the seed, and have two values of it or more."""
    sets: dict[str, dict[Value, list[Run]]] = {}
    for run in runs:
        options = resolved(run)
        value = options.pop(option, None)
        if run.is_teacher or not isinstance(value, str if option in CATEGORIES else (int, float)):
            continue
        rest = {k: v for k, v in run.config.items() if k not in ("method", "label", "train")}
        train = {k: v for k, v in _mapping(run.config, "train").items() if k != "seed"}
        key = json.dumps([options, rest, train, run.epochs], sort_keys=True, default=str)
        sets.setdefault(key, {}).setdefault(value, []).append(run)
    found = [(values, _ordered(values)) for values in sets.values() if len(values) > 1]
    return [
        Series(option, _name(values, option), tuple((at, tuple(values[at])) for at in order))
        for values, order in found
    ]


def effects(groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """Result and computation for every option in which otherwise equal runs differ; empty if there is none."""
    runs, measure, figures = [run for group in groups for run in group.runs], measure_of(groups), []
    cost = Measure("computation", "", lambda run: run.cost_2x, lambda epoch: None)
    for option, words in OPTIONS.items():
        series = find_series(runs, option)
        for what, above in ((measure, f"{measure.name}, %"), (cost, "computation, % of plain KD")):
            svg = chart(series, styles, what, above, f"{option}-{'cost' if what is cost else 'result'}")
            if svg is not None:
                remark = "computation, backward = 2 forwards" if what is cost else measure.name
                figures.append(figure(svg, words, remark))
    if not figures:
        return ""
    note = (
        "Each line joins runs that differ in this option only, seeds apart. Bars: one standard deviation over "
        "seeds; what lies within them may be chance."
    )
    return section(
        "Effect of one option", f'<p class="note">{note}</p><div class="charts">{"".join(figures)}</div>'
    )


def chart(
    series: Sequence[Series], styles: dict[str, Style], measure: Measure, above: str, name: str
) -> str | None:
    """One line for each set of runs; None where nothing is known."""
    lines = [(each, each.spreads(measure.of_run)) for each in series]
    lines = [(each, points) for each, points in lines if len(points) > 1]
    if not lines:
        return None
    option = series[0].option
    ticks = _ordered({at for _, points in lines for at, _ in points})
    places = {at: float(i) if option in CATEGORIES else float(at) for i, at in enumerate(ticks)}

    def plot(axes: Any) -> None:
        ends = []
        for each, points in lines:
            style = _style(each, styles)
            _line(axes, [(places[at], spread) for at, spread in points], style, option in CATEGORIES)
            ends.append((100 * points[-1][1].mean, each.name, style.colour))
        axes.margins(x=0.12, y=0.14)
        frame(axes, above, OPTIONS[option])
        if option == "steepness":
            axes.set_xscale("log")
        axes.set_xticks(
            list(places.values()), [f"{at:g}" if isinstance(at, float) else str(at) for at in ticks]
        )
        axes.minorticks_off()
        end_labels(axes, ends)

    said = "; ".join(
        f"{each.name}: " + ", ".join(f"{percent(spread)} at {at}" for at, spread in points)
        for each, points in lines
    )
    return draw(plot, name, f"{measure.name} in % by {OPTIONS[option]}", said)


def _ordered(values: Iterable[Value]) -> list[Value]:
    """Numbers rising, words as the documentation lists them."""
    return sorted(values, key=lambda value: (_WORDS.index(value) if value in _WORDS else len(_WORDS), value))


def _name(values: dict[Value, list[Run]], option: str) -> str:
    """The methods that a line joins, with what else is not as they have it by default."""
    runs = [run for at in _ordered(values) for run in values[at]]
    methods = [_mapping(run.config, "method") for run in runs]
    first = DEFAULTS.get(methods[0]["name"], {})
    others = {k: v for k, v in methods[0].items() if v is not None and k not in ("name", option)}
    changed = [
        f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in others.items() if first.get(k) != v
    ]
    names = list(dict.fromkeys(method["name"] for method in methods))
    return ":".join(["/".join(names), *changed])


def _mapping(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _style(series: Series, styles: dict[str, Style]) -> Style:
    """That of the run which is named like the line, else of the first one."""
    methods = [run.method for _, runs in series.runs for run in runs]
    return styles[series.name if series.name in methods else methods[0]]


def _line(axes: Any, points: Sequence[tuple[float, Spread]], style: Style, dashed: bool) -> None:
    axes.errorbar(
        [at for at, _ in points],
        [100 * spread.mean for _, spread in points],
        yerr=[100 * (spread.sd or 0) for _, spread in points],
        color=style.colour,
        marker=style.marker,
        markersize=7,
        **style.marks,
        elinewidth=1.4,
        capsize=3,
        linewidth=1.6,
        linestyle=(0, (2, 2)) if dashed else "-",
    )
