"""Numbers and sentences of a report: how values are written and what is said about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from unixkd.names import NONE, methods, seconds
from unixkd.report.records import SETTING, Run
from unixkd.report.runs import Group, MeanStd, matched_to, paired_difference
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


def _plain_kds(groups: Sequence[Group], group: Group) -> list[Group]:
    """Plain KD in a group's setting; under a label of its own only where none is called kd."""
    alike = [each for each in groups if each.setting == group.setting and each.runs[0].is_plain_kd]
    return [each for each in alike if each.name == "kd"] or alike


def baseline_of(groups: Sequence[Group], group: Group) -> Group | None:
    """Plain KD in a group's setting; None where it is not there, or more than once."""
    found = _plain_kds(groups, group)
    return found[0] if len(found) == 1 else None


def why_no_baseline(groups: Sequence[Group], group: Group) -> str:
    """The reason, where there is no `baseline_of` a group."""
    if found := _plain_kds(groups, group):
        return f"plain KD is there more than once: {', '.join(each.method for each in found)}"
    return "plain KD is not among these runs" + " with its data, student and teacher" * any(group.setting)


def hero_of(groups: Sequence[Group]) -> Group:
    """The method the report is about: UNIX, else the first that is not plain KD."""
    others = [group for group in groups if group.name != "kd"] or list(groups)
    return next((group for group in groups if group.name == "unix"), others[0])


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


def points(stat: MeanStd | None) -> str:
    """A difference of fractions in points, signed.

    >>> points(MeanStd(-0.002, None, 1))
    '−0.20'
    """
    if stat is None:
        return NONE
    text = f"{100 * stat.mean:+.2f}".replace("-", "−")
    text = "0.00" if text in ("+0.00", "−0.00") else text
    return f"{text} ± {100 * stat.sd:.2f}" if stat.sd is not None else text


def headline(groups: Sequence[Group]) -> list[str]:
    """What the runs showed, in plain sentences; the first one stands for itself."""
    measure, hero = measure_of(groups), hero_of(groups)
    kd = baseline_of(groups, hero)
    result, cost = hero.mean_std(measure.of_run), hero.cost(2)
    if result is None:
        return [f"{hero.method} trained to the end; it had neither labels nor a teacher to be judged by."]
    first = f"{hero.method} {measure.reached.format(_rough(result))}"
    if cost is not None and hero.name != "kd":
        first += f" at {100 * cost.mean:.1f} % of plain KD’s computation (backward = 2 forwards)"
    if kd is None:
        return [f"{first}.", f"No result to set it against: {why_no_baseline(groups, hero)}."]
    kd_result = kd.mean_std(measure.of_run)
    if kd is hero or kd_result is None:
        return [f"{first}."]
    sentences = [f"{first}; plain KD {measure.reached.format(_rough(kd_result))}."]
    if (difference := paired_difference(hero, kd, measure.of_run)) is not None:
        sentences.append(_verdict(difference))
    if cost is not None:
        if cost.mean >= 1:
            sentences.append(f"{hero.method} saved no computation here.")
        if rivals := ", ".join(_rivals(groups, hero, result, cost, measure)):
            sentences.append(f"At least as good for the same computation or less: {rivals}.")
    if hero.train_seconds and kd.train_seconds:
        took, kd_took = seconds(hero.train_seconds.mean), seconds(kd.train_seconds.mean)
        sentences.append(f"Measured training time: {took}, plain KD {kd_took}.")
    return sentences


def _rough(stat: MeanStd) -> str:
    return f"{100 * stat.mean:.1f} %"


def _verdict(difference: MeanStd) -> str:
    seeds = "1 seed" if difference.n == 1 else f"{difference.n} seeds that both ran"
    text = f"The difference is {points(difference)} points over {seeds}"
    if difference.sd is None:
        text += ", too few to tell it from chance"
    elif abs(difference.mean) <= difference.sd:
        text += ", no more than it varies from seed to seed"
    return f"{text}."


def _rivals(
    groups: Sequence[Group], hero: Group, result: MeanStd, cost: MeanStd, measure: Measure
) -> Iterator[str]:
    """Controls that did at least as well for no more computation: they must not be passed over."""
    for group in groups:
        theirs, price = group.mean_std(measure.of_run), group.cost(2)
        if group.name == "kd" or group is hero or group.setting != hero.setting or not theirs or not price:
            continue
        if theirs.mean >= result.mean and price.mean <= cost.mean * 1.01:
            yield f"{group.method} ({_rough(theirs)} at {100 * price.mean:.1f} %)"


def protocol_notes(groups: Sequence[Group]) -> list[str]:
    """What keeps the runs from being compared like for like."""
    runs = [run for group in groups for run in group.runs]
    notes = []
    for what, texts in zip(SETTING, zip(*(run.setting for run in runs), strict=True), strict=True):
        if any(texts):
            differ = "; ".join(sorted({text or "not known" for text in texts}))
            notes.append(
                f"The runs differ in their {what} ({differ}): only runs alike are averaged or compared."
            )
    references = {run.summary.cost.reference for run in runs if run.cost(2) is not None}
    if len(references) > 1:
        notes.append("The costs refer to plain KD runs of different lengths: compare them with care.")
    return notes
