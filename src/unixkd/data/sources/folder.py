"""Image folders: a folder per class, optionally below train/ and test/ or val/, or images without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unixkd.data.files import find_images, is_hidden, is_image, passed_over, sort_out
from unixkd.data.source import TEST_NAMES, Encoded, Source, check_filled, class_order
from unixkd.errors import UserError

Names = tuple[str, ...] | None


def load_folder(folder: Path) -> Source:
    """A folder of images as a source.

    Class folders are classes in the order of `class_order` and are searched recursively; without any, the
    images are unlabelled. Where there is `train/`, evaluation uses the first labelled one of
    `test/`, `val/`, `valid/`, `validation/`. Raises UserError where the folder is missing or empty or mixes images
    with class folders, a class has no images, or a class of the test set is unknown.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / "train").is_dir():
        train, names, notes = _read(folder, folder)
        return Source(train, None, names, None if names is None else len(names), notes=notes)
    train, names, notes = _read(folder / "train", folder)
    test, used = None, {"train"}
    for name in (name for name in TEST_NAMES if (folder / name).is_dir()):
        part, part_names, lines = _read(folder / name, folder, names)
        if part.labels is not None:
            test, names, notes, used = part, names or part_names, notes + lines, {"train", name}
            break
    beside = [entry for entry in _entries(folder) if entry.name not in used]
    others = [entry.name for entry in beside if entry.is_dir() or is_image(entry)]
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        notes += (f"{folder}: not used: {shown}",)
    return Source(train, test, names, None if names is None else len(names), notes=notes)


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))


def _read(folder: Path, origin: Path, names: Names = None) -> tuple[Encoded, Names, tuple[str, ...]]:
    """The images below a folder, the names of its class folders, and a line about files that are no images.

    `names` are the training set's.
    """
    entries = _entries(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    loose, others = sort_out(entry for entry in entries if not entry.is_dir())
    if loose and classes:
        raise UserError(
            f"{folder}: holds images ({loose[0].name}, ...) beside folders ({classes[0].name}, ...); "
            "keep either class folders or images"
        )
    if not loose and not classes:
        raise UserError(
            "; ".join([f"{folder}: no images and no class folders", *passed_over(folder, 0, others)])
        )
    if loose:
        return Encoded.of(loose, None, str(origin)), None, passed_over(folder, len(loose), others)
    unknown = [entry.name for entry in classes if names is not None and entry.name not in names]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: class '{unknown[0]}' has no folder in the training set")
    known = names or class_order(entry.name for entry in classes)
    found = [find_images(entry) for entry in classes]
    numbers = np.array([known.index(entry.name) for entry in classes], dtype=np.int64)
    labels = numbers.repeat([len(images) for images, _ in found])
    notes = passed_over(folder, len(labels), sum((kinds for _, kinds in found), others))
    if not len(labels):
        raise UserError(
            "; ".join([f"{folder}: no images in any of its {len(classes)} class folders", *notes])
        )
    if names is None:
        check_filled(labels, len(known), known, "; ".join([str(folder), *notes]))
    return Encoded.of([file for images, _ in found for file in images], labels, str(origin)), known, notes
