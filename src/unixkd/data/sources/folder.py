"""Image folders: class folders with or without splits, images with labels beside them or none, an archive of these."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unixkd.config import DataConfig
from unixkd.data.files import HIDDEN, find_images, is_hidden, passed_over, sort_out
from unixkd.data.source import Encoded, Source, check_filled, class_order, given_labels
from unixkd.data.sources.layouts import (
    beginning,
    entries,
    find_splits,
    kind_of,
    not_understood,
    note_of_others,
)
from unixkd.data.sources.tables import Tables
from unixkd.data.sources.unpacked import unpacked
from unixkd.errors import UserError

Names = tuple[str, ...] | None
_NO_CLASSES = ("images", "imgs", "img", "unknown")
"""What the only folder of an unlabelled test set is called, as Tiny-ImageNet's."""


@dataclass(frozen=True)
class _Part:
    """The images of a split, their labels as they are written or None, and the names of class folders."""

    images: list[Path]
    written: list[str | None] | None
    folders: Names
    notes: tuple[str, ...]


def load_folder(path: Path, config: DataConfig | None = None) -> Source:
    """A folder of images, or an archive of one, as a source.

    Class folders are classes in the order of `class_order` and are searched recursively; without any, labels are
    looked for beside the images (`Tables`), and without these the images are unlabelled. Where there are splits
    (`find_splits`), the first labelled one of those to evaluate on is used. Raises UserError, with what was found,
    where the layout is not understood, a class has no images, or a class of the test set is unknown.
    """
    folder: Path = path
    notes: tuple[str, ...] = ()
    if path.is_file():
        folder, notes = unpacked(path)
    elif not path.is_dir():
        raise UserError(f"{path}: no such folder")
    place = beginning(folder)
    if place != folder:
        notes += (f"{path}: read from {place.relative_to(folder).as_posix()}/ in it",)
    tables = Tables(config or DataConfig(), (place, folder))
    training, others = find_splits(place)
    train = _read(beginning(training or place), "train", tables)
    names = train.folders or _words(train)
    test = None
    if training is None:  # a column may name splits
        parts = (_beside(place, split, tables) for split in ("test", "val"))
        test = next((part for part in parts if part is not None), None)
    for other in others:
        part = _read(beginning(other, names or ()), kind_of(other.name) or "test", tables, names)
        if part.written is not None:
            test, others = part, [other]
            break
    notes += train.notes + (test.notes if test else ())
    notes += tables.notes + tuple(line for table in tables.known.values() if table for line in table.unused())
    if training is not None:
        notes += note_of_others(place, {training, *(others if test else ())})
    return _source(train, test, str(place), names, notes)


def _source(train: _Part, test: _Part | None, origin: str, names: Names, notes: tuple[str, ...]) -> Source:
    """A source of a training part and what is evaluated on."""
    trained = _encoded(train, names, origin)
    if train.written is not None and names is not None and trained.labels is not None:
        labelled = trained.labels[trained.labels >= 0]
        check_filled(labelled, len(names), names, "; ".join([origin, *train.notes]))
    if test is None:
        return Source(trained, None, names, None if names is None else len(names), notes=notes)
    names = names or test.folders or _words(test)
    assert names is not None
    tested = _encoded(test, names, origin)
    lacking = sorted(set(names).difference(filter(None, test.written or ())), key=names.index)
    if lacking:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        notes += (
            f"{origin}: {len(lacking)} of {len(names)} classes are not among the images evaluated on: {shown}",
        )
    return Source(trained, tested, names, len(names), notes=notes)


def _words(part: _Part) -> Names:
    return None if part.written is None else class_order({word for word in part.written if word is not None})


def _encoded(part: _Part, names: Names, origin: str) -> Encoded:
    if part.written is None or names is None:
        return Encoded.of(part.images, None, origin)
    numbers: dict[str | None, int] = {name: i for i, name in enumerate(names)}
    labels = np.array([numbers.get(word, -1) for word in part.written], dtype=np.int64)
    return Encoded.of(part.images, labels, origin)


def _read(folder: Path, split: str, tables: Tables, names: Names = None) -> _Part:
    """The images below a folder; `names` are the training set's classes."""
    classes, files = entries(folder)
    loose, others = sort_out(files)
    others[HIDDEN] += sum(is_hidden(entry.name) for entry in folder.iterdir())
    flat = len(classes) < 2 and not (names and classes and classes[0].name in names)
    if (flat or loose) and (part := _labelled(folder, split, tables, names)) is not None:
        return part
    if loose and classes:
        problem = f"holds images ({loose[0].name}, ...) beside folders ({classes[0].name}, ...)"
        raise not_understood(folder, f"{problem}; keep either class folders or images")
    if not loose and not classes:
        lines = passed_over(folder, 0, others)
        raise not_understood(folder, "; ".join(["no images and no class folders", *lines]))
    if loose:
        return _Part(loose, None, None, passed_over(folder, len(loose), others))
    if names is not None and flat and (classes[0].name in _NO_CLASSES or kind_of(classes[0].name)):
        images, kinds = find_images(folder)
        return _Part(images, None, None, passed_over(folder, len(images), kinds))
    return _class_folders(folder, classes, others, names)


def _class_folders(folder: Path, classes: list[Path], others: Counter[str], names: Names) -> _Part:
    unknown = [entry.name for entry in classes if names is not None and entry.name not in names]
    if unknown:
        raise not_understood(folder / unknown[0], f"class '{unknown[0]}' has no folder in the training set")
    found = [find_images(entry) for entry in classes]
    images = [file for files, _ in found for file in files]
    written: list[str | None] = [
        entry.name for entry, (files, _) in zip(classes, found, strict=True) for _ in files
    ]
    notes = passed_over(folder, len(images), sum((kinds for _, kinds in found), others))
    if not images:
        problem = f"no images in any of its {len(classes)} class folders"
        raise not_understood(folder, "; ".join([problem, *notes]))
    return _Part(images, written, class_order(entry.name for entry in classes), notes)


def _labelled(folder: Path, split: str, tables: Tables, names: Names) -> _Part | None:
    """The images below a folder whose labels lie beside them, or None."""
    images, kinds = find_images(folder)
    for table in tables.of(folder, split) if images else ():
        if (matched := table.match(images, split)) is None:
            continue
        chosen, values, notes = matched
        wanted = tables.config.labels

        def called(i: int, chosen: list[Path] = chosen) -> str:
            return f" ({chosen[i]})"

        where = str(table.path)
        given, lines = given_labels(values, where, called, False, wanted, may_lack=not wanted)
        written = None if given is None else [None if v is None else _word(v) for v in given]
        unknown = [word for word in written or () if names is not None and word not in (None, *names)]
        if unknown:
            raise UserError(
                f"{where}: class '{unknown[0]}' is not one of the training set's {len(names or ())}"
            )
        kinds[table.path.suffix.lower()] -= table.path.is_relative_to(folder)
        notes += lines + passed_over(folder, len(images), +kinds)
        return _Part(chosen, written, None, notes)
    return None


def _beside(place: Path, split: str, tables: Tables) -> _Part | None:
    """The images of a split that only a column of a table names, or None."""
    named = any(kind == split for table in tables.known.values() if table for _, _, kind in table.rows)
    return _labelled(place, split, tables, None) if named else None


def _word(value: Any) -> str:
    """A label as a class is called; a whole number may be written as a float."""
    return str(int(value) if isinstance(value, float) else value).strip()
