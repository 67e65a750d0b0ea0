"""How the runs were made, and how they are made again."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from unixkd.report.markup import command, details, preformatted, section
from unixkd.report.records import Command
from unixkd.report.runs import Group


def commands_to_reproduce(commands: Sequence[Command]) -> str:
    """Every command under what it makes; empty where there is none."""
    if not commands:
        return ""
    note = (
        '<p class="note">What is not said is the default. Paths are as they were given: run a command where the '
        "runs were started. On a CPU of the same kind the figures come out the same, elsewhere nearly so.</p>"
    )
    blocks = (f"<h3>{escape(each.what)}</h3>{command(each.text, each.what)}" for each in commands)
    return section("Commands to reproduce", note + "".join(blocks))


def configuration(groups: Sequence[Group]) -> str:
    """The configuration of the first run of every method."""
    blocks = [
        details(name := f"{group.method}, seed {group.runs[0].seed}", preformatted(text, name))
        for group in groups
        if (text := group.runs[0].config_text.strip())
    ]
    note = '<p class="note">As resolved and run, one run of each method.</p>'
    return section("Configuration", note + "".join(blocks)) if blocks else ""
