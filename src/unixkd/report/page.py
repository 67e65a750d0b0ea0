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
from unixkd.report.figures import plural
from unixkd.report.first_screen import answers
from unixkd.report.markup import contents
from unixkd.report.records import Command, Run
from unixkd.report.runs import group_runs
from unixkd.report.svg import DARK, LIGHT, palette_css
from unixkd.report.words import headline, protocol_notes


def write_page(
    runs: Sequence[Run],
    path: Path,
    title: str = "Distillation report",
    unfinished: int = 0,
    commands: Sequence[Command] = (),
) -> None:
    """Write the report of some runs; the same runs give the same bytes.

    Args:
        runs: from `find_runs`, at least one
        path: the HTML file; missing folders are made
        title: stands in the browser's tab and above the headline
        unfinished: number of begun runs that were left out, mentioned on the page
        commands: what makes the runs again

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written
    """
    text = page(runs, title, unfinished, commands)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}") from error


def page(runs: Sequence[Run], title: str, unfinished: int = 0, commands: Sequence[Command] = ()) -> str:
    """The HTML of the report."""
    groups = group_runs(runs)
    styles = styles_of(groups)
    parts = [
        sections.results(runs, groups, styles),
        sections.accuracy_against_cost(groups, styles),
        sections.plan_beside_measurement(groups, styles),
        effects(groups, styles),
        sections.training(runs, groups, styles),
        sections.what_was_kept(groups, styles),
        sections.how_often(groups, styles),
        sections.surroundings(runs, groups),
        sections.commands_to_reproduce(commands),
        sections.configuration(groups),
        sections.how_to_read(groups),
    ]
    css = files("unixkd.report").joinpath("page.css").read_text(encoding="utf-8")
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {palette_css(DARK)} }} }}"
    body = "\n".join([_header(runs, title, unfinished), contents(parts), *filter(None, parts)])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n:root {{ {palette_css(LIGHT)} }}\n{dark}\n{css}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#results">Skip to the results</a>\n<main>\n{body}\n</main>\n'
        "<footer>Written by unixkd report.</footer>\n</body>\n</html>\n"
    )


def _header(runs: Sequence[Run], title: str, unfinished: int) -> str:
    """What stands on the first screen: the headline, the three answers, and what has to be said with them."""
    groups = group_runs(runs)
    first, *others = headline(groups)
    first = first.replace(" %", "\u00a0%").replace(" = 2 forwards", "\u00a0=\u00a02\u00a0forwards")
    number = sum(len(group.runs) for group in groups)
    counted = [plural(number, "run"), plural(len(groups), "method")]
    counted += [f"{plural(unfinished, 'unfinished run')} left out"] if unfinished else []
    lead = f'<p class="lead">{escape(" ".join(others))}</p>' if others else ""
    notes = "".join(f'<p class="warn">{escape(note)}</p>' for note in protocol_notes(groups))
    return (
        f'<header><p class="eyebrow">{escape(title)} · {" · ".join(counted)}</p>'
        f"<h1>{escape(first)}</h1>{answers(runs, groups)}{lead}{notes}</header>"
    )
