"""What makes a site of the documentation: links that leave docs/, and the examples of docstrings.

A code host follows a link to ../benchmarks, a site has no such page. With `repo_url` set in mkdocs.yml such links lead
to that repository; without it their text stays, with the path behind it.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from griffe import Extension, Object

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s#]*)(#[^)\s]*)?\)")

EXAMPLE = re.compile(r"(?:\A|\n\n)(>>> .*?)(?=\n\n(?!>>> )|\Z)", re.DOTALL)


class Examples(Extension):
    """Bare doctests become the section that they are to a reader."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Head the doctests of a docstring."""
        if obj.docstring is not None and "Examples:" not in obj.docstring.value:
            obj.docstring.value = EXAMPLE.sub(headed, obj.docstring.value)


def headed(example: re.Match[str]) -> str:
    """Lines of a doctest as a section."""
    return "\n\nExamples:\n" + "\n".join(f"    {line}" for line in example[1].splitlines())


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page with links to files outside of docs/ replaced."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def replaced(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/"):
            return link[0]
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor or ''})"
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    return LINK.sub(replaced, markdown)
