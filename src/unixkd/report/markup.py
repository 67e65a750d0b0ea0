"""The few HTML elements the page is made of; every text given to them is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from unixkd.report.svg import LIGHT

_VARIABLES = {colour: name for name, colour in LIGHT.items()}


def section(title: str, body: str) -> str:
    """A titled part of the page around finished HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def details(summary: str, body: str) -> str:
    """Finished HTML folded away under a summary."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def figure(svg: str, caption: str, remark: str = "") -> str:
    """A chart under its caption."""
    beside = f" <span>{escape(remark)}</span>" if remark else ""
    return f"<figure><figcaption>{escape(caption)}{beside}</figcaption>{svg}</figure>"


def key(colour: str) -> str:
    """A small patch in a method's colour."""
    return f'<i class="key" style="background: var(--{_VARIABLES[colour]})"></i>'


def html_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    colours: Sequence[str] = (),
    titles: Sequence[str] = (),
    hero: int | None = None,
) -> str:
    """A table whose first column heads its rows.

    Args:
        headers: one per column
        rows: texts, as many per row as there are headers
        colours: one per row, shown before the first cell
        titles: one per column, shown on hovering its header
        hero: the row to set in bold
    """
    hints = [f' title="{escape(title)}"' for title in titles] or [""] * len(headers)
    head = "".join(
        f'<th scope="col"{hint}>{escape(text)}</th>' for text, hint in zip(headers, hints, strict=True)
    )
    body = []
    for number, (first, *others) in enumerate(rows):
        patch = key(colours[number]) if colours else ""
        cells = "".join(f"<td>{escape(text)}</td>" for text in others)
        opening = '<tr class="hero">' if number == hero else "<tr>"
        body.append(f'{opening}<th scope="row">{patch}{escape(first)}</th>{cells}</tr>')
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table>{inner}</table></div>'
