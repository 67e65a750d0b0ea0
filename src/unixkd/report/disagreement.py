"""Where student and teacher disagree after the last epoch, and what the teacher costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from unixkd.names import NONE, flops, percent, plural, seconds
from unixkd.report.charts import Style
from unixkd.report.records import Run
from unixkd.report.runs import Group
from unixkd.report.table import PageTable
from unixkd.report.wording import hero_of
from unixkd.run_files import Disagreement, Disagreements

THOUSAND = 1000


def where_they_disagree(groups: Sequence[Group], styles: dict[str, Style]) -> dict[str, Any] | None:
    """Counts for every method, means over its runs, and images of one run; None where no run left any."""
    rows, marks = [], []
    for group in groups:
        found = [run.disagreements for run in group.runs if run.disagreements]
        if found:
            rows.append([group.method, *map(_mean, _columns(found))])
            marks.append(styles[group.method])
    if not rows:
        return None
    headers = [
        *("method", "images\nevaluated", "disagree"),
        *("the teacher\nis right", "the student\nis right", "neither\nis right"),
    ]
    table = PageTable("On how many images student and teacher disagree", headers, rows, marks)
    return {"table": table, "pictures": _pictures(groups)}


def _columns(found: Sequence[Disagreements]) -> list[list[int | None]]:
    neither = [
        None if each.teacher_right is None or each.student_right is None
        else each.differ - each.teacher_right - each.student_right
        for each in found
    ]  # fmt: skip
    return [
        [each.images for each in found],
        [each.differ for each in found],
        [each.teacher_right for each in found],
        [each.student_right for each in found],
        neither,
    ]


def _mean(values: Iterable[int | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    mean = sum(known) / len(known)
    return f"{mean:,.0f}" if mean == int(mean) else f"{mean:,.1f}"


def _pictures(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Images of one run: of the method the report is about, else of the first that has any."""
    runs = (run for group in (hero_of(groups), *groups) for run in group.runs)
    run = next((run for run in runs if run.disagreements and run.disagreements.shown), None)
    if run is None or run.disagreements is None:
        return None
    found = run.disagreements
    number, first = (
        len(found.shown),
        ", first those that the teacher gets right" if found.teacher_right else "",
    )
    shown = f"{number:,} of {found.differ:,}" if number < found.differ else plural(number, "image")
    title = f"{shown}{first} ({run.method}, seed {run.seed})"
    return {"title": title, "pictures": [_picture(each) for each in found.shown]}


def _picture(image: Disagreement) -> dict[str, Any]:
    """An image as the page shows it: its class, and what both say with their confidences."""
    label = image.label if image.label is not None else f"#{image.index}"
    named = f", {image.file}" if image.file else ""
    verdicts = {
        who: (said, percent_of(confidence), image.label is not None and said == image.label)
        for who, said, confidence in (
            ("teacher", image.teacher, image.teacher_confidence),
            ("student", image.student, image.student_confidence),
        )
    }
    said = "; ".join(f"the {who} says {text} ({sure})" for who, (text, sure, _) in verdicts.items())
    words = f"evaluation image {image.index}{named}, {label}: {said}"
    return {"address": image.address, "pixelated": image.png is not None, "words": words, "label": label,
            "verdicts": verdicts}  # fmt: skip


def percent_of(confidence: float | None) -> str:
    """A probability in whole percents."""
    return NONE if confidence is None else f"{100 * confidence:.0f} %"


def teachers_cost(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """What the teacher costs for 1,000 images, as far as the runs say: computation, and seconds of its evaluation.

    Runs of one setting have one teacher; where there are several settings each is told by its methods.
    """
    settings: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        settings.setdefault(group.setting, []).append(group)
    computation, took = [], []
    for alike in settings.values():
        whose = f" ({', '.join(group.method for group in alike)})" if len(settings) > 1 else ""
        runs = [run for group in alike for run in group.runs]
        computation += [f"{text}{whose}" for text in dict.fromkeys(filter(None, map(_computation, runs)))]
        if known := [value for value in map(_seconds, runs) if value is not None]:
            ends = dict.fromkeys((seconds(min(known)), seconds(max(known))))
            took.append(f"{' to '.join(ends)} of its evaluation, with reading the images{whose}")
    shares = [f"{group.method} {percent(stat.mean)}" for group in groups if (stat := group.mean_std(_share))]
    lines = {
        "Teacher’s cost for 1,000 images": computation,
        "Teacher’s seconds for 1,000 images": took,
        "Teacher’s share of the computation": shares,
    }
    return [(name, ", ".join(texts)) for name, texts in lines.items() if texts]


def _computation(run: Run) -> str:
    """By its forwards in training; empty where there were none, or their FLOPs are not known."""
    images, spent = run.summary.cost.images.teacher_forwarded, run.summary.cost.flops.teacher
    return flops(THOUSAND * spent / images) if images and spent else ""


def _seconds(run: Run) -> float | None:
    """As its evaluation took; None where it was not timed."""
    took, found = run.summary.time.teacher_seconds, run.disagreements
    return THOUSAND * took / found.images if took and found is not None and found.images else None


def _share(run: Run) -> float | None:
    """Of a training with backwards as 2 forwards; None where it is not known."""
    whole, spent = run.flops(2), run.summary.cost.flops.teacher
    return spent / whole if whole and spent else None
