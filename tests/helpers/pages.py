"""HTML pages as trees, to read figures back from them."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree.ElementTree import Element, TreeBuilder

VOID = ("meta", "img", "br")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.builder = TreeBuilder()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        self.builder.data(data)


def read_page(text: str) -> Element:
    """The `html` element of a page whose elements are all closed in order."""
    reader = _Reader()
    reader.feed(text.partition("\n")[2])  # without the doctype
    return reader.builder.close()


def words(element: Element) -> str:
    """The text of an element with single spaces, those that do not break included."""
    return " ".join("".join(element.itertext()).split())


def table(page: Element, caption: str) -> list[list[str]]:
    """The rows of the table with this caption, its head first."""
    (found,) = [one for one in page.iter("table") if words(one.find("caption")) == caption]
    return [[words(cell) for cell in row] for row in found.iter("tr")]


def section(page: Element, title: str) -> Element:
    """The section under this heading."""
    (found,) = [one for one in page.iter("section") if words(one.find("h2")) == title]
    return found


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
