"""The plan's prediction beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from unixkd.report.figures import NONE, count, percent, seconds
from unixkd.report.markup import html_table, section
from unixkd.report.records import Planned, Run
from unixkd.report.runs import Group
from unixkd.report.svg import Style

_IMAGES = {"scored": "images\nscored", "teacher_forwarded": "teacher\nqueries", "trained": "images\ntrained"}


def plan_beside_measurement(groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """A line of predictions and one of measurements for every method; empty where nothing was predicted."""
    planned = [group for group in groups if any(run.planned for run in group.runs)]
    if not planned:
        return ""
    headers = ["method", "", "cost %\nback ×1", "cost %\nback ×2", *_IMAGES.values(), "train\nseconds"]
    rows, marks = [], []
    for group in planned:
        rows += [_plan(group), _measured(group)]
        marks += [styles[group.method]] * 2
    note = (
        "Worked out when the run started, as unixkd plan does: planned is what must come out, expected is a mean where "
        "images are chosen by what the student says, or answers may be stored already. No step was timed beforehand: "
        "unixkd plan times some, where it is asked to predict seconds."
    )
    table = html_table("Planned and measured cost of every method", headers, rows, marks)
    return section("Plan and measurement", f'<p class="note">{escape(note)}</p>{table}')


def _with_plan(group: Group) -> list[tuple[Run, Planned]]:
    return [(run, run.planned) for run in group.runs if run.planned is not None]


def _plan(group: Group) -> list[str]:
    plans = [plan for _, plan in _with_plan(group)]
    cost = [_mean([plan.cost_1x for plan in plans]), _mean([plan.cost_2x for plan in plans])]
    images = [count(_mean([plan.images[name] for plan in plans])) for name in _IMAGES]
    word = "planned" if all(plan.exact for plan in plans) else "expected"
    return [group.method, word, *(f"{100 * share:.2f}" for share in cost), *images, NONE]


def _measured(group: Group) -> list[str]:
    """Of the runs that had a plan."""
    own = Group(group.method, tuple(run for run, _ in _with_plan(group)))
    cost = [own.spread(lambda run: run.cost_1x), own.spread(lambda run: run.cost_2x)]
    images = [count(_mean([run.images[name] for run in own.runs])) for name in _IMAGES]
    took = own.spread(lambda run: run.train_seconds)
    return [
        group.method,
        "measured",
        *(percent(share, sd=False) for share in cost),
        *images,
        NONE if took is None else seconds(took.mean),
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
