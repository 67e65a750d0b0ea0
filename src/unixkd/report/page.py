"""The report as one HTML file: no scripts, nothing loaded from elsewhere, light and dark; its sections in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from unixkd.errors import UserError
from unixkd.report import charts, cost_chart, selection
from unixkd.report.charts import DARK, LIGHT, Style, palette_css, styles_of
from unixkd.report.cost_chart import accuracy_against_cost
from unixkd.report.html import command, contents, details, figure, html_table, preformatted, section
from unixkd.report.numbers import NONE, count, flops, percent, plural, points, seconds
from unixkd.report.records import Command, Planned, Run
from unixkd.report.runs import Group, Spread, curve, group_runs, paired_difference, teacher_runs
from unixkd.report.selection import how_often, what_was_kept
from unixkd.report.table import columns_of, teacher_accuracy, teacher_line
from unixkd.report.wording import baseline_of, explain, headline, hero_of, measure_of, protocol_notes


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
        results(runs, groups, styles),
        cost_chart.accuracy_against_cost(groups, styles),
        plan_beside_measurement(groups, styles),
        training(runs, groups, styles),
        selection.what_was_kept(groups, styles),
        selection.how_often(groups, styles),
        surroundings(runs, groups),
        commands_to_reproduce(commands),
        configuration(groups),
        how_to_read(groups),
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


__all__ = [
    "accuracy_against_cost", "commands_to_reproduce", "configuration", "how_often", "how_to_read",
    "plan_beside_measurement", "results", "surroundings", "training", "what_was_kept",
]  # fmt: skip


def results(runs: Sequence[Run], groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """The table and what the methods are."""
    columns = columns_of(groups)
    rows = [[column.cell(group) for column in columns] for group in groups]
    headers = [column.header for column in columns]
    table = html_table(
        "Results of every method",
        headers,
        rows,
        styles=[styles[group.method] for group in groups],
        titles=[column.meaning for column in columns],
        hero=[group.method for group in groups].index(hero_of(groups).method),
    )
    explained = [
        f"<dt>{escape(group.method)}</dt><dd>{escape(explain(group.method))}</dd>"
        for group in groups
        if explain(group.method)
    ]
    teacher = f'<p class="note">{escape(teacher_line(runs))}</p>' if teacher_line(runs) else ""
    columns_meant = "".join(
        f"<dt>{escape(' '.join(column.header.split()))}</dt><dd>{escape(column.meaning)}</dd>"
        for column in columns
    )
    meant = details("What the columns mean", f"<dl>{columns_meant}</dl>")
    return section("Results", teacher + table + f"<dl>{''.join(explained)}</dl>" + meant)


def training(runs: Sequence[Run], groups: Sequence[Group], styles: dict[str, Style]) -> str:
    """Curves over epochs and over computation, and their numbers."""
    measure, teacher = measure_of(groups), teacher_accuracy(runs)
    figures = []
    for by_cost, caption in ((False, "by epoch"), (True, "by computation")):
        svg = charts.training_curves(groups, styles, measure, teacher, by_cost, f"curve{int(by_cost)}")
        if svg is not None:
            figures.append(figure(svg, caption, "backward = 2 forwards" if by_cost else ""))
    if not figures:
        return ""
    note = "Mean over seeds; band: one standard deviation. The axis starts where training settles."
    curves = {group.method: dict(curve(group, measure.of_epoch)) for group in groups}
    epochs = sorted(set[int]().union(*curves.values()))
    rows = [[str(epoch), *(percent(curves[group.method].get(epoch)) for group in groups)] for epoch in epochs]
    table = html_table(
        f"{measure.name.capitalize()} in % after every epoch",
        ["epoch", *(group.method for group in groups)],
        rows,
    )
    body = f'<p class="note">{note}</p><div class="charts">{"".join(figures)}</div>'
    return section("Training", body + details("The curves as a table", table))


def surroundings(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """Teacher, student, data and machine."""
    lines = [("Teacher’s accuracy", f"{percent(teacher_accuracy(runs))} %")] if teacher_accuracy(runs) else []
    for run in teacher_runs(runs):
        size = f", {run.parameters:,} parameters" if run.parameters else ""
        lines.append(("Teacher’s own training", f"{run.epochs} epochs{size}, seed {run.seed}"))
    students = [run for group in groups for run in group.runs]
    lines.append(
        ("Student’s parameters", _distinct(f"{run.parameters:,}" for run in students if run.parameters))
    )
    lines.append(("Epochs", _distinct(str(run.epochs) for run in students)))
    lines.append(("Reference for costs", _distinct(map(_reference, students))))
    lines.append(("Expected calibration error", ", ".join(filter(None, map(_calibration, groups)))))
    names = list(dict.fromkeys(name for run in students for name in run.environment))
    lines += [(name, _distinct(str(run.environment.get(name, NONE)) for run in students)) for name in names]
    cells = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines if value]
    return section("Teacher, student and environment", f"<dl>{''.join(cells)}</dl>")


def how_to_read(groups: Sequence[Group]) -> str:
    """What the numbers mean, in the order in which they are met."""
    holdouts = {_holdout(run) for group in groups for run in group.runs}
    where = "held-out training images" if holdouts == {True} else "the evaluation images of the data set"
    lines = [
        ("Result", f"What the student reaches after its last epoch on {where}. The best epoch is picked by "
         "looking at those same images, so it flatters: it stands beside the result and is not it."),
        ("±", "Sample standard deviation over the runs of a method (seeds); none is given for a single run. "
         "The difference to KD is taken seed by seed, then averaged, over the seeds that both ran."),
        ("Computation", "Floating-point operations of training over those of plain KD on all images: scoring "
         "forwards of the student, forwards of the teacher, and the student’s training passes. A backward "
         "pass is counted as 1 forward (the convention of the UNIX paper) or as 2 (nearer to what it takes). "
         "Evaluation is not counted. A stored answer of the teacher costs the run that asked for it, and nothing "
         "after that: what a run costs depends on what the runs before it have stored."),
        ("Seconds", "Measured on the machine named above. Less computation need not be less time: scoring "
         "adds a pass, and small batches use a machine less well."),
        ("Hard", "An image that the student got wrong at the moment it was kept or dropped."),
        ("Histograms", "Images of one epoch by their score, as shares of all its images that have one, mean over the "
         "runs. Scores beyond the range are counted in the outermost bins. Entropy ends at log C, a guess among C "
         "classes; a loss has no end and is cut off."),
        ("Short names", "Charts write the paper’s symbols: k for keep (k/N), b for mix_from (b/N), w for "
         "steepness."),
        ("Mixed most strongly", "Images whose own rows gave most to their partners, summed over the run: sure enough "
         "to be mixed, unsure enough to be kept. Partners are drawn at random, and what an image gave as one is not "
         "counted."),
    ]  # fmt: skip
    cells = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines]
    return section("How to read this", f"<dl>{''.join(cells)}</dl>")


def _reference(run: Run) -> str:
    epochs, images = run.reference
    if epochs is None or images is None:
        return ""
    return f"plain KD for {epochs} epochs of {count(images)} images"


def _calibration(group: Group) -> str:
    spread = group.spread(lambda run: run.calibration_error)
    return "" if spread is None else f"{group.method} {spread.mean:.3f}"


def _holdout(run: Run) -> bool:
    data = run.config.get("data")
    return isinstance(data, dict) and bool(data.get("holdout"))


def _distinct(values: object) -> str:
    return ", ".join(filter(None, dict.fromkeys(values)))  # type: ignore[call-overload]


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
