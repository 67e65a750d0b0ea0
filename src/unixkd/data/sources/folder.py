"""Image folders: a folder per class, optionally below train/ and test/ or val/, or images without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unixkd.data.images import GREY_MODES, SUFFIXES, find_images
from unixkd.data.source import Encoded, Source, check_filled, normalization
from unixkd.errors import UserError

# a labelled test set comes first, then a validation set; the first that is there is evaluated on
TEST_NAMES = ("test", "val", "valid", "validation")
_INSPECT_ALL = 10_000  # headers of up to so many images are read, of more this many evenly spaced ones
_DEFAULT_SIZE = 224


@dataclass(frozen=True)
class _Listing:
    """Images below a folder, and where there are class folders their names and the labels."""

    files: list[Path]
    labels: list[int] | None
    names: tuple[str, ...] | None


def load_folder(folder: Path, most_unreadable: int = 0) -> Source:
    """A folder of images as a source.

    Class folders are classes in alphabetical order and are searched recursively; without any, the
    images are unlabelled. Where there is `train/`, evaluation uses the first labelled one of
    `test/`, `val/`, `valid/`, `validation/`.

    Raises:
        UserError: the folder is missing or empty, mixes images with class folders, a class has no
            images, a class of the test set is unknown, or an image's header is unreadable.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / "train").is_dir():
        train, test = _list(folder), None
    else:
        train = _list(folder / "train")
        listings = [_list(folder / n, train.names) for n in TEST_NAMES if (folder / n).is_dir()]
        test = next((each for each in listings if each.labels is not None), None)
    origin = str(folder)
    records = _records(train, origin)
    evaluated = None if test is None else _records(test, origin)
    size, channels = inspect(records, evaluated, most_unreadable)
    mean, std = normalization(channels)
    names = train.names or (None if test is None else test.names)
    return Source(
        train=records,
        test=evaluated,
        class_names=names,
        num_classes=None if names is None else len(names),
        channels=channels,
        size=size,
        mean=mean,
        std=std,
    )


def _records(listing: _Listing, origin: str) -> Encoded:
    labels = None if listing.labels is None else np.asarray(listing.labels, dtype=np.int64)
    return Encoded.of(listing.files, labels, origin)


def _list(folder: Path, names: tuple[str, ...] | None = None) -> _Listing:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    classes = [entry for entry in entries if entry.is_dir()]
    loose = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]
    if loose and classes:
        raise UserError(
            f"{folder}: holds images ({loose[0].name}, ...) beside folders ({classes[0].name}, ...); "
            "keep either class folders or images"
        )
    if not loose and not classes:
        raise UserError(f"{folder}: no images and no class folders")
    if loose:
        return _Listing(loose, None, None)
    unknown = [entry.name for entry in classes if names is not None and entry.name not in names]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: class '{unknown[0]}' has no folder in the training set")
    known = names or tuple(entry.name for entry in classes)
    files = [find_images(entry) for entry in classes]
    labels = [known.index(entry.name) for entry, found in zip(classes, files, strict=True) for _ in found]
    if not labels:
        raise UserError(f"{folder}: no images in any of its {len(classes)} class folders")
    if names is None:
        check_filled(np.asarray(labels), len(known), known, str(folder))
    return _Listing([file for found in files for file in found], labels, known)


def inspect(train: Encoded, test: Encoded | None, most_unreadable: int = 0) -> tuple[int, int]:
    """Size and channels that suit the images, from their headers.

    The size is the common one where all images are square and alike, else 224; there is 1 channel
    where all images are grey, else 3. Of more than 10,000 images that many evenly spaced ones count.

    Args:
        train: training images
        test: test images
        most_unreadable: so many training images may be left out

    Raises:
        UserError: a header is unreadable.
    """
    sizes: set[tuple[int, int]] = set()
    grey = True
    for part in (train, test) if test is not None else (train,):
        count = min(len(part), _INSPECT_ALL)
        for i in np.linspace(0, len(part) - 1, count).round().astype(int):
            try:
                with part.header(int(i)) as image:
                    sizes.add(image.size)
                    grey = grey and image.mode in GREY_MODES
            except UserError:
                if part is test or not most_unreadable:  # else they are counted later
                    raise
    width, height = next(iter(sizes), (0, 1))
    return width if len(sizes) == 1 and width == height else _DEFAULT_SIZE, 1 if grey else 3
