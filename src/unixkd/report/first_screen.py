"""The first screen: what did I get, what did it cost, what would plain KD have cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from unixkd.report.figures import NONE, count, flops, percent, plural, points, seconds
from unixkd.report.records import Run
from unixkd.report.runs import Group, Spread, paired_difference
from unixkd.report.table import teacher_accuracy
from unixkd.report.words import baseline_of, hero_of, measure_of


@dataclass(frozen=True)
class Answer:
    """A question, its answer in a few characters, and what has to be said with it."""

    question: str
    value: str
    lines: tuple[str, ...]


def answers(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """The three answers for the method that the report is about."""
    hero, kd = hero_of(groups), baseline_of(groups)
    cells = []
    for answer in (got(runs, groups, hero, kd), cost(hero), plain_kd(hero, kd)):
        lines = "".join(f"<p>{_unbroken(line)}</p>" for line in answer.lines)
        value = f'<p class="value">{_unbroken(answer.value)}</p>'
        cells.append(f'<div class="answer"><h2>{escape(answer.question)}</h2>{value}{lines}</div>')
    return f'<div class="answers">{"".join(cells)}</div>'


def got(runs: Sequence[Run], groups: Sequence[Group], hero: Group, kd: Group | None) -> Answer:
    """The result after the last epoch, beside plain KD's and the teacher's."""
    measure, question = measure_of(groups), "What did I get?"
    result = hero.spread(measure.of_run)
    if result is None:
        return Answer(question, NONE, (f"{hero.method} had neither labels nor a teacher to be judged by",))
    over = "1 run" if result.n == 1 else f"± over {result.n} runs"
    lines = [f"{hero.method}: {measure.name}, last epoch, {over}"]
    if kd is None:
        lines.append("plain KD was not run here")
    elif kd is not hero:
        theirs = kd.spread(measure.of_run)
        difference = paired_difference(hero, kd, measure.of_run)
        lines.append(f"plain KD {_percent(theirs)}")
        lines += [] if difference is None else [f"difference {points(difference)} points"]
    teacher = teacher_accuracy(runs)
    if teacher is not None and measure.name == "accuracy":
        lines.append(f"teacher {_percent(teacher)}")
    return Answer(question, _percent(result), tuple(lines))


def cost(hero: Group) -> Answer:
    """Computation over plain KD's in both conventions, and what was measured."""
    question = "What did it cost?"
    share_1x, share_2x = hero.spread(lambda run: run.cost_1x), hero.spread(lambda run: run.cost_2x)
    spent, took = hero.spread(lambda run: run.flops_2x), hero.spread(lambda run: run.train_seconds)
    own = [flops(spent.mean)] if spent is not None else []
    own += [f"{seconds(took.mean)} of training, measured"] if took is not None else []
    if share_1x is None or share_2x is None:
        lines = ("computation, backward = 2 forwards", *own[1:]) if spent is not None else ()
        return Answer(question, own[0] if own else NONE, lines)
    if hero.method == "kd" and share_2x.mean == 1:
        return Answer(question, "100 %", ("it is plain KD itself", ", ".join(own)))
    lines = (
        "of plain KD’s computation, backward = 2 forwards",
        f"{_percent(share_1x, 1)} if a backward counts as 1 forward",
        ", ".join(own),
    )
    return Answer(question, _percent(share_2x, 1), tuple(filter(None, lines)))


def plain_kd(hero: Group, kd: Group | None) -> Answer:
    """What plain KD costs: by arithmetic, and in seconds where it was run."""
    question = "What would plain KD have cost?"
    spent_1x, spent_2x = hero.spread(lambda run: run.kd_flops_1x), hero.spread(lambda run: run.kd_flops_2x)
    if spent_1x is None or spent_2x is None:
        return Answer(question, NONE, ("no teacher was asked here: there is nothing to compare with",))
    took = None if kd is None else kd.spread(lambda run: run.train_seconds)
    epochs, images = hero.runs[0].reference
    measured = f"{seconds(took.mean)} of training, measured" if took else "not run here, so no seconds"
    lines = [
        f"backward = 2 forwards; {flops(spent_1x.mean)} if it is 1",
        measured,
        f"worked out for {plural(epochs, 'epoch')} of {count(images)} images"
        if epochs is not None and images is not None
        else "",
    ]
    return Answer(question, flops(spent_2x.mean), tuple(filter(None, lines)))


def _unbroken(text: str) -> str:
    """Figures stay on a line with their units and signs."""
    return re.sub(r"(?<=[\d=±]) (?=[\w%±])| (?=[=±])", "\u00a0", escape(text))


def _percent(spread: Spread | None, digits: int = 2) -> str:
    return NONE if spread is None else f"{percent(spread, digits, sd=digits > 1)} %"
