"""What the kept runs of `pareto.py` say: paired tests of the recipe, and the figure of accuracy against cost."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

LEVEL = 0.9
"""Of the one-sided bound and the tests."""
FARTHEST = 125
"""% of plain KD's that the charts show."""
COLUMNS = 2
"""Of the list of contenders."""
AXES = (("backward_1x", "cost, backward = 1 forward"), ("backward_2x", "cost, backward = 2 forwards"))


def load(kept: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Summaries by contender and seed."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(kept.glob("*-seed*.json")):
        summary = json.loads(path.read_text())
        runs.setdefault(summary["method"], {})[summary["seed"]] = summary
    return runs


def points(runs: dict[int, dict[str, Any]]) -> dict[int, float]:
    """Accuracy after the last epoch in % by seed."""
    return {seed: 100 * summary["accuracy"]["last"] for seed, summary in runs.items()}


def paired(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, Any]:
    """Mean difference over the seeds that both have, its lower bound, and p of "ours is not better".

    >>> found = paired({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    >>> found["mean"], found["n"], round(found["p"], 3)  # t = 2 / (1 / sqrt(3)), 2 degrees of freedom
    (2.0, 3, 0.037)
    """
    both = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in both]
    n = len(differences)
    found: dict[str, Any] = {"n": n, "mean": statistics.fmean(differences) if n else None}
    if n < 2:
        return found | {"sd": None, "lower": None, "p": None}
    sd = statistics.stdev(differences)
    error = sd / math.sqrt(n)
    t = found["mean"] / error if error else math.copysign(math.inf, found["mean"])
    lower = found["mean"] - stats.t.ppf(LEVEL, n - 1) * error
    return found | {"sd": sd, "lower": float(lower), "p": float(stats.t.sf(t, n - 1))}


def verdict(kept: Path, recipe: str, rivals: tuple[str, ...]) -> dict[str, Any] | None:
    """The recipe against plain KD and against each rival; None where it has not run."""
    runs = load(kept)
    if recipe not in runs or "kd" not in runs:
        return None
    ours = points(runs[recipe])
    cost = [run["cost"]["relative_to_kd"] for run in runs[recipe].values()]
    return {
        "recipe": recipe,
        "cost": {name: statistics.fmean(one[name] for one in cost) for name, _ in AXES},
        "against_kd": paired(ours, points(runs["kd"])),
        "against": {name: paired(ours, points(runs[name])) for name in rivals if name in runs},
    }


def positions(runs: dict[int, dict[str, Any]], axis: str, seconds: dict[str, Any] | None) -> float | None:
    """Where a contender lies on an axis, in % of plain KD's."""
    if axis == "seconds":
        return None if seconds is None else 100 * seconds["mean"]
    return 100 * statistics.fmean(run["cost"]["relative_to_kd"][axis] for run in runs.values())


def draw(results: Path, pairs: list[str], stage: str, to: Path, highlight: str) -> None:
    """Accuracy against cost in both conventions, and against time where it was measured; a row of charts for each pair.

    Contenders are numbered as in the list below the charts.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = {pair: load(results / pair / stage) for pair in pairs}
    timed = {pair: results / pair / "seconds.json" for pair in pairs}
    seconds = {
        pair: json.loads(path.read_text())["relative_to_kd"] if path.exists() else {}
        for pair, path in timed.items()
    }
    axes = [*AXES, *([("seconds", "seconds, measured side by side")] if any(seconds.values()) else [])]
    mean = {name: statistics.fmean(points(own).values()) for name, own in runs[pairs[0]].items()}
    numbers = {name: number for number, name in enumerate(sorted(mean, key=lambda name: -mean[name]), 1)}
    with plt.rc_context({"svg.hashsalt": "unixkd", "font.size": 9, "svg.fonttype": "none"}):
        size = (4.6 * len(axes), 3.9 * len(pairs) + 1.5)
        figure, charts = plt.subplots(len(pairs), len(axes), figsize=size, squeeze=False)
        for row, pair in zip(charts, pairs, strict=True):
            for chart, (axis, label) in zip(row, axes, strict=True):
                for name, own in runs[pair].items():
                    x = positions(own, axis, seconds[pair].get(name))
                    if x is not None and x <= FARTHEST and name in numbers:
                        mark(chart, x, list(points(own).values()), numbers[name], colour_of(name, highlight))
                if "kd" in runs[pair]:
                    kd = statistics.fmean(points(runs[pair]["kd"]).values())
                    chart.axhline(kd, color="black", linewidth=0.6, linestyle=":")
                chart.set_xlim(0, FARTHEST)
                chart.set_xlabel(f"{label}, % of plain KD's")
                chart.set_ylabel("accuracy %, last epoch")
                chart.set_title(pair.replace("-", " → "), fontsize=9)
                chart.grid(alpha=0.3)
        names = [
            f"{number} {name}{', the recipe' if name == highlight else ''}"
            for name, number in numbers.items()
        ]
        for column in range(COLUMNS):
            figure.text(0.04 + 0.96 * column / COLUMNS, 0.01, "\n".join(names[column::COLUMNS]), fontsize=8)
        figure.tight_layout(rect=(0, 1.4 / size[1], 1, 1))
        to.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(to, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def colour_of(name: str, highlight: str) -> str:
    """Red for the recipe, black for plain KD."""
    return "C3" if name == highlight else "black" if name == "kd" else "C0"


def mark(chart: Any, x: float, values: list[float], number: int, colour: str) -> None:
    """One contender: mean, standard deviation, number."""
    y, error = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    chart.errorbar(x, y, yerr=error, fmt="o", color=colour, markersize=4, capsize=2)
    chart.annotate(str(number), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8, color=colour)
