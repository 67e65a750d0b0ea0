"""Image folders: class folders with or without splits, images with labels beside them or none, an archive of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unixkd.config import DataConfig
from unixkd.data.files import HIDDEN, find_images, is_hidden, passed_over, sort_out
from unixkd.data.source import Encoded, Source, check_filled, class_order, given_labels
from unixkd.data.sources.layouts import beginning, details, entries, find_splits, kind_of, nearest
from unixkd.data.sources.tables import Tables
from unixkd.data.sources.unpacked import unpacked
from unixkd.errors import UserError
from unixkd.names import plural

Names = tuple[str, ...] | None
_NO_CLASSES = ("images", "imgs", "img", "unknown")
"""What the only folder of an unlabelled test set may be called, as Tiny-ImageNet's."""


class _Part(NamedTuple):
    """The images of a split, their labels as they are written or None, and the names of class folders."""

    images: list[Path]
    written: list[str | None] | None
    folders: Names
    notes: tuple[str, ...]

    def encoded(self, names: Names, origin: str) -> Encoded:
        """With labels as numbers of these classes, -1 where an image has none."""
        if self.written is None or names is None:
            return Encoded.of(self.images, None, origin)
        numbers: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        labels = np.array([numbers.get(word, -1) for word in self.written], dtype=np.int64)
        return Encoded.of(self.images, labels, origin)

    def classes(self) -> Names:
        """The classes of its labels, in their order."""
        return self.folders or (
            None if self.written is None else class_order(set(filter(None, self.written)))
        )


def load_folder(path: Path, config: DataConfig | None = None) -> Source:
    """A folder of images, or an archive of one, as a source.

    Class folders are classes in the order of `class_order` and are searched recursively; without any, labels are
    looked for beside the images (`Tables`), and without these the images are unlabelled. Of splits (`find_splits`) the
    first labelled one is evaluated on. Raises UserError, with what was found, where the layout is not understood, a
    class has no images, or a class of the test set is unknown.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder")
    folder, notes = unpacked(path) if path.is_file() else (path, ())
    place = beginning(folder)
    if place != folder:
        notes += (f"{path}: read from {place.relative_to(folder).as_posix()}/ in it",)
    tables, (training, others) = Tables(config or DataConfig(), (place, folder)), find_splits(place)
    if training is not None and not others and _is_class(training, tables):
        training = None
    above = {folder, place} - (set() if training else {place})  # whose hidden files are not those of a split
    hidden = sum(is_hidden(entry.name) for level in above for entry in level.iterdir())
    notes += passed_over(path, 0, Counter({HIDDEN: hidden}))
    train, test = _read(_beginning(training or place, others), "train", tables), None
    names = train.classes()
    for other in others:
        part = _read(beginning(other, names or ()), kind_of(other.name) or "test", tables, names)
        if part.written is not None:
            test, others = part, [other]
            break
    used = [table for table in tables.known.values() if table is not None]
    for split in ("test", "val") if training is None else ():
        if test is None and any(row.split == split for table in used for row in table.rows):
            test = _labelled(place, split, tables, names)
    tables.check_asked()
    notes += train.notes + (test.notes if test else ()) + tables.notes
    notes += tuple(line for table in used for line in table.unused())
    if training is not None:
        notes += _not_used(place, {training, *(others if test else ())})
    return _source(train, test, place, names, tuple(dict.fromkeys(notes)))


def _source(train: _Part, test: _Part | None, place: Path, names: Names, notes: tuple[str, ...]) -> Source:
    """A source of a training part and what is evaluated on."""
    trained = train.encoded(names, str(place))
    if names is not None and trained.labels is not None:
        try:
            labels = trained.labels[trained.labels >= 0]
            check_filled(labels, len(names), names, "; ".join(train.notes) or str(place))
        except UserError as error:
            deeper = nearest(place) in {f"folder:{place / name}" for name in names}
            raise UserError(str(error), *(details(place) if deeper else ())) from None
    names = names or (test and test.classes())
    there = set(test.written or ()) if test else set(names or ())
    if lacking := [name for name in names or () if name not in there]:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        notes += (
            f"{place}: no images to evaluate on of {len(lacking)} of {len(names or ())} classes: {shown}",
        )
    tested = None if test is None else test.encoded(names, str(place))
    return Source(trained, tested, names, None if names is None else len(names), notes=notes)


def _beginning(train: Path, others: Sequence[Path]) -> Path:
    """Where the classes of a training set lie: not in its only folder where another split has that as a class."""
    place = beginning(train)
    name = place.relative_to(train).parts[0] if place != train else ""
    if not name or name.lower() in _NO_CLASSES or kind_of(name):
        return place
    shared = any((other / name).is_dir() and beginning(other) == other for other in others)
    return train if shared else place


def _is_class(train: Path, tables: Tables) -> bool:
    """Whether a folder called train shows trains: images alone, no labels and no split beside it but other images."""
    beside = [entry for entry in entries(train.parent)[0] if entry != train]
    if entries(train)[0] or any(kind_of(entry.name) for entry in beside) or any(tables.of(train, "train")):
        return False
    return any(find_images(entry)[0] for entry in beside if entry.name.lower() not in _NO_CLASSES)


def _not_used(folder: Path, used: set[Path]) -> tuple[str, ...]:
    folders, files = entries(folder)
    others = sorted(entry.name for entry in [*folders, *sort_out(files)[0]] if entry not in used)
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return (f"{folder}: not used: {', '.join(others[:5])}{more}",) if others else ()


def _read(folder: Path, split: str, tables: Tables, names: Names = None) -> _Part:
    """The images below a folder; `names` are the training set's classes."""
    classes, files = entries(folder)
    loose, others = sort_out(files)
    others[HIDDEN] += sum(is_hidden(entry.name) for entry in folder.iterdir())
    flat = len(classes) < 2 and not (names and classes and classes[0].name in names)
    if (flat or loose) and (part := _labelled(folder, split, tables, names)) is not None:
        return part
    if loose and classes:
        beside = f"holds images ({loose[0].name}, ...) beside folders ({classes[0].name}, ...)"
        raise UserError(f"{folder}: {beside}; keep either class folders or images", *details(folder))
    if not loose and not classes:
        raise UserError(f"{folder}: no images and no class folders", *details(folder))
    if names and flat and classes and (classes[0].name in _NO_CLASSES or kind_of(classes[0].name)):
        loose, others = find_images(folder)
    if loose:
        return _Part(loose, None, None, passed_over(folder, len(loose), others))
    unknown = [entry for entry in classes if names is not None and entry.name not in names]
    if unknown:
        problem = f"class '{unknown[0].name}' has no folder in the training set"
        advice = details(unknown[0], "such a folder in the training set, too, or none here")
        raise UserError(f"{unknown[0]}: {problem}", *advice)
    found = [find_images(entry) for entry in classes]
    images = [file for files, _ in found for file in files]
    _check_no_splits(folder, classes, images)
    written: list[str | None] = [
        entry.name for entry, (own, _) in zip(classes, found, strict=True) for _ in own
    ]
    if not images:
        problem = f"no images in any of its {len(classes)} class folders"
        raise UserError(f"{folder}: {problem}", *details(folder))
    notes = passed_over(folder, len(images), sum((kinds for _, kinds in found), others))
    return _Part(images, written, class_order(entry.name for entry in classes), notes)


def _check_no_splits(folder: Path, classes: Sequence[Path], images: Sequence[Path]) -> None:
    """Raise where class folders hold splits themselves: they would be trained on together."""
    depth = len(folder.parts)
    inside = {file.parts[depth : depth + 2] for file in images if len(file.parts) > depth + 2}
    suspects = {name for name, deeper in inside if kind_of(deeper) == "train"}
    deep = (entry for entry in classes if entry.name in suspects)
    splits = [train for train, others in map(find_splits, deep) if train and others]
    if splits:
        place, forms = splits[0].parent, "PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg"
        advice = f"folder:{place}" if len(splits) == 1 else forms
        problem = f"holds splits ({splits[0].name}), so it is no class"
        raise UserError(f"{place}: {problem}", *details(folder, advice))


def _labelled(folder: Path, split: str, tables: Tables, names: Names) -> _Part | None:
    """The images below a folder whose labels lie beside them, or None."""
    known = list(tables.of(folder, split))
    images, kinds = find_images(folder) if known else ([], Counter[str]())
    wanted, found = tables.config.labels, dict[int, Path]()
    for table in known:
        try:
            found = table.match(images, split)
        except UserError as error:
            if wanted or split != "train":
                raise
            tables.notes += (str(error),)
        if found:
            break
    else:
        return None
    chosen, where = list(found.values()), str(table.path)
    labels = [table.rows[i].label for i in found]
    given, notes = given_labels(
        labels, where, lambda i: f" ({chosen[i]})", False, wanted, may_lack=not wanted
    )
    written = None if given is None else [value if value is None else _word(value) for value in given]
    unknown = [word for word in written or () if names is not None and word not in (None, *names)]
    if unknown:
        raise UserError(f"{where}: class '{unknown[0]}' is none of the training set's")
    notes = (f"{where}: labels of {plural(len(chosen), 'image')} ({table.columns})", *notes)
    if written is not None and (count := written.count(None)):
        notes += (f"{where}: {count:,} of {plural(len(written), 'image')} without a label",)
    if lacking := table.without_row(sorted(set(images).difference(chosen)), split):
        notes += (f"{where}: not used: {plural(len(lacking), 'image')} without a row ({lacking[0]})",)
    kinds[table.path.suffix.lower()] -= table.path.is_relative_to(folder)
    return _Part(chosen, written, None, notes + passed_over(folder, len(images), +kinds))


def _word(value: Any) -> str:
    """A label as a class is called; a whole number may be written as a float."""
    return str(int(value) if isinstance(value, float) else value).strip()
