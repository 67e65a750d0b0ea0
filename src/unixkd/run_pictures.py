"""Records with pictures of a run folder, `selection.json` and `disagreements.json`; the others are in `run_files`."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from unixkd.run_files import Count, Share, Times

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
