"""Labels that lie beside the images: tables by the names of their columns, the lists of ImageNet and Tiny-ImageNet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from unixkd.config import DataConfig
from unixkd.data.images import MAX_BYTES, SUFFIXES
from unixkd.data.sources.layouts import entries, kind_of
from unixkd.errors import UsageError, UserError, first_line, unknown_name
from unixkd.names import plural

_FILES = ("filename", "file", "filepath", "path", "image", "imagepath", "imagename", "imageid", "img", "id")
_CLASSES = ("label", "labels", "class", "classname", "category", "target", "classid", "labelid", "categoryid")
_SPLITS = ("split", "subset", "partition")
_NO_LABEL = ("", "-1", "-1.0", "nan", "NaN", "NA", "N/A", "<NA>", "null", "NULL")  # but None may be a class
_WORDS, _BESIDE = {"labels", "label", "metadata", "annotations"}, {"", "image", "images", "img", "data"}
_OF_KAGGLE, _OF_TINY = "LOC_val_solution.csv", "val_annotations.txt"
_OF_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
_SYNSETS, _MAX_SYNSETS = "meta.mat", 4 << 20


class Row(NamedTuple):
    """A file, its label or None, the kind of its split or None."""

    file: PurePosixPath
    label: Any
    split: str | None = None

    def agrees(self, folders: Sequence[str]) -> bool:
        """Whether its path has these folders, the innermost first, as far as both have any."""
        return all(a == b for a, b in zip(folders, self.file.parts[-2::-1], strict=False))


class Table(NamedTuple):
    """Labels by file; `used` are the numbers of the rows that are known to be an image's."""

    path: Path
    columns: str
    rows: list[Row]
    used: set[int]

    def match(self, images: Iterable[Path], split: str) -> dict[int, Path]:
        """A split's images by their rows.

        A row is an image's where their paths agree from the end, as far as both have folders: nothing is opened
        because a row names it. A row without a suffix means an image of any. Raises UserError where an image has rows
        with different labels, or a row several images.
        """
        free = (i for i, row in enumerate(self.rows) if i not in self.used and row.split in (None, split))
        found: dict[int, Path] = {}
        for image, rows in self._matches(images, free):
            if len(labels := dict.fromkeys(str(self.rows[i].label) for i in rows)) > 1:
                words = " and ".join(label[:40] for label in labels)
                advice = "where one class is wanted; or --data.labels false"
                raise UserError(f"{self.path}: {image.name} is {words}, {advice}")
            if rows and (other := found.setdefault(rows[0], image)) != image:
                name = self.rows[rows[0]].file
                raise UserError(f"{self.path}: {name} may be {other} or {image}: give its folder")
        self.used.update(found)
        return found

    def without_row(self, images: Iterable[Path], split: str) -> list[Path]:
        """Those of a split's images without a label that no other split's row means."""
        others = (i for i, row in enumerate(self.rows) if row.split not in (None, split))
        return [image for image, rows in self._matches(images, others) if not rows]

    def _matches(self, images: Iterable[Path], among: Iterable[int]) -> Iterator[tuple[Path, list[int]]]:
        """Each image and those of the rows, by number, that may be its."""
        index: dict[str, list[int]] = {}
        for i in among:
            index.setdefault(self.rows[i].file.name, []).append(i)
        for image in images:
            folders = image.parts[len(self.path.parent.parts) : -1][::-1]
            rows = [i for i in index.get(image.stem, ()) if self.rows[i].file.suffix.lower() not in SUFFIXES]
            yield image, [i for i in (*index.get(image.name, ()), *rows) if self.rows[i].agrees(folders)]

    def unused(self) -> tuple[str, ...]:
        """A line about rows that are no image's."""
        files = {self.rows[i].file for i in self.used}
        left = [row.file for row in self.rows if row.file not in files]
        counts = f"{len(left):,} of {plural(len(self.rows), 'row')}"
        return (f"{self.path}: not used: {counts} ({left[0]})",) if left else ()


class Tables:
    """The tables of a data set, each read once; its configuration may name the columns."""

    def __init__(self, config: DataConfig, roots: Sequence[Path]) -> None:
        self.config, self.roots = config, roots
        self.known: dict[Path, Table | None] = {}
        self.notes: tuple[str, ...] = ()
        self.lacking: dict[Path, UsageError] = {}

    def of(self, folder: Path, split: str) -> Iterator[Table]:
        """What may hold the labels of a split's images, the most likely first: in its own folder or a root."""
        for place in dict.fromkeys((folder, *self.roots)):
            for file in sorted(_in(place, split), key=lambda file: (kind_of(file.stem) is None, file)):
                if file not in self.known:
                    self.known[file] = self._read(file)
                if (table := self.known[file]) is not None:
                    yield table

    def check_asked(self) -> None:
        """Raise UsageError where tables were read and none has a column that was asked for."""
        if self.lacking and not any(self.known.values()):
            raise UsageError(f"{', '.join(map(str, self.lacking))}: {next(iter(self.lacking.values()))}")

    def _read(self, file: Path) -> Table | None:
        """The table in a file; None, and a note, where something of it is lacking."""
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file}: a table of more than {MAX_BYTES:,} bytes is not read")
        try:
            with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
                if file.name == _OF_DEVKIT:
                    return self._devkit(file, [int(line) for line in lines])
                return self._columns(file, list(_records(file.name, lines)))
        except UserError:
            raise
        except (OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
            raise UserError(f"{file}: cannot be read as labels of images ({first_line(error)})") from error

    def _columns(self, file: Path, records: list[dict[str, Any]]) -> Table | None:
        names = [name for name in dict.fromkeys(chain.from_iterable(records)) if name]
        shown = ", ".join(names[:8]) or "none"
        asked = {"image": self.config.image_column, "label": self.config.label_column}
        for kind, name in asked.items():
            if name is not None and name not in names:
                self.lacking[file] = unknown_name(f"{kind} column", name, names)
                self.notes += (f"{file}: not used: no {kind} column {name} ({shown})",)
                return None
        image = asked["image"] or _first(_FILES, names)
        label = asked["label"] or _first(_CLASSES, names)
        if label is None and image is not None and len(names) == 2 and "label" in file.stem.lower():
            label = names[1 - names.index(image)]
        if image is None or label is None:
            lacks, kind = ("files", "image") if image is None else ("classes", "label")
            self.notes += (f"{file}: not used: no column of {lacks} ({shown}): --data.{kind}_column",)
            return None
        split = _first(_SPLITS, names)
        kinds = [split and (kind_of(str(record.get(split))) or "none") for record in records]
        if split and set(kinds) == {"none"}:
            self.notes += (f"{file}: column {split} names no splits ({str(records[0].get(split))[:40]})",)
            kinds = [None] * len(kinds)
        written = ("" if (name := record.get(image)) is None else str(name) for record in records)
        files = [PurePosixPath(name.replace("\\", "/")) for name in written]
        labels = _labels([record.get(label) for record in records])
        rows = [Row(*row) for row in zip(files, labels, kinds, strict=True)]
        return Table(file, f"columns {image}, {label}", rows, set())

    def _devkit(self, file: Path, numbers: list[int]) -> Table | None:
        """The devkit's numbers are not those of sorted folders: only meta.mat says which classes they are."""
        synsets, reason = file.with_name(_SYNSETS), f"needs {_SYNSETS} beside it"
        if synsets.is_file() and synsets.stat().st_size <= _MAX_SYNSETS:
            try:
                from scipy.io import loadmat

                meta = loadmat(synsets, squeeze_me=True, variable_names=["synsets"])["synsets"]
                known = dict(zip(meta["ILSVRC2012_ID"].tolist(), meta["WNID"].tolist(), strict=True))
                files = (PurePosixPath(f"ILSVRC2012_val_{i:08d}") for i in range(1, len(numbers) + 1))
                rows = [Row(name, known[number]) for name, number in zip(files, numbers, strict=True)]
                return Table(file, f"by {_SYNSETS}", rows, set())
            except ImportError:
                reason = f"needs scipy to read {_SYNSETS} (pip install scipy)"
            except Exception as error:  # whatever its parser raises
                raise UserError(
                    f"{synsets}: cannot be read as ImageNet's classes ({first_line(error)})"
                ) from error
        self.notes += (f"{file}: not used: {reason}; or have Kaggle's {_OF_KAGGLE} there",)
        return None


def _in(place: Path, split: str) -> Iterator[Path]:
    """The files in a folder that may hold labels of a split."""
    for file in entries(place)[1]:
        if file.suffix.lower() in (".csv", ".tsv", ".jsonl", ".txt") and file.is_file():
            words = set(re.split("[^a-z]+", file.stem.lower())) - _BESIDE
            named = bool(words) and all(word in _WORDS or kind_of(word) == split for word in words)
            listed = split != "train" and file.name in (_OF_KAGGLE, _OF_TINY)
            if listed or (named and file.suffix.lower() != ".txt"):
                yield file
    devkit = (place / name / _OF_DEVKIT for name in ("", "ILSVRC2012_devkit_t12/data", "data"))
    yield from (file for file in devkit if split != "train" and file.is_file())


def _records(name: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table by column, in Kaggle's and Tiny-ImageNet's lists those called file and label."""
    if name.lower().endswith(".jsonl"):
        yield from (dict(json.loads(line)) for line in lines if line.strip())
    elif name == _OF_TINY:
        yield from (dict(zip(("file", "label"), line.split("\t"), strict=False)) for line in lines)
    elif name == _OF_KAGGLE:
        words = ((row["ImageId"], row["PredictionString"].split()[0]) for row in csv.DictReader(lines))
        yield from ({"file": file, "label": label} for file, label in words)
    else:
        header = next(lines := iter(lines), "")
        mark = max(",\t;", key=header.count)
        yield from csv.DictReader([header, *lines], delimiter=mark)


def _labels(labels: Iterable[Any]) -> list[Any]:
    """The labels of a column, None where a row has none; `1` and `1.0` are one where all are whole numbers."""
    labels = [None if str(label).strip() in _NO_LABEL else label for label in labels]
    words = ["" if label is None else str(label).strip() for label in labels]
    if all(re.fullmatch(r"(-?\d+(\.0*)?)?", word) for word in words):
        return [word.partition(".")[0] or None for word in words]
    return labels


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose name comes first among those wanted, whatever its case and signs."""
    plain = {re.sub("[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    return next((plain[name] for name in wanted if name in plain), None)
