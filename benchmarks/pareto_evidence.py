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


def draw(results: Path, pairs: list[str], stage: str, to: Path, highlight: str) -> None:
    """Accuracy against cost in both conventions and against measured time, a row of charts for each pair."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "unixkd", "font.size": 9, "svg.fonttype": "none"}):
        figure, charts = plt.subplots(len(pairs), 3, figsize=(13, 4.2 * len(pairs)), squeeze=False)
        for row, pair in zip(charts, pairs, strict=True):
            runs = load(results / pair / stage)
            timed = results / pair / "seconds.json"
            seconds = json.loads(timed.read_text())["relative_to_kd"] if timed.exists() else {}
            for chart, (axis, label) in zip(
                row, (*AXES, ("seconds", "seconds, measured side by side")), strict=True
            ):
                for name, own in runs.items():
                    values = list(points(own).values())
                    if axis == "seconds":
                        x = seconds[name]["mean"] if name in seconds else None
                    else:
                        x = statistics.fmean(run["cost"]["relative_to_kd"][axis] for run in own.values())
                    if x is None or x > 1.3:
                        continue
                    colour = "C3" if name == highlight else "black" if name == "kd" else "C0"
                    error = statistics.stdev(values) if len(values) > 1 else None
                    y = statistics.fmean(values)
                    chart.errorbar(100 * x, y, yerr=error, fmt="o", color=colour, markersize=4, capsize=2)
                    chart.annotate(
                        name, (100 * x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5
                    )
                chart.set_xlabel(f"{label}, % of plain KD's")
                chart.set_ylabel("accuracy %, last epoch")
                chart.set_title(pair, fontsize=9)
                chart.grid(alpha=0.3)
        figure.tight_layout()
        to.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(to, metadata={"Date": None})
        plt.close(figure)
