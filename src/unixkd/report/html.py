"""The few HTML elements the page is made of; every text given to them is escaped here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from unixkd.report.charts import LIGHT, Style

_VARIABLES = {colour: name for name, colour in LIGHT.items()}


def section(title: str, body: str) -> str:
    """A titled part of the page around finished HTML; `contents` finds it by its id."""
    name = re.sub(r"[^a-z]+", "-", title.lower())
    return f'<section aria-labelledby="{name}"><h2 id="{name}" tabindex="-1">{escape(title)}</h2>{body}</section>'


def contents(sections: Sequence[str]) -> str:
    """Links to the sections."""
    found = (re.search(r'<h2 id="([^"]*)"[^>]*>(.*?)</h2>', each) for each in sections)
    links = "".join(f'<li><a href="#{one[1]}">{one[2]}</a></li>' for one in found if one)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def details(summary: str, body: str) -> str:
    """Finished HTML folded away under a summary."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def figure(svg: str, caption: str, remark: str = "") -> str:
    """A chart under its caption."""
    beside = f" <span>{escape(remark)}</span>" if remark else ""
    return f"<figure><figcaption>{escape(caption)}{beside}</figcaption>{svg}</figure>"


def preformatted(text: str, label: str) -> str:
    """Text as it is, which can be reached and scrolled with the keyboard."""
    return f'<pre tabindex="0" role="region" aria-label="{escape(label)}">{escape(text)}</pre>'


def command(text: str, label: str) -> str:
    """A command on one line, which breaks between its options where it is shown, not where it is copied."""
    options = " ".join(f"<span>{escape(option)}</span>" for option in re.split(" (?=--)", text))
    return f'<pre class="command" tabindex="0" role="region" aria-label="{escape(label)}">{options}</pre>'


def key(style: Style) -> str:
    """A small patch in a method's colour."""
    hollow = " hollow" if style.hollow else ""
    return f'<i class="key{hollow}" style="color: var(--{_VARIABLES[style.colour]})" aria-hidden="true"></i>'


def html_table(
    caption: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Sequence[Style] = (),
    titles: Sequence[str] = (),
    hero: int | None = None,
) -> str:
    """A table whose first column heads its rows, in a box of its own that scrolls.

    Args:
        caption: for those who cannot see the heading above it
        headers: one per column
        rows: texts, as many per row as there are headers
        styles: one per row, shown before the first cell
        titles: one per column, shown on hovering its header
        hero: the row to set in bold
    """
    hints = [f' title="{escape(title)}"' for title in titles] or [""] * len(headers)
    head = "".join(
        f'<th scope="col"{hint}>{escape(text)}</th>' for text, hint in zip(headers, hints, strict=True)
    )
    body = []
    for number, (first, *others) in enumerate(rows):
        patch = key(styles[number]) if styles else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in others)
        opening = '<tr class="hero">' if number == hero else "<tr>"
        body.append(f'{opening}<th scope="row">{patch}{escape(first)}</th>{cells}</tr>')
    said = escape(caption)
    inner = f'<caption class="unseen">{said}</caption><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{said}"><table>{inner}</table></div>'
