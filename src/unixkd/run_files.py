"""The files of a run folder: their records, written by `training` and read by `report`; how files are written whole."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from unixkd.errors import CHECKSUMS, checksum

SCHEMA = 1
"""Of summary.json; a change that an older reader would misunderstand raises it."""
CHECKPOINT = r"epoch-\d{5,}(-step-\d{7,})?"
"""Names of a run's checkpoints. Under other names lies what is somebody's own."""

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Counts = Annotated[tuple[Count, ...], Meta(max_length=1000)]
"""Of the bins of a histogram, which are drawn one by one."""
Times = Annotated[int, Meta(ge=0, le=100_000)]
"""How often an image was kept, or epochs of a run: a chart has a place for each number up to the largest."""

# Records: the objects in a run folder's JSON files. A field without a default has to be there and not be null.
# `unixkd.report.records` checks types and ranges as it reads them, with msgspec.


@dataclass(frozen=True, kw_only=True)
class RelativeCost:
    """Training FLOPs over those of plain KD, with a backward pass counted as one forward and as two."""

    backward_1x: float | None = None
    backward_2x: float | None = None


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images that went through each forward; `teacher_filled` of `teacher_forwarded` were asked for a store."""

    scored: Count
    refreshed: Count = 0
    teacher_forwarded: Count
    teacher_cached: Count
    teacher_filled: Count = 0
    trained: Count
    evaluated: Count


# summary.json


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 accuracy after the last epoch, after the best one, and the teacher's."""

    last: Share | None = None
    best: Share | None = None
    teacher: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of a whole run, each forward pass once; evaluation is no part of training."""

    scoring: float | None = None
    refresh: float | None = None
    teacher: float | None = None
    student_forward: float | None = None
    evaluation: float | None = None

    def training(self, backward: int) -> float | None:
        """FLOPs of training with a backward pass counted as so many forwards; None where they are not known.

        >>> Flops(teacher=5.0, student_forward=2.0).training(backward=2)
        11.0
        """
        if self.student_forward is None or self.teacher is None:
            return None
        forward = (self.scoring, self.refresh, self.teacher, self.student_forward)
        return sum(flops or 0 for flops in forward) + backward * self.student_forward


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The plain KD that costs are relative to: its epochs, and the images of each."""

    epochs: Count | None = None
    images: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run cost."""

    images: Images
    flops: Flops = field(default_factory=Flops)
    reference: Reference = field(default_factory=Reference)
    relative_to_kd: RelativeCost | None = None
    shared: RelativeCost | None = None  # of it: charged as if the run were alone, but lent by other runs


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Seconds of a run, by what they were spent on."""

    setup_seconds: float | None = None
    train_seconds: float | None = None
    evaluate_seconds: float | None = None
    teacher_seconds: float | None = None  # of the teacher's evaluation, which is part of the setup


@dataclass(frozen=True, kw_only=True)
class Summary:
    """summary.json: a finished run in figures.

    Args:
        method: its name, or a label like `kd@unix`
        parameters: of the student
        agreement: share of evaluated images where student and teacher agree
        environment: what it ran on: torch, device, threads, precision …
        skipped_steps: of the run, whose gradients overflowed in fp16; None in another precision
    """

    schema: int
    method: Annotated[str, Meta(min_length=1)]
    seed: Count
    epochs: Count
    parameters: Count | None = None
    accuracy: Accuracy
    agreement: Share | None = None
    calibration_error: Share | None = None
    cost: Cost
    time: Seconds = field(default_factory=Seconds)
    environment: dict[str, Any] = field(default_factory=dict)
    skipped_steps: Count | None = None


# plan.json


@dataclass(frozen=True, kw_only=True)
class PlannedImages:
    """Images that a run was expected to put through each forward."""

    scored: Count
    teacher_forwarded: Count
    trained: Count


@dataclass(frozen=True, kw_only=True)
class PlannedCost:
    """As `RelativeCost`, where both are known."""

    backward_1x: float
    backward_2x: float


@dataclass(frozen=True, kw_only=True)
class Planned:
    """plan.json: what was worked out when the run started; exact: it must come out so, else it is expected."""

    exact: bool = False
    images: PlannedImages
    relative_to_kd: PlannedCost


# metrics.jsonl


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """An epoch's images by their score, in bins of equal width.

    Args:
        score: which score it is
        low: where the first bin begins
        high: where the last one ends
        remembered: the epoch's images were chosen before it by scores of their last visits
        kept: kept images in each bin
        dropped: dropped images in each bin
        kept_hard: of those kept, the ones the student got wrong; None without labels
        dropped_hard: of those dropped, the ones the student got wrong
    """

    score: Annotated[str, Meta(min_length=1)]
    low: float
    high: float
    remembered: bool = False
    kept: Counts
    dropped: Counts
    kept_hard: Counts | None = None
    dropped_hard: Counts | None = None

    def __post_init__(self) -> None:
        lists = (self.kept, self.dropped, self.kept_hard, self.dropped_hard)
        lengths = {len(bins) for bins in lists if bins is not None}
        if not self.kept or not self.low < self.high or len(lengths) > 1:
            raise ValueError("the histogram's range or lists do not fit together")


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What the selection kept in one epoch; every field is a share or a mean, None where it is not known.

    Args:
        visited: share of the training images that the epoch visited
        kept: of those, the share that was kept
        distinct: share of the training images used at least once
        score_kept: mean score of the kept images
        score_dropped: mean score of the dropped images
        hard_kept: share of the kept images that the student got wrong
        hard_dropped: share of the dropped images that the student got wrong
        histogram: the epoch's images by their score
    """

    visited: Share | None = None
    kept: Share | None = None
    distinct: Share | None = None
    score_kept: float | None = None
    hard_kept: Share | None = None
    score_dropped: float | None = None
    hard_dropped: Share | None = None
    histogram: Histogram | None = None

    @property
    def kept_of_all(self) -> float | None:
        """Share of all training images that was kept; before version 0.2 every epoch visited all of them."""
        return None if self.kept is None else self.kept * (1 if self.visited is None else self.visited)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A line of metrics.jsonl; shares are None where nothing was evaluated.

    Args:
        epoch: its number, from 1
        step: steps of the run so far
        lr: learning rate of its last step
        images: counted over the run so far
        cost: of the run so far
        skipped_steps: of the epoch, whose gradients overflowed in fp16; None in another precision
    """

    epoch: Count
    step: Count | None = None
    lr: float | None = None
    loss: float | None = None
    loss_parts: dict[str, float | None] = field(default_factory=dict)
    accuracy: Share | None = None
    agreement: Share | None = None
    calibration_error: Share | None = None
    images: Images | None = None
    cost: RelativeCost | None = None
    seconds: dict[str, float | None] = field(default_factory=dict)
    selection: Selected | None = None
    skipped_steps: Count | None = None


# selection.json

_MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """What an image looks like, in one of two formats.

    Args:
        png: a file in base64, of a tiny image
        jpeg: a file in base64, of another
    """

    png: str | None = None
    jpeg: str | None = None

    def __post_init__(self) -> None:
        files = {kind: text for kind in _MAGIC if (text := getattr(self, kind)) is not None}
        for kind, text in files.items():
            try:
                is_one = base64.b64decode(text, validate=True).startswith(_MAGIC[kind])
            except ValueError:
                is_one = False
            if not is_one:
                raise ValueError(f"this is no base64 {kind.upper()}")
        if len(files) != 1:
            raise ValueError("a picture is either a png or a jpeg")

    @property
    def address(self) -> str:
        """The picture as an address that holds it."""
        return (
            f"data:image/jpeg;base64,{self.jpeg}" if self.png is None else f"data:image/png;base64,{self.png}"
        )


@dataclass(frozen=True, kw_only=True)
class Picture(Thumbnail):
    """A training image that was kept very often or very rarely, or mixed strongly.

    Args:
        index: its position in the training set
        label: its class
        times: how often it was kept
        mixed: how many images' worth its rows gave to their partners in the whole run
        file: the name of its file
    """

    index: Count
    label: str | int | None = None
    times: Count
    mixed: float | None = None
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class TimesKept:
    """`images[i]` training images were kept `times_kept[i]` times."""

    times_kept: tuple[Times, ...]
    images: tuple[Count, ...]

    def __post_init__(self) -> None:
        if len(self.times_kept) != len(self.images):
            raise ValueError(f"{len(self.times_kept)} times_kept for {len(self.images)} images")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """selection.json: how often the images of a run were kept, and pictures from both ends."""

    epochs: Times
    histogram: TimesKept
    most_kept: tuple[Picture, ...] = ()
    least_kept: tuple[Picture, ...] = ()
    most_mixed: tuple[Picture, ...] = ()


# disagreements.json


@dataclass(frozen=True, kw_only=True)
class Disagreement(Thumbnail):
    """An evaluation image on which student and teacher say different classes.

    Args:
        index: its position in the evaluation set
        label: its class; None without labels
        file: the name of its file
        student: the class that the student says, with its probability
        teacher: the class that the teacher says, with its probability
    """

    index: Count
    label: str | None = None
    file: str | None = None
    student: str
    student_confidence: Share | None = None
    teacher: str
    teacher_confidence: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Disagreements:
    """disagreements.json: after the last epoch, on which evaluation images student and teacher disagree.

    Args:
        images: that were evaluated
        differ: of them, those on which they disagree
        teacher_right: of those, the ones of which the teacher is right; None without labels
        student_right: of those, the ones of which the student is right; None without labels
        shown: some of them, those of which the teacher is right first
    """

    images: Count
    differ: Count
    teacher_right: Count | None = None
    student_right: Count | None = None
    shown: tuple[Disagreement, ...] = ()


# Writing


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path beside `path`: the file or folder made there gets this name at the end, or is removed after an error.

    Where it has to survive a power cut, call `sync` on what is written, and on the folder afterwards.
    """
    with scratch(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A path beside `path` for a file or folder that is removed at the end; `leftovers` finds those of killed ones."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        remove(temporary)


def leftovers(folder: Path, names: str) -> list[Path]:
    """What `aside` was making in a folder when its process was killed, under names that match a regular expression."""
    ours = re.compile(rf"\.({names})[.-][0-9a-f]{{32}}\.tmp")
    return [path for path in folder.glob(".*.tmp") if ours.fullmatch(path.name)]


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; an OSError where it is a link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        file.write(content)


@contextmanager
def usual_mode(path: Path) -> Iterator[None]:
    """Within, a library makes a file that nobody but its owner may read; at the end the user's umask holds for it."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with aside(path) as temporary:
        temporary.write_bytes(encoded(text))


def encoded(text: str) -> bytes:
    """A text in UTF-8; a name that is none becomes what JSON and YAML read back as it was, as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write the checksums of those of these files that are there; what is changed later is found by them."""
    sums = {name: checksum(folder / name) for name in names if (folder / name).is_file()}
    write(folder / CHECKSUMS, json.dumps(sums, indent=2) + "\n")


def sync(path: Path) -> None:
    """Force a file or folder to the disk; folders cannot be synced on Windows."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
