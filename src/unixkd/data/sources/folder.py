"""Image folders: a folder per class, optionally below train/ and test/ or val/, or images without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unixkd.data.images import SUFFIXES, find_images
from unixkd.data.source import TEST_NAMES, Encoded, Source, check_filled
from unixkd.errors import UserError

Names = tuple[str, ...] | None


def load_folder(folder: Path) -> Source:
    """A folder of images as a source.

    Class folders are classes in alphabetical order and are searched recursively; without any, the
    images are unlabelled. Where there is `train/`, evaluation uses the first labelled one of
    `test/`, `val/`, `valid/`, `validation/`. Raises UserError where the folder is missing or empty or mixes images
    with class folders, a class has no images, or a class of the test set is unknown.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    test = None
    if not (folder / "train").is_dir():
        train, names = _read(folder, folder)
    else:
        train, names = _read(folder / "train", folder)
        tests = [_read(folder / name, folder, names) for name in TEST_NAMES if (folder / name).is_dir()]
        test, test_names = next((each for each in tests if each[0].labels is not None), (None, None))
        names = names or test_names
    return Source(train, test, names, None if names is None else len(names))


def _read(folder: Path, origin: Path, names: Names = None) -> tuple[Encoded, Names]:
    """The images below a folder and the names of its class folders; `names` are the training set's."""
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
        return Encoded.of(loose, None, str(origin)), None
    unknown = [entry.name for entry in classes if names is not None and entry.name not in names]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: class '{unknown[0]}' has no folder in the training set")
    known = names or tuple(entry.name for entry in classes)
    files = [find_images(entry) for entry in classes]
    numbers = np.array([known.index(entry.name) for entry in classes], dtype=np.int64)
    labels = numbers.repeat([len(images) for images in files])
    if not len(labels):
        raise UserError(f"{folder}: no images in any of its {len(classes)} class folders")
    if names is None:
        check_filled(labels, len(known), known, str(folder))
    return Encoded.of([file for images in files for file in images], labels, str(origin)), known
