"""The report as one HTML file: no scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from unixkd.errors import UserError
from unixkd.report import sections
from unixkd.report.charts import styles_of
from unixkd.report.effects import effects
from unixkd.report.records import Run
from unixkd.report.runs import group_runs, paired_difference
from unixkd.report.svg import DARK, LIGHT, palette_css
from unixkd.report.words import (
    baseline_of,
    headline,
    hero_of,
    measure_of,
    percent,
    points,
    protocol_notes,
    seconds,
)


def write_page(
    runs: Sequence[Run], path: Path, title: str = "Distillation report", unfinished: int = 0
) -> None:
    """Write the report of some runs; the same runs give the same bytes.

    Args:
        runs: from `find_runs`, at least one
        path: the HTML file; missing folders are made
        title: stands in the browser's tab and above the headline
        unfinished: number of begun runs that were left out, mentioned on the page

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written
    """
    text = page(runs, title, unfinished)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}") from error


def page(runs: Sequence[Run], title: str, unfinished: int = 0) -> str:
    """The HTML of the report."""
    groups = group_runs(runs)
    styles = styles_of(groups)
    parts = [
        _header(runs, title, unfinished),
        _tiles(runs),
        sections.results(runs, groups, styles),
        sections.accuracy_against_cost(groups, styles),
        effects(groups, styles),
        sections.training(runs, groups, styles),
        sections.what_was_kept(groups, styles),
        sections.how_often(groups, styles),
        sections.surroundings(runs, groups),
        sections.configuration(groups),
        sections.how_to_read(groups),
    ]
    css = files("unixkd.report").joinpath("page.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {palette_css(DARK)} }} }}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n:root {{ {palette_css(LIGHT)} }}\n{dark}\n{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n<footer>Written by unixkd report.</footer>\n</main>\n</body>\n</html>\n"
    )


def _header(runs: Sequence[Run], title: str, unfinished: int) -> str:
    groups = group_runs(runs)
    first, *others = headline(groups)
    first = first.replace(" %", "\u00a0%").replace(" = 2 forwards", "\u00a0=\u00a02\u00a0forwards")
    number = sum(len(group.runs) for group in groups)
    counted = [_plural(number, "run"), _plural(len(groups), "method")]
    counted += [f"{_plural(unfinished, 'unfinished run')} left out"] if unfinished else []
    lead = f'<p class="lead">{escape(" ".join(others))}</p>' if others else ""
    notes = "".join(f'<p class="warn">{escape(note)}</p>' for note in protocol_notes(groups))
    return (
        f'<header><p class="eyebrow">{escape(title)} · {" · ".join(counted)}</p>'
        f"<h1>{escape(first)}</h1>{lead}{notes}</header>"
    )


def _tiles(runs: Sequence[Run]) -> str:
    """The method the report is about in four numbers."""
    groups = group_runs(runs)
    measure, hero, kd = measure_of(groups), hero_of(groups), baseline_of(groups)
    tiles = []
    result = hero.spread(measure.of_run)
    if result is not None:
        over = f"last epoch, mean of {_plural(result.n, 'run')}"
        tiles.append((f"{hero.method}: {measure.name}", f"{percent(result, sd=False)} %", over))
    difference = paired_difference(hero, kd, measure.of_run)
    if difference is not None:
        spread = "" if difference.sd is None else f"± {100 * difference.sd:.2f} "
        over = f"points, {spread}over {_plural(difference.n, 'seed')}"
        tiles.append(("against plain KD", points(difference, sd=False), over))
    cost_2x, cost_1x = hero.spread(lambda run: run.cost_2x), hero.spread(lambda run: run.cost_1x)
    if cost_2x is not None and cost_1x is not None and hero is not kd:
        less = f"of plain KD (backward = 2 forwards); {percent(cost_1x, 1, sd=False)} % if 1"
        tiles.append(("computation", f"{percent(cost_2x, 1, sd=False)} %", less))
    ours = hero.spread(lambda run: run.train_seconds)
    theirs = None if kd is None else kd.spread(lambda run: run.train_seconds)
    if ours is not None:
        beside = f"plain KD {seconds(theirs.mean)}" if theirs and hero is not kd else "without evaluation"
        tiles.append(("training time, measured", seconds(ours.mean), beside))
    cells = [
        f'<div class="tile"><span>{escape(above)}</span><strong>{escape(value)}</strong>'
        f"<span>{escape(below)}</span></div>"
        for above, value, below in tiles
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
