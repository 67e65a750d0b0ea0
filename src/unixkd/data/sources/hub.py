"""Parquet files and data sets of the Hugging Face Hub, both through the `datasets` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unixkd.data.source import Encoded, Source, check_filled, check_labels, normalization
from unixkd.data.sources.folder import TEST_NAMES, inspect
from unixkd.errors import UserError, first_line, missing_extra, unknown_name

_IMAGE_NAMES = ("image", "img", "picture", "pixel_values")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


class Column:
    """The encoded images of one column of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, column: str, origin: str) -> None:
        self.dataset, self.column, self.origin = dataset, column, origin

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Path | bytes:
        return image_bytes(self.dataset[position][self.column], f"{self.origin}: image {position}")


def image_bytes(value: dict[str, Any] | None, where: str) -> Path | bytes:
    """What an image that `datasets` has not decoded holds. Raises UserError where it is empty."""
    if value and value.get("bytes") is not None:
        return bytes(value["bytes"])
    if value and value.get("path"):
        return Path(value["path"])
    raise UserError(f"{where} is empty")


def load_parquet(
    path: Path, image_column: str | None, label_column: str | None, most_unreadable: int = 0
) -> Source:
    """A Parquet file, or a folder of them (or of them in `data/`), as a source.

    Files whose names begin with test, val, valid or validation are the test set, all others are for training.

    Raises:
        UserError: nothing is there, a file is corrupt, a column is missing or a label is faulty.
    """
    library = datasets_library()
    parts = load_parts(library, str(path), "parquet", data_files=parquet_files(path))
    return _source(library, parts, str(path), image_column, label_column, most_unreadable)


def parquet_files(path: Path) -> dict[str, list[str]]:
    """The files of each part of the data. Raises UserError where there are none."""
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if not files:
        reason = "no *.parquet in this folder" if path.is_dir() else "no such file or folder"
        raise UserError(f"{path}: {reason}")
    shards: dict[str, list[str]] = {}
    for file in files:
        part = file.name.replace(".", "-").split("-")[0]
        shards.setdefault(part if part in TEST_NAMES and path.is_dir() else "train", []).append(str(file))
    return shards


def load_hub(
    identifier: str, image_column: str | None, label_column: str | None, most_unreadable: int = 0
) -> Source:
    """A data set of the Hub (or a local folder that `datasets` can load) as a source.

    Raises:
        UserError: it cannot be loaded, a column is missing or a label is faulty.
    """
    library = datasets_library()
    parts = load_parts(library, f"hub:{identifier}", identifier)
    return _source(library, parts, f"hub:{identifier}", image_column, label_column, most_unreadable)


def datasets_library() -> ModuleType:
    """The `datasets` library, silent. Raises UserError where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "parquet", "parquet:, hub: and stream: data") from error
    datasets.disable_progress_bars()  # they would break into the run's own display
    return datasets


def load_parts(library: ModuleType, origin: str, *args: Any, **options: Any) -> dict[str, Any]:
    """What `load_dataset` makes of these arguments, by part. Raises UserError where it cannot."""
    try:
        return dict(library.load_dataset(*args, **options))
    except Exception as error:  # whatever the library, the network or a file's parser raises
        raise UserError(f"{origin}: cannot be loaded as a data set ({reason_of(error)})") from error


def reason_of(error: Exception) -> str:
    """The first line of what went wrong first."""
    return first_line(error.__cause__ or error)


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
    column = find_image_column(library, train.features, image_column, origin)
    label = find_label_column(library, train.features, label_column)
    names, labels = read_labels(library, train, label, f"{origin}: train")
    num_classes = len(names) if names else None if labels is None else int(labels.max()) + 1
    if labels is not None and num_classes is not None:
        check_filled(labels, num_classes, names, f"{origin}: train")
    records = encoded_images(library, train, column, labels, origin)
    test = None
    for name in TEST_NAMES:
        if test is None and name in parts and label in parts[name].features:
            _, known = read_labels(library, parts[name], label, f"{origin}: {name}", names, num_classes)
            test = (
                None
                if known is None
                else encoded_images(library, parts[name], column, known, f"{origin}: {name}")
            )
    size, channels = inspect(records, test, most_unreadable)
    mean, std = normalization(channels)
    return Source(records, test, names, num_classes, channels, size, mean, std)


def encoded_images(
    library: ModuleType, part: Any, column: str, labels: NDArray[np.int64] | None, origin: str
) -> Encoded:
    """The images of a column, with their labels."""
    images = part.select_columns([column]).cast_column(column, library.Image(decode=False))
    return Encoded.of(Column(images, column, origin), labels, origin)


def find_image_column(library: ModuleType, features: Any, wanted: str | None, origin: str) -> str:
    """The wanted column, else the first that holds images. Raises UserError where there is none."""
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


def find_label_column(library: ModuleType, features: Any, wanted: str | None) -> str | None:
    """The wanted column, else the first that holds classes, or None. Raises UserError where the wanted is none."""
    if wanted is not None:
        if wanted not in features:
            raise unknown_name("label column", wanted, features)
        return wanted
    typed = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    return next(iter([*typed, *(name for name in _LABEL_NAMES if name in features)]), None)


def read_labels(
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
