"""What an evaluation found, as records: of answers to labelled images, of two networks side by side, of speed.

`Evaluation.as_json` is what `unixkd evaluate --json` prints. None is what is not known or not defined.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SCHEMA = 1
"""Of the JSON object; a change that an older reader would misunderstand raises it."""
MATRIX_CLASSES = 1000
"""Classes up to which the whole confusion matrix is kept: a million numbers."""
PAIRS_KEPT = 100
"""Of the most confused pairs."""
TOP = 5
NO_ANSWER = -1
"""In the place of a class, where a network's logits were not finite."""

Classes = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassQuality:
    """How one class was told from the others.

    Args:
        number: of the class, its place among the logits
        name: of the class
        images: evaluated images of it, its support
        predicted: images for which it was the most probable class
        precision: share of `predicted` that are of it; None where `predicted` is 0
        recall: share of `images` for which it was named; None where there are none
        f1: their harmonic mean, 0 where the class was never rightly named; None where recall is
    """

    number: int
    name: str
    images: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class Confused:
    """A pair of classes by their numbers: how many images of `actual` were taken for `predicted`."""

    actual: int
    predicted: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A network's answers to labelled images; one without an answer counts as wrong.

    Args:
        accuracy: share of images whose most probable class is right
        top_5: share of images whose class is among the five most probable; None with five classes or fewer
        balanced_accuracy: mean recall of the classes that have images
        calibration_error: expected calibration error of the images with an answer
        calibration_curve: its bins: low, high, images, mean confidence, accuracy; none is empty
        classes: of each class, in the order of the logits
        confusion: images by their class (row) and the one predicted (column); None with more than 1,000 classes
        confused: the most confused pairs, at most 100
    """

    accuracy: float
    top_5: float | None
    balanced_accuracy: float
    calibration_error: float | None
    calibration_curve: Sequence[Mapping[str, float]]
    classes: Sequence[ClassQuality]
    confusion: Sequence[Sequence[int]] | None
    confused: Sequence[Confused]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Forwards that were timed, on random pixels in the size of the data.

    Args:
        images_per_second: at `batch_size`, the best of those that were tried
        milliseconds: of an image by itself, the median of `calls` forwards
    """

    images_per_second: float
    batch_size: int
    milliseconds: float
    calls: int
    device: str
    threads: int | None
    precision: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One network.

    Args:
        name: of its architecture
        source: the folder or file of its weights
        parameters: how many
        megabytes: its weights in fp32, 1 MB = 10^6 bytes
        flops: of a forward of one image; None where they cannot be counted
        unanswered: images for which its logits are not finite
        quality: None without labels
        speed: None where nothing was timed
    """

    name: str
    source: str
    parameters: int
    megabytes: float
    flops: int | None
    unanswered: int
    quality: Quality | None
    speed: Speed | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Student and teacher on the same images; shares are None where they are of none.

    Args:
        agreement: share of images for which both name the same class
        both_right: images, by whose answer is right; None without labels
        student_where_teacher_right: the student's accuracy on the images that the teacher has right
    """

    agreement: float
    both_right: int | None = None
    only_teacher_right: int | None = None
    only_student_right: int | None = None
    both_wrong: int | None = None
    student_where_teacher_right: float | None = None
    student_where_teacher_wrong: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation.

    Args:
        data: name of the data
        images: evaluated images
        unlabelled: of these, the ones without a class, left out of everything that needs one
        class_names: in the order of the logits
        absent: numbers of the classes without an image
        student: the network that is evaluated, whoever trained it
        teacher: None where there is none, or is left out
        comparison: None without a teacher
        data_notes: what has to be said of the data
        notes: what has to be said with the figures
    """

    schema: int = SCHEMA
    data: str
    data_notes: Sequence[str]
    images: int
    unlabelled: int
    class_names: Sequence[str]
    absent: Sequence[int]
    student: Judged
    teacher: Judged | None
    comparison: Comparison | None
    notes: Sequence[str] = ()

    def as_json(self) -> str:
        """The JSON object, on one line."""
        return json.dumps(asdict(self), allow_nan=False)


class Answers(NamedTuple):
    """What was said of each image of the evaluation split, in its order.

    Args:
        labels: its class `[N]`, -1 where it has none; None: no image has one
        student: the class that the student names `[N]`, or `NO_ANSWER`
        student_confidence: its probability `[N]`
        teacher: as `student`, or None without a teacher
        teacher_confidence: as `student_confidence`
    """

    labels: Classes | None
    student: Classes
    student_confidence: NDArray[np.floating]
    teacher: Classes | None = None
    teacher_confidence: NDArray[np.floating] | None = None


def quality(
    labels: Classes,
    said: Classes,
    top: Classes,
    class_names: Sequence[str],
    calibration_error: float | None,
    calibration_curve: Sequence[Mapping[str, float]],
) -> Quality:
    """How good a network's answers are.

    Args:
        labels: class of each image `[N]`, at least one
        said: the class that the network named `[N]`, or `NO_ANSWER`
        top: its most probable classes `[N, k]`, read with more than five classes
        class_names: of all classes, C
        calibration_error: as `Quality` has it
        calibration_curve: its bins

    >>> labels, said = np.array([0, 0, 1]), np.array([0, 1, 1])
    >>> found = quality(labels, said, said[:, None], ["ant", "bee"], None, [])
    >>> found.balanced_accuracy, found.classes[1].precision, found.confusion
    (0.75, 0.5, [[1, 1], [0, 1]])
    """
    from sklearn.metrics import accuracy_score, confusion_matrix

    numbers = np.arange(len(class_names))
    classes = per_class(labels, said, class_names)
    recalls = [each.recall for each in classes if each.recall is not None]
    matrix = None
    if len(numbers) <= MATRIX_CLASSES:
        with without_warnings():  # of a single class
            matrix = confusion_matrix(labels, said, labels=numbers).tolist()  # leaves `NO_ANSWER` out
    answered = said != NO_ANSWER
    hits = (top[:, :TOP] == labels[:, None])[answered].sum()
    return Quality(
        accuracy=float(accuracy_score(labels, said)),
        top_5=float(hits / len(labels)) if len(numbers) > TOP else None,
        balanced_accuracy=float(np.mean(recalls)),
        calibration_error=calibration_error,
        calibration_curve=list(calibration_curve),
        classes=classes,
        confusion=matrix,
        confused=confused_pairs(labels, said)[:PAIRS_KEPT],
    )


def per_class(labels: Classes, said: Classes, class_names: Sequence[str]) -> list[ClassQuality]:
    """Precision, recall and F1 of each class, None where they are shares of nothing; arguments as of `quality`."""
    from sklearn.metrics import precision_recall_fscore_support

    numbers = np.arange(len(class_names))
    with without_warnings():  # of shares of nothing
        precision, recall, f1, images = precision_recall_fscore_support(
            labels, said, labels=numbers, average=None, zero_division=np.nan
        )
    predicted = np.bincount(said[said != NO_ANSWER], minlength=len(numbers))

    def known(value: float, there: bool) -> float | None:
        return float(value) if there else None

    return [
        ClassQuality(
            number=i,
            name=name,
            images=int(images[i]),
            predicted=int(predicted[i]),
            precision=known(precision[i], predicted[i] > 0),
            recall=known(recall[i], images[i] > 0),
            f1=known(f1[i], images[i] > 0),
        )
        for i, name in enumerate(class_names)
    ]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Within, nothing is warned of: what scikit-learn finds odd is None here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def confused_pairs(labels: Classes, said: Classes) -> list[Confused]:
    """The pairs of classes that were taken for each other, the most frequent first, equals in the order of classes.

    >>> confused_pairs(np.array([0, 1, 1, 2]), np.array([0, 2, 2, 0]))[0]
    Confused(actual=1, predicted=2, images=2)
    """
    wrong = (labels != said) & (said != NO_ANSWER)
    pairs, images = np.unique(np.stack([labels[wrong], said[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-images, kind="stable")
    return [
        Confused(actual=int(pairs[0, i]), predicted=int(pairs[1, i]), images=int(images[i])) for i in order
    ]


def compare(student: Classes, teacher: Classes, labels: Classes | None) -> Comparison:
    """Two networks' answers to the same images, classes `[N]` or `NO_ANSWER`.

    Args:
        student: what the student says
        teacher: what the teacher says
        labels: the right classes, -1 where an image has none; None: no image has one

    >>> compare(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([0, 1, 0])).student_where_teacher_wrong
    0.5
    """
    agreement = float(((student == teacher) & (student != NO_ANSWER)).mean())
    if labels is None or not (labels >= 0).any():
        return Comparison(agreement=agreement)
    ours, theirs = ((each == labels)[labels >= 0] for each in (student, teacher))

    def share(where: NDArray[np.bool_]) -> float | None:
        return float(ours[where].mean()) if where.any() else None

    return Comparison(
        agreement=agreement,
        both_right=int((ours & theirs).sum()),
        only_teacher_right=int((~ours & theirs).sum()),
        only_student_right=int((ours & ~theirs).sum()),
        both_wrong=int((~ours & ~theirs).sum()),
        student_where_teacher_right=share(theirs),
        student_where_teacher_wrong=share(~theirs),
    )


def worst_first(found: Quality) -> list[ClassQuality]:
    """The classes that have images, by F1 and then recall, the worst first."""
    there = [each for each in found.classes if each.images]
    return sorted(there, key=lambda each: (each.f1 or 0, each.recall or 0))
