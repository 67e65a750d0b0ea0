"""What the results of `evidence.py` say: tables, paired tests of the recipe, the figure of accuracy against cost."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import mean_sd
from evidence_arenas import Arena
from evidence_queue import Results, load, points

LEVEL = 0.9
"""Of the one-sided bound and the tests."""
FARTHEST = 125
"""% of plain KD's that the charts show."""
COLUMNS = 2
"""Of the list of contenders."""
AXES = (("backward_1x", "cost, backward = 1 forward"), ("backward_2x", "cost, backward = 2 forwards"))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, Any]:
    """Mean difference over the seeds that both have, its lower bound, and p of "ours is not better".

    >>> found = paired({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    >>> found["mean"], found["n"], round(found["p"], 3)  # t = 2 / (1 / sqrt(3)), 2 degrees of freedom
    (2.0, 3, 0.037)
    """
    from scipy import stats  # not where only tables are printed

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


def rows(found: Results, names: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each of these contenders with results: accuracy, cost, paired difference to plain KD."""
    plain, lines = points(found.get("kd", {})), []
    for name in names:
        if own := found.get(name):
            last = points(own)
            against = [last[seed] - plain[seed] for seed in last if seed in plain]
            costs = [summary["cost"]["relative_to_kd"] for summary in own.values()]
            lines.append(
                {
                    "contender": name,
                    "accuracy": mean_sd(list(last.values())),
                    "best": mean_sd([100 * summary["accuracy"]["best"] for summary in own.values()]),
                    "against_kd": mean_sd(against) if against else None,
                    "cost": {name: mean_sd([cost[name] for cost in costs])["mean"] for name in costs[0]},
                }
            )
    return lines


def report(arenas: Sequence[Arena], stage: str, kept: Path) -> dict[str, Any]:
    """The tables of a stage, and what the recipe is against its rivals, printed and given back."""
    tables: dict[str, Any] = {}
    for arena in arenas:
        names = [contender.name for contender in arena.contenders]
        lines = rows(load(kept / arena.name / stage), names)
        if not lines:
            continue
        tables[arena.name] = lines
        width = max(map(len, names)) + 1
        print(f"{arena.title}, {stage}")
        print(f"{'':<{width}}{'accuracy %':>18}{'against kd':>16}{'cost x1 %':>11}{'x2 %':>8}")
        for line in lines:
            against = line["against_kd"] or {"mean": float("nan"), "sd": None}
            print(
                f"{line['contender']:<{width}}{mean_and_sd(line['accuracy']):>18}{mean_and_sd(against):>16}"
                f"{100 * line['cost']['backward_1x']:>11.1f}{100 * line['cost']['backward_2x']:>8.1f}"
            )
        if arena.recipe is not None:
            found = verdict(kept / arena.name / stage, arena.recipe, arena.rivals)
            if found is not None:
                print(json.dumps({"arena": arena.name, **found}))
        print()
    return tables


def mean_and_sd(value: dict[str, Any]) -> str:
    """For a table."""
    return f"{value['mean']:.2f}" + ("" if value["sd"] is None else f" ± {value['sd']:.2f}")


def positions(runs: dict[int, dict[str, Any]], axis: str, seconds: dict[str, Any] | None) -> float | None:
    """Where a contender lies on an axis, in % of plain KD's."""
    if axis == "seconds":
        return None if seconds is None else 100 * seconds["mean"]
    return 100 * statistics.fmean(run["cost"]["relative_to_kd"][axis] for run in runs.values())


def draw(results: Path, arenas: Sequence[Arena], to: Path, stage: str = "confirm") -> None:
    """Accuracy against cost in both conventions, and against measured time; a row of charts for each arena.

    Contenders are numbered as in the list below the charts. Nothing is drawn where an arena has no results.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = {arena.name: load(results / arena.name / stage) for arena in arenas}
    if not all(runs.values()):
        return
    files = {arena.name: results / arena.name / "seconds.json" for arena in arenas}
    seconds = {
        name: json.loads(file.read_text())["relative_to_kd"] if file.exists() else {}
        for name, file in files.items()
    }
    axes = [*AXES, *([("seconds", "seconds, measured side by side")] if any(seconds.values()) else [])]
    numbers = {name: number for number, name in enumerate(ranked(list(runs.values())), 1)}
    recipes = {arena.recipe for arena in arenas}
    with plt.rc_context({"svg.hashsalt": "unixkd", "font.size": 9, "svg.fonttype": "none"}):
        size = (4.6 * len(axes), 3.9 * len(arenas) + 1.5)
        figure, charts = plt.subplots(len(arenas), len(axes), figsize=size, squeeze=False)
        for row, arena in zip(charts, arenas, strict=True):
            for chart, (axis, label) in zip(row, axes, strict=True):
                for name, own in runs[arena.name].items():
                    x = positions(own, axis, seconds[arena.name].get(name))
                    if x is not None and x <= FARTHEST:
                        mark(chart, x, list(points(own).values()), numbers[name], colour_of(name, recipes))
                if "kd" in runs[arena.name]:
                    kd = statistics.fmean(points(runs[arena.name]["kd"]).values())
                    chart.axhline(kd, color="black", linewidth=0.6, linestyle=":")
                chart.set_xlim(0, FARTHEST)
                chart.set_xlabel(f"{label}, % of plain KD's")
                chart.set_ylabel("accuracy %, last epoch")
                chart.set_title(arena.title, fontsize=9)
                chart.grid(alpha=0.3)
        names = [
            f"{number} {name}{', the recipe' if name in recipes else ''}" for name, number in numbers.items()
        ]
        for column in range(COLUMNS):
            figure.text(0.04 + 0.96 * column / COLUMNS, 0.01, "\n".join(names[column::COLUMNS]), fontsize=8)
        figure.tight_layout(rect=(0, 1.4 / size[1], 1, 1))
        to.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(to, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def draw_story(results: Path, arena: Arena, names: Mapping[str, tuple[str, str]], to: Path) -> None:
    """Points against plain KD by cost, the contenders named beside their marks: the picture for a first look.

    Args:
        results: folder of all results
        arena: whose confirmation is drawn
        names: of the contenders; what they are called here, and on which side of the mark
        to: the file
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = load(results / arena.name / "confirm")
    plain = points(runs["kd"])
    with plt.rc_context({"svg.hashsalt": "unixkd", "font.size": 10, "svg.fonttype": "none"}):
        figure, chart = plt.subplots(figsize=(8.4, 4.2))
        for name, (called, side) in names.items():
            own = points(runs[name])
            x = positions(runs[name], "backward_2x", None)
            gains = [own[seed] - plain[seed] for seed in own]
            y, error = statistics.fmean(gains), statistics.stdev(gains)
            colour = colour_of(name, {arena.recipe})
            chart.errorbar(x, y, yerr=error, fmt="o", color=colour, markersize=5, capsize=2)
            chart.annotate(
                called,
                (x, y),
                xytext={"right": (6, 4), "left": (-6, 4), "below": (6, -12)}[side],
                ha="right" if side == "left" else "left",
                textcoords="offset points",
                fontsize=9,
                color=colour,
            )
        chart.axhline(0, color="black", linewidth=0.6, linestyle=":")
        chart.set_xlim(0, 112)
        chart.set_xlabel("training computation, % of plain KD's (backward = 2 forwards, all of it charged)")
        chart.set_ylabel("accuracy against plain KD, points")
        chart.set_title(f"CIFAR-100 at 16 pixels, {arena.title}, n = {len(plain)}", fontsize=10)
        chart.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(to, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def ranked(found: Sequence[Results]) -> list[str]:
    """Contenders by their mean accuracy in the first arena, then those that only later ones have."""
    order: dict[str, None] = {}
    for results in found:
        means = {name: statistics.fmean(points(own).values()) for name, own in results.items()}
        order |= dict.fromkeys(sorted(means, key=lambda name: -means[name]))
    return list(order)


def colour_of(name: str, recipes: set[str | None]) -> str:
    """Red for a recipe, black for plain KD."""
    return "C3" if name in recipes else "black" if name == "kd" else "C0"


def mark(chart: Any, x: float, values: list[float], number: int, colour: str) -> None:
    """One contender: mean, standard deviation, number."""
    y, error = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    chart.errorbar(x, y, yerr=error, fmt="o", color=colour, markersize=4, capsize=2)
    chart.annotate(str(number), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8, color=colour)
