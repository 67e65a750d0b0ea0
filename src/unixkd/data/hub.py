"""Parquet files and data sets of the Hugging Face Hub, both through the `datasets` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unixkd.data.folder import TEST_NAMES, inspect
from unixkd.data.records import Encoded, Source, check_filled, check_labels, normalization
from unixkd.errors import UserError, missing_extra, unknown_name

_IMAGE_NAMES = ("image", "img", "picture", "pixel_values")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


class Column:
    """The encoded images of one column of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, column: str, origin: str) -> None:
        self.dataset, self.column, self.origin = dataset, column, origin

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Path | bytes:
        value = self.dataset[position][self.column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if value.get("path"):
            return Path(value["path"])
        raise UserError(f"{self.origin}: image {position} is empty")


def load_parquet(
    path: Path, image_column: str | None, label_column: str | None, most_unreadable: int = 0
) -> Source:
    """A Parquet file, or a folder of them (or of them in `data/`), as a source.

    Files whose names begin with test, val, valid or validation are the test set, all others are for training.

    Raises:
        UserError: nothing is there, a file is corrupt, a column is missing or a label is faulty.
    """
    library = _library()
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if not files:
        reason = "no *.parquet in this folder" if path.is_dir() else "no such file or folder"
        raise UserError(f"{path}: {reason}")
    shards: dict[str, list[str]] = {}
    for file in files:
        part = file.name.replace(".", "-").split("-")[0]
        shards.setdefault(part if part in TEST_NAMES and path.is_dir() else "train", []).append(str(file))
    parts = _load(library, str(path), "parquet", data_files=shards)
    return _source(library, parts, str(path), image_column, label_column, most_unreadable)


def load_hub(
    identifier: str, image_column: str | None, label_column: str | None, most_unreadable: int = 0
) -> Source:
    """A data set of the Hub (or a local folder that `datasets` can load) as a source.

    Raises:
        UserError: it cannot be loaded, a column is missing or a label is faulty.
    """
    library = _library()
    parts = _load(library, f"hub:{identifier}", identifier)
    return _source(library, parts, f"hub:{identifier}", image_column, label_column, most_unreadable)


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "parquet", "parquet: and hub: data") from error
    datasets.disable_progress_bars()  # they would break into the run's own display
    return datasets


def _load(library: ModuleType, origin: str, *args: Any, **options: Any) -> dict[str, Any]:
    try:
        return dict(library.load_dataset(*args, **options))
    except Exception as error:  # whatever the library, the network or a file's parser raises
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(f"{origin}: cannot be loaded as a data set ({reason})") from error


def _source(
    library: ModuleType,
    parts: dict[str, Any],
    origin: str,
    image_column: str | None,
    label_column: str | None,
    most_unreadable: int,
) -> Source:
    train = parts.get("train") or (next(iter(parts.values())) if len(parts) == 1 else None)
    if train is None or not len(train):
        raise UserError(f"{origin}: no training images; its splits are {', '.join(parts) or 'none'}")
    column = _image_column(library, train.features, image_column, origin)
    label = _label_column(library, train.features, label_column)
    names, labels = _labels(library, train, label, f"{origin}: train")
    num_classes = len(names) if names else None if labels is None else int(labels.max()) + 1
    if labels is not None and num_classes is not None:
        check_filled(labels, num_classes, names, f"{origin}: train")
    records = _records(library, train, column, labels, origin)
    test = None
    for name in TEST_NAMES:
        if test is None and name in parts and label in parts[name].features:
            _, known = _labels(library, parts[name], label, f"{origin}: {name}", names, num_classes)
            test = (
                None if known is None else _records(library, parts[name], column, known, f"{origin}: {name}")
            )
    size, channels = inspect(records, test, most_unreadable)
    mean, std = normalization(channels)
    return Source(records, test, names, num_classes, channels, size, mean, std)


def _records(
    library: ModuleType, part: Any, column: str, labels: NDArray[np.int64] | None, origin: str
) -> Encoded:
    images = part.select_columns([column]).cast_column(column, library.Image(decode=False))
    return Encoded.of(Column(images, column, origin), labels, origin)


def _image_column(library: ModuleType, features: Any, wanted: str | None, origin: str) -> str:
    if wanted is not None:
        if wanted not in features:
            raise unknown_name("image column", wanted, features)
        return wanted
    typed = [
        name
        for name, feature in features.items()
        if isinstance(feature, library.Image) or (isinstance(feature, dict) and "bytes" in feature)
    ]
    for name in [*typed, *(name for name in _IMAGE_NAMES if name in features)]:
        return name
    raise UserError(f"{origin}: no image column among {', '.join(features)}; name it with data.image_column")


def _label_column(library: ModuleType, features: Any, wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in features:
            raise unknown_name("label column", wanted, features)
        return wanted
    typed = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    return next(iter([*typed, *(name for name in _LABEL_NAMES if name in features)]), None)


def _labels(
    library: ModuleType,
    part: Any,
    column: str | None,
    where: str,
    names: tuple[str, ...] | None = None,
    num_classes: int | None = None,
) -> tuple[tuple[str, ...] | None, NDArray[np.int64] | None]:
    """Class names and labels; a part whose labels are all -1, as the Hub marks it, is unlabelled."""
    if column is None:
        return None, None
    values: Sequence[Any] = part.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    feature = part.features[column]
    if names is None and isinstance(feature, library.ClassLabel):
        names = tuple(feature.names)
    if set(values) == {-1}:
        return names, None
    if all(isinstance(value, str) for value in values):
        names = names or tuple(sorted(set(values)))
        number = {name: i for i, name in enumerate(names)}
        values = [number.get(value, value) for value in values]
    return names, check_labels(values, len(names) if names else num_classes, where)
