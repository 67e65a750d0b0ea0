"""Labels that lie beside the images: tables by the names of their columns, the lists of ImageNet and Tiny-ImageNet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from unixkd.config import DataConfig
from unixkd.data.images import MAX_BYTES, SUFFIXES
from unixkd.data.sources.layouts import entries, kind_of
from unixkd.errors import UserError, first_line, unknown_name
from unixkd.names import plural

_FILES = ("filename", "file", "filepath", "path", "image", "imagepath", "imagename", "imageid", "img", "id")
_CLASSES = ("label", "labels", "class", "classname", "category", "target", "classid", "labelid", "categoryid")
_SPLITS = ("split", "subset", "partition")
_FORMATS = (".csv", ".tsv", ".jsonl")
_MAIN, _BESIDE = {"labels", "label", "metadata", "annotations"}, {"", "image", "images", "img", "data"}
_OF_KAGGLE, _OF_TINY = "LOC_val_solution.csv", "val_annotations.txt"
_OF_DEVKIT, _SYNSETS = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_DEVKIT = ("", "ILSVRC2012_devkit_t12/data", "data")
_MAX_SYNSETS = 4 << 20  # bytes

Row = tuple[str, Any, str | None]
"""A file, its label as it is written, and the kind of its split, or None."""
Matched = tuple[list[Path], list[Any], tuple[str, ...]]
"""Images, their labels as they are written, and what to tell."""


@dataclass
class Table:
    """Labels by file; a row is that of one image and is used once.

    Args:
        path: of the file that holds them
        columns: where they stand in it, for messages
        rows: all of them
        used: which of them have been found to be an image's
    """

    path: Path
    columns: str
    rows: Sequence[Row]
    used: set[int] = field(default_factory=set)

    def match(self, images: Iterable[Path], split: str) -> Matched | None:
        """Those of a split's images that have a row; None where none has one.

        A row is an image's where their paths agree from the end, as far as both have folders: so nothing is opened
        because a row names it. A row without a suffix means an image of any. Raises UserError where an image has rows
        with different labels, or a row is that of several images.
        """
        index: dict[str, list[int]] = {}
        for i, (name, _, kind) in enumerate(self.rows):
            if i not in self.used and kind in (None, split):
                index.setdefault(PurePosixPath(name).name, []).append(i)
        found: dict[int, Path] = {}
        lacking = []
        for image in images:
            if (row := self._row(image, index)) is None:
                lacking.append(image)
            elif row in found:
                name = self.rows[row][0]
                raise UserError(f"{self.path}: {name} may be {found[row]} or {image}: give its folder")
            else:
                found[row] = image
        if not found:
            return None
        self.used |= found.keys()
        notes: tuple[str, ...] = (f"{self.path}: labels of {plural(len(found), 'image')} ({self.columns})",)
        if lacking:
            notes += (f"{self.path}: not used: {plural(len(lacking), 'image')} without a row ({lacking[0]})",)
        return list(found.values()), [self.rows[i][1] for i in found], notes

    def _row(self, image: Path, index: dict[str, list[int]]) -> int | None:
        inside = image.is_relative_to(self.path.parent)
        folders = image.relative_to(self.path.parent).parts[-2::-1] if inside else ()
        rows = list(index.get(image.name, ()))
        rows += [i for i in index.get(image.stem, ()) if Path(self.rows[i][0]).suffix.lower() not in SUFFIXES]
        of_row = {i: PurePosixPath(self.rows[i][0]).parts[-2::-1] for i in rows}
        rows = [i for i in rows if all(a == b for a, b in zip(folders, of_row[i], strict=False))]
        if len(labels := {str(self.rows[i][1])[:40]: None for i in rows}) > 1:
            raise UserError(f"{self.path}: {image.name} is {' and '.join(labels)}, where one class is wanted")
        return rows[0] if rows else None

    def unused(self) -> tuple[str, ...]:
        """A line about rows that are no image's."""
        names = {self.rows[i][0] for i in self.used}
        left = [name for i, (name, _, _) in enumerate(self.rows) if i not in self.used and name not in names]
        rows = f"{len(left):,} of {plural(len(self.rows), 'row')}"
        return (f"{self.path}: not used: {rows}, whose images are not ({left[0]})",) if left else ()


class Tables:
    """The tables of a data set, each read once.

    Args:
        config: may name the columns
        roots: folders whose tables are looked at, beside a split's own
    """

    def __init__(self, config: DataConfig, roots: Sequence[Path]) -> None:
        self.config, self.roots = config, roots
        self.known: dict[Path, Table | None] = {}
        self.notes: tuple[str, ...] = ()

    def read(self, file: Path) -> Table | None:
        """The table in a file; None, and a note, where it lacks a column."""
        if file not in self.known:
            self.known[file] = self._read(file)
        return self.known[file]

    def of(self, folder: Path, split: str) -> Iterator[Table]:
        """What may hold the labels of a split's images, the most likely first."""
        for place in dict.fromkeys((folder, *self.roots)):
            files = [file for file in entries(place)[1] if file.is_file()]
            named = [file for file in files if file.suffix.lower() in _FORMATS and _is_for(file, split)]
            lists = (
                [file for file in files if file.name in (_OF_KAGGLE, _OF_TINY)] if split != "train" else []
            )
            devkit = [place / inner / _OF_DEVKIT for inner in _DEVKIT if split != "train"]
            named.sort(key=lambda file: kind_of(file.stem) is None)  # those of the split come first
            for file in (*named, *lists, *filter(Path.is_file, devkit)):
                if (table := self.read(file)) is not None:
                    yield table

    def _read(self, file: Path) -> Table | None:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file}: a table of more than {MAX_BYTES:,} bytes is not read")
        try:
            with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
                if file.name == _OF_TINY:
                    words = (line.split("\t") for line in lines)
                    return Table(file, "Tiny-ImageNet's", [(name, label, None) for name, label, *_ in words])
                if file.name == _OF_DEVKIT:
                    return self._devkit(file, [int(line) for line in lines])
                if file.name == _OF_KAGGLE:
                    rows = [
                        (row["ImageId"], row["PredictionString"].split()[0], None)
                        for row in csv.DictReader(lines)
                    ]
                    return Table(file, "Kaggle's", rows)
                return self._columns(file, list(_records(lines, file.suffix.lower())))
        except UserError:
            raise
        except (OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
            raise UserError(f"{file}: cannot be read as labels of images ({first_line(error)})") from error

    def _columns(self, file: Path, records: list[dict[str, Any]]) -> Table | None:
        """The table whose columns are found by their names."""
        names = [name for name in records[0] if name] if records else []
        for kind, asked in (("image", self.config.image_column), ("label", self.config.label_column)):
            if asked is not None and asked not in names:
                raise unknown_name(f"{kind} column", asked, names)
        image = self.config.image_column or _first(_FILES, names)
        label = self.config.label_column or _first(_CLASSES, names)
        if label is None and image is not None and len(names) == 2 and "label" in file.stem.lower():
            label = names[1 - names.index(image)]
        if image is None or label is None:
            lacks, option = ("files", "image") if image is None else ("classes", "label")
            columns = ", ".join(names[:8]) or "none"
            self.notes += (f"{file}: not used: no column of {lacks} ({columns}): --data.{option}_column",)
            return None
        split = _first(_SPLITS, names)
        kinds = [split and kind_of(str(record[split])) for record in records]
        rows = [
            (PurePosixPath(str(record[image]).replace("\\", "/")).as_posix(), record[label], kind)
            for record, kind in zip(records, kinds if None not in kinds else [None] * len(kinds), strict=True)
        ]
        return Table(file, f"columns {image}, {label}", rows)

    def _devkit(self, file: Path, numbers: list[int]) -> Table | None:
        """The devkit's numbers are its own: only meta.mat says which class each is."""
        synsets = file.with_name(_SYNSETS)
        reason = f"needs {_SYNSETS} beside it"
        if synsets.is_file() and synsets.stat().st_size <= _MAX_SYNSETS:
            try:
                from scipy.io import loadmat

                meta = loadmat(synsets, squeeze_me=True, variable_names=["synsets"])["synsets"]
                known = dict(zip(meta["ILSVRC2012_ID"].tolist(), meta["WNID"].tolist(), strict=True))
                rows = [(f"ILSVRC2012_val_{i:08d}", known[n], None) for i, n in enumerate(numbers, 1)]
                return Table(file, f"ImageNet's, by {_SYNSETS}", rows)
            except ImportError:
                reason = f"needs the package scipy to read {_SYNSETS}: pip install scipy"
            except Exception as error:  # whatever its parser raises
                raise UserError(
                    f"{synsets}: cannot be read as ImageNet's classes ({first_line(error)})"
                ) from error
        self.notes += (f"{file}: not used: {reason}; or have Kaggle's {_OF_KAGGLE} there",)
        return None


def _is_for(file: Path, split: str) -> bool:
    """Whether a table's name is that of labels, of this split or of all.

    >>> [_is_for(Path(f"{name}.csv"), "train") for name in ("labels", "train_labels", "Train", "test", "classes")]
    [True, True, True, False, False]
    """
    words = set(re.split("[^a-z]+", file.stem.lower())) - _BESIDE
    return bool(words) and all(word in _MAIN or kind_of(word) == split for word in words)


def _records(lines: Iterable[str], suffix: str) -> Iterator[dict[str, Any]]:
    """The rows of a table, by column."""
    if suffix == ".jsonl":
        for line in lines:
            if line.strip():
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("a line is no object")
                yield record
        return
    lines = iter(lines)
    header = next(lines, "")
    mark = max(("\t", ";", ","), key=lambda mark: (header.count(mark), mark == ","))
    columns = next(csv.reader([header], delimiter=mark), [])
    yield from csv.DictReader(lines, columns, delimiter=mark)


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose name comes first among those wanted, whatever its case and signs."""
    plain = {re.sub("[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    return next((plain[name] for name in wanted if name in plain), None)
