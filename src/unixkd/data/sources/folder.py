"""Image folders: a folder per class, optionally below train/ and test/ or val/, or images without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unixkd.data.images import SUFFIXES, find_images
from unixkd.data.source import TEST_NAMES, Encoded, Source, check_filled
from unixkd.errors import UserError


@dataclass(frozen=True)
class _Listing:
    """Images below a folder, and where there are class folders their names and the labels."""

    files: list[Path]
    labels: list[int] | None
    names: tuple[str, ...] | None

    def encoded(self, origin: Path) -> Encoded:
        labels = None if self.labels is None else np.asarray(self.labels, dtype=np.int64)
        return Encoded.of(self.files, labels, str(origin))


def load_folder(folder: Path) -> Source:
    """A folder of images as a source.

    Class folders are classes in alphabetical order and are searched recursively; without any, the
    images are unlabelled. Where there is `train/`, evaluation uses the first labelled one of
    `test/`, `val/`, `valid/`, `validation/`.

    Raises:
        UserError: the folder is missing or empty, mixes images with class folders, a class has no
            images, or a class of the test set is unknown.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / "train").is_dir():
        train, test = _list(folder), None
    else:
        train = _list(folder / "train")
        listings = [_list(folder / n, train.names) for n in TEST_NAMES if (folder / n).is_dir()]
        test = next((each for each in listings if each.labels is not None), None)
    names = train.names or (None if test is None else test.names)
    return Source(
        train=train.encoded(folder),
        test=None if test is None else test.encoded(folder),
        class_names=names,
        num_classes=None if names is None else len(names),
    )


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
    labels = [known.index(entry.name) for entry, images in zip(classes, files, strict=True) for _ in images]
    if not labels:
        raise UserError(f"{folder}: no images in any of its {len(classes)} class folders")
    if names is None:
        check_filled(np.asarray(labels), len(known), known, str(folder))
    return _Listing([file for images in files for file in images], labels, known)
