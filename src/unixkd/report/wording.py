"""Numbers and sentences of a report: how values are written and what is said about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unixkd.names import NONE, methods, seconds
from unixkd.report.records import Run
from unixkd.report.runs import Group, MeanStd, paired_difference
from unixkd.run_files import Epoch


@dataclass(frozen=True)
class Measure:
    """What the runs are judged by: accuracy, or agreement with the teacher where there are no labels."""

    name: str
    reached: str
    of_run: Callable[[Run], float | None]
    of_epoch: Callable[[Epoch], float | None]


ACCURACY = Measure("accuracy", "reached {}", lambda run: run.accuracy, lambda epoch: epoch.accuracy)
AGREEMENT = Measure(
    "agreement with the teacher",
    "agreed with the teacher on {}",
    lambda run: run.summary.agreement,
    lambda epoch: epoch.agreement,
)


def measure_of(groups: Sequence[Group]) -> Measure:
    """Accuracy if any run has one or none has an agreement."""
    runs = [run for group in groups for run in group.runs]
    if all(run.accuracy is None for run in runs) and any(run.summary.agreement is not None for run in runs):
        return AGREEMENT
    return ACCURACY


def baseline_of(groups: Sequence[Group]) -> Group | None:
    """Plain KD."""
    return next((group for group in groups if group.method == "kd"), None)


def hero_of(groups: Sequence[Group]) -> Group:
    """The method the report is about: UNIX, else the first that is not plain KD."""
    named = {group.method: group for group in groups}
    others = [group for group in groups if group.method != "kd"]
    return named.get("unix") or (others or list(groups))[0]


def matched_to(method: str) -> str:
    """The method whose cost a control was given, with the folder if one is named; empty where it is no such control.

    >>> matched_to("kd@unix:keep=0.5"), matched_to("unix")
    ('unix:keep=0.5', '')
    """
    kd, at, target = method.partition("@")
    return target if at and kd == "kd" else ""


def explain(method: str) -> str:
    """One line on what a method does; empty for an unknown one.

    >>> explain("kd@unix")
    'KD at the cost of unix: plain KD for as many epochs as the computation of unix buys'
    >>> explain("random:keep=0.5")
    'keeps random images of each batch, unmixed: the control for training on less, with keep = 0.5'
    """
    name = method.partition(" (")[0]
    if target := matched_to(name):
        return f"KD at the cost of {target}: plain KD for as many epochs as the computation of {target} buys"
    name, _, options = name.partition(":")
    changed = f", with {options.replace(':', ', ').replace('=', ' = ')}" if options else ""
    known = methods().get(name, "").partition(" (")[0].rstrip(".")
    return f"{known[:1].lower() if known[1:2].islower() else known[:1]}{known[1:]}{changed}" if known else ""


def percent(stat: MeanStd | None, digits: int = 2, sd: bool = True) -> str:
    """A fraction in percent, with its deviation where there is one.

    >>> percent(MeanStd(0.979, 0.0012, 3))
    '97.90 ± 0.12'
    """
    if stat is None:
        return NONE
    text = f"{100 * stat.mean:.{digits}f}"
    return f"{text} ± {100 * stat.sd:.{digits}f}" if sd and stat.sd is not None else text


def points(stat: MeanStd | None, sd: bool = True) -> str:
    """A difference of fractions in points, signed.

    >>> points(MeanStd(-0.002, None, 1))
    '−0.20'
    """
    if stat is None:
        return NONE
    text = f"{100 * stat.mean:+.2f}".replace("-", "−")
    text = "0.00" if text in ("+0.00", "−0.00") else text
    return f"{text} ± {100 * stat.sd:.2f}" if sd and stat.sd is not None else text


def headline(groups: Sequence[Group]) -> list[str]:
    """What the runs showed, in plain sentences; the first one stands for itself."""
    measure, hero, kd = measure_of(groups), hero_of(groups), baseline_of(groups)
    ours = hero.mean_std(measure.of_run)
    if ours is None:
        return [f"{hero.method} trained to the end; it had neither labels nor a teacher to be judged by."]
    said = f"{hero.method} {measure.reached.format(_rough(ours))}"
    cost = hero.mean_std(lambda run: run.cost_2x)
    if cost is not None and hero.method != "kd":
        said += f" at {100 * cost.mean:.1f} % of plain KD’s computation (backward = 2 forwards)"
    theirs = None if kd is None or kd is hero else kd.mean_std(measure.of_run)
    if theirs is None:
        return [
            f"{said}.",
            *([] if kd else ["Plain KD was not run here, so there is no result to set it against."]),
        ]
    return [
        f"{said}; plain KD {measure.reached.format(_rough(theirs))}.",
        *_verdict(hero, kd, measure, cost),
        *_rivals(groups, hero, ours, cost, measure),
        *_times(hero, kd),
    ]


def _rough(stat: MeanStd) -> str:
    return f"{100 * stat.mean:.1f} %"


def _verdict(hero: Group, kd: Group | None, measure: Measure, cost: MeanStd | None) -> list[str]:
    sentences = []
    difference = paired_difference(hero, kd, measure.of_run)
    if difference is not None:
        seeds = "1 seed" if difference.n == 1 else f"{difference.n} seeds that both ran"
        text = f"The difference is {points(difference)} points over {seeds}"
        if difference.sd is None:
            text += ", too few to tell it from chance"
        elif abs(difference.mean) <= difference.sd:
            text += ", no more than it varies from seed to seed"
        sentences.append(text + ".")
    if cost is not None and cost.mean >= 1:
        sentences.append(f"{hero.method} saved no computation here.")
    return sentences


def _rivals(
    groups: Sequence[Group], hero: Group, ours: MeanStd, cost: MeanStd | None, measure: Measure
) -> list[str]:
    """Controls that did at least as well for no more computation: they must not be passed over."""
    rivals = []
    for group in groups:
        theirs, price = group.mean_std(measure.of_run), group.mean_std(lambda run: run.cost_2x)
        if group.method in ("kd", hero.method) or theirs is None or price is None or cost is None:
            continue
        if theirs.mean >= ours.mean and price.mean <= cost.mean * 1.01:
            rivals.append(f"{group.method} ({_rough(theirs)} at {100 * price.mean:.1f} %)")
    if not rivals:
        return []
    return [f"At least as good for the same computation or less: {', '.join(rivals)}."]


def _times(hero: Group, kd: Group | None) -> list[str]:
    ours = hero.mean_std(lambda run: run.train_seconds)
    theirs = None if kd is None else kd.mean_std(lambda run: run.train_seconds)
    if ours is None or theirs is None:
        return []
    return [f"Measured training time: {seconds(ours.mean)}, plain KD {seconds(theirs.mean)}."]


def protocol_notes(groups: Sequence[Group]) -> list[str]:
    """What keeps the runs from being compared like for like."""
    runs = [run for group in groups for run in group.runs]
    notes = []
    sizes = sorted({run.summary.parameters for run in runs if run.summary.parameters is not None})
    if len(sizes) > 1:
        numbers = ", ".join(f"{size:,}" for size in sizes)
        notes.append(
            f"The students differ in size ({numbers} parameters): these runs do not share one protocol."
        )
    references = {run.summary.cost.reference for run in runs if run.cost_2x is not None}
    if len(references) > 1:
        notes.append("The costs refer to plain KD runs of different lengths: compare them with care.")
    return notes
