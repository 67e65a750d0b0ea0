"""What sections of the page are made of; `page.html.j2` turns these into HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unixkd.report.charts import Style


@dataclass(frozen=True)
class Figure:
    """A chart under its caption; the remark stands beside the caption."""

    svg: Markup
    caption: str
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column heads its rows.

    Args:
        caption: for those who cannot see the heading above it
        headers: one per column
        rows: texts, as many per row as there are headers
        styles: one per row, shown before the first cell; or none
        titles: one per column, shown on hovering its header; or none
        hero: the row to set in bold
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[Style] = ()
    titles: Sequence[str] = ()
    hero: int | None = None
