"""An evaluation's figures in words: the rows and lines that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from unixkd.names import NONE, flops, percent, plural, three_digits
from unixkd.report.evaluation import ClassQuality, Confused, Evaluation, Judged, Quality, Speed, worst_first

FEW_CLASSES = 20
"""Up to which all are shown; of more, the worst."""
WORST = 10
NAMED = 8
"""Classes without images that are named."""

Row = tuple[str, ...]
"""A row's name and its cells."""


def networks(found: Evaluation) -> list[Judged]:
    """The student, and the teacher where there is one."""
    return [found.student, *([found.teacher] if found.teacher else [])]


def roles(found: Evaluation) -> list[str]:
    """What each of `networks` is called: student and teacher, or by its own name where it is alone."""
    return ["student", "teacher"] if found.teacher else [found.student.name]


def summary(found: Evaluation) -> list[Row]:
    """A row for each figure with a cell for each network; figures that none of them has are left out."""

    def quality(value: Callable[[Quality], str]) -> Callable[[Judged], str]:
        return lambda each: NONE if each.quality is None else value(each.quality)

    def speed(value: Callable[[Speed], str]) -> Callable[[Judged], str]:
        return lambda each: NONE if each.speed is None else value(each.speed)

    figures: dict[str, Callable[[Judged], str]] = {
        "accuracy (top-1)": quality(lambda q: percent(q.accuracy)),
        "accuracy (top-5)": quality(lambda q: percent(q.top_5)),
        "balanced accuracy": quality(lambda q: percent(q.balanced_accuracy)),
        "calibration error": quality(lambda q: percent(q.calibration_error)),
        "images per second": speed(lambda s: three_digits(s.images_per_second)),
        "  images at once": speed(lambda s: f"{s.batch_size}"),
        "ms per image, one at a time": speed(lambda s: three_digits(s.milliseconds)),
        "FLOPs per image": lambda each: NONE if each.flops is None else flops(each.flops),
        "parameters": lambda each: f"{each.parameters:,}",
        "size of the weights in fp32": lambda each: f"{three_digits(each.megabytes)} MB",
    }
    rows: list[Row] = [(name, *map(value, networks(found))) for name, value in figures.items()]
    return [row for row in rows if set(row[1:]) != {NONE}]


def remarks(found: Evaluation) -> Iterator[str]:
    """What has to be said with the figures, in sentences."""
    yield from compared(found)
    yield from absent(found)
    if found.unlabelled and found.student.quality:
        yield f"{plural(found.unlabelled, 'image')} without a label: left out of accuracy, calibration and confusion."
    if not found.student.quality:
        yield "The images have no labels: there is nothing to tell right from wrong by."
    for role, each in zip(roles(found), networks(found), strict=True):
        if each.unanswered:
            yield (
                f"{role}: logits are not finite for {plural(each.unanswered, 'image')}, which count as wrong and are "
                "left out of calibration and confusion."
            )
    yield from found.notes
    yield from timed(found)


def compared(found: Evaluation) -> Iterator[str]:
    """How student and teacher agree."""
    if (both := found.comparison) is None:
        return
    yield f"Student and teacher name the same class for {percent(both.agreement)} of the images."
    right, wrong = both.student_where_teacher_right, both.student_where_teacher_wrong
    for word, share, parts in (
        ("right", right, (both.both_right, both.only_teacher_right)),
        ("wrong", wrong, (both.only_student_right, both.both_wrong)),
    ):
        if share is not None:
            images = plural(sum(part or 0 for part in parts), "image")
            yield f"Where the teacher is {word} ({images}), the student is right on {percent(share)}."


def absent(found: Evaluation) -> Iterator[str]:
    """Which classes have no image, where there are labels."""
    if not found.absent or not found.student.quality:
        return
    names = [found.class_names[i] for i in found.absent[:NAMED]]
    more = f" and {len(found.absent) - NAMED:,} more" if len(found.absent) > NAMED else ""
    left = len(found.class_names) - len(found.absent)
    yield (
        f"No image of {len(found.absent):,} of {len(found.class_names):,} classes ({', '.join(names)}{more}): their "
        f"recall is not defined, and balanced accuracy is the mean over the other {left:,}."
    )


def timed(found: Evaluation) -> Iterator[str]:
    """How the seconds were measured."""
    speeds = {
        role: each.speed
        for role, each in zip(roles(found), networks(found), strict=True)
        if each.speed is not None
    }
    if not speeds:
        return
    threads = {role: speed.threads for role, speed in speeds.items() if speed.threads is not None}
    if len({*threads.values()}) > 1:
        said = ", ".join(f"{role} {plural(number, 'thread')}" for role, number in threads.items())
    else:
        said = ", ".join(plural(number, "thread") for number in {*threads.values()})
    first = next(iter(speeds.values()))
    where = ", ".join(filter(None, [first.device, said, first.precision]))
    calls = min(speed.calls for speed in speeds.values())
    yield (
        f"Timed on {where}, forwards of random pixels without decoding; one image at a time: median of "
        f"{plural(calls, 'call')}."
    )


def class_headers(found: Evaluation) -> list[str]:
    """Of the table of classes."""
    both = found.teacher is not None and found.teacher.quality is not None
    return ["class", "images", "precision", "recall", "F1", *(["teacher's F1"] if both else [])]


def class_rows(found: Evaluation, classes: Sequence[ClassQuality]) -> list[Row]:
    """A row for each of these classes."""
    theirs: Sequence[ClassQuality] = ()
    if found.teacher and found.teacher.quality:
        theirs = found.teacher.quality.classes

    def row(each: ClassQuality) -> Row:
        shares = [each.precision, each.recall, each.f1, *([theirs[each.number].f1] if theirs else [])]
        return each.name, f"{each.images:,}", *map(percent, shares)

    return [row(each) for each in classes]


def shown_classes(quality: Quality, few: int = FEW_CLASSES, worst: int = WORST) -> list[ClassQuality]:
    """All classes where they are few, else the worst of those that have images."""
    return list(quality.classes) if len(quality.classes) <= few else worst_first(quality)[:worst]


def pair_row(found: Evaluation, pair: Confused, quality: Quality) -> Row:
    """A confused pair: what it is, for what it is taken, how many images, which share of the class."""
    actual, said = found.class_names[pair.actual], found.class_names[pair.predicted]
    share = pair.images / quality.classes[pair.actual].images
    return actual, said, f"{pair.images:,}", percent(share)


def curve_rows(quality: Quality) -> list[Row]:
    """The bins of the calibration curve."""
    return [
        (
            f"{100 * point['low']:.0f} to {100 * point['high']:.0f} %",
            f"{point['images']:,}",
            percent(point["confidence"]),
            percent(point["accuracy"]),
        )
        for point in quality.calibration_curve
    ]
