"""Parquet files and data sets of the Hugging Face Hub, both through the `datasets` library."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from unixkd.config import DataConfig
from unixkd.data.source import TEST_NAMES, Source, labelled_source
from unixkd.errors import UserError, first_line, missing_extra, not_waiting, unknown_name
from unixkd.names import local_path

_IMAGE_NAMES = ("image", "img", "picture", "pixel_values")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")


class Column:
    """The encoded images of one column of a `datasets.Dataset`; paths among them lie below one of the places."""

    def __init__(self, dataset: Any, column: str, origin: str, places: Sequence[Path]) -> None:
        self.dataset = undecoded(dataset, origin, column)
        self.column, self.origin, self.places = column, origin, places

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Path | bytes:
        value = self.dataset[position][self.column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        where = f"{self.origin}: image {position}"
        if value.get("path"):
            return self._file(str(value["path"]), where)
        raise UserError(f"{where} is empty")

    def _file(self, path: str, where: str) -> Path:
        """The file of a path that the data give: whoever made them could have any file read."""
        for place in self.places:
            with contextlib.suppress(ValueError):  # no name of a file
                if (place / path).is_file() and _lies_in(place / path, place):
                    return place / path
        shown = " or ".join(map(str, self.places)) or "a stream"
        raise UserError(f"{where}: the path {path!r} is that of no file in {shown}; no other is read")


def load_parquet(path: Path, config: DataConfig) -> Source:
    """A Parquet file, or a folder of them (or of them in `data/`), as a source.

    Files whose names begin with test, val, valid or validation are the test set, all others are for training.
    """
    splits = load_splits(str(path), "parquet", data_files=parquet_files(path))
    return _source(splits, str(path), config, _places(path))


def parquet_files(path: Path) -> dict[str, list[str]]:
    """The files of each split. Raises UserError where there are none."""
    found = sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    files = [path] if path.is_file() else found
    if not files:
        reason = "no *.parquet in this folder" if path.is_dir() else "no such file or folder"
        raise UserError(f"{path}: {reason}")
    shards: dict[str, list[str]] = {}
    for file in files:
        split = file.name.replace(".", "-").split("-")[0]
        shards.setdefault(split if split in TEST_NAMES and path.is_dir() else "train", []).append(str(file))
    return shards


def check_rows(files: dict[str, list[str]]) -> None:
    """Raise UserError where one of these Parquet files has a group of no rows, which `datasets` cannot read."""
    from pyarrow import ArrowException, parquet  # datasets itself needs it

    for file in chain(*files.values()):
        with contextlib.suppress(ArrowException, OSError):  # what is no Parquet is found by `datasets`
            if (read := parquet.read_metadata(file)).num_row_groups and not read.num_rows:
                raise UserError(f"{file}: holds no rows")


def load_hub(identifier: str, config: DataConfig) -> Source:
    """A data set of the Hub (or a local folder that `datasets` can load) as a source."""
    origin = f"hub:{identifier}"
    return _source(load_splits(origin, identifier), origin, config, _places(local_path(identifier)))


def _lies_in(file: Path, folder: Path) -> bool:
    """Whether neither links nor `..` lead out of a folder; those of a snapshot in the Hub's cache lead beside it."""
    real, tree = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    shared = (up.parent for up in (tree, *tree.parents) if up.name == "snapshots")
    tree = next((up for up in shared if up.name.startswith("datasets--")), tree)
    return real.is_relative_to(tree)


def _places(path: Path) -> tuple[Path, ...]:
    """Where the images lie of a data set at a path, or of this name on the Hub: below it, or in the Hub's cache."""
    if path.exists():
        return (path if path.is_dir() else path.parent,)
    from huggingface_hub.constants import HF_HUB_CACHE  # datasets itself needs it

    cached = Path(HF_HUB_CACHE, f"datasets--{str(path).replace('/', '--')}")
    return cached, Path(datasets_library().config.EXTRACTED_DATASETS_PATH)


def datasets_library() -> ModuleType:
    """The `datasets` library, silent. Raises UserError where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "parquet", "parquet:, hub: and stream: data") from error
    datasets.disable_progress_bars()  # they would break into the run's own display
    return datasets


def load_splits(origin: str, *args: Any, **options: Any) -> dict[str, Any]:
    """What `load_dataset` makes of these arguments, by split. Raises UserError where it cannot."""
    library = datasets_library()
    try:
        with contextlib.nullcontext() if "data_files" in options else not_waiting():
            return dict(library.load_dataset(*args, **options))
    except Exception as error:  # whatever the library, the network or a file's parser raises
        check_rows(options.get("data_files", {}))
        local = "" if "data_files" in options else "; files on this machine are parquet:PATH or folder:PATH"
        raise UserError(f"{origin}: cannot be loaded as a data set ({reason_of(error)}){local}") from error


def reason_of(error: Exception) -> str:
    """The first line of what went wrong first."""
    return first_line(error.__cause__ or error)


def training_split(splits: dict[str, Any]) -> Any | None:
    """The split called train, or the only one there is."""
    return splits.get("train") or (next(iter(splits.values())) if len(splits) == 1 else None)


def _source(splits: dict[str, Any], origin: str, config: DataConfig, files_in: Sequence[Path]) -> Source:
    train = training_split(splits)
    if train is None or not len(train):
        raise UserError(f"{origin}: no training images; its splits are {', '.join(splits) or 'none'}")
    image, label, names = find_columns(train.features, config, origin)

    def read(split: str, where: str) -> tuple[Column, Sequence[Any] | None]:
        dataset = train if split == "train" else splits[split]
        return Column(dataset, image, where, files_in), written_labels(dataset, label)

    others = splits if "train" in splits else {}  # the only split is trained on, whatever its name
    return labelled_source(read, others, names, origin, wanted=config.labels, column=label)


def undecoded(dataset: Any, origin: str, image: str, *others: str) -> Any:
    """The data set with these columns alone, whose images stay encoded. Raises UserError where they are no images."""
    library, feature = datasets_library(), (dataset.features or {}).get(image)
    encoded = getattr(feature, "dtype", None) in ("binary", "large_binary", "string", "large_string")
    parts = isinstance(feature, dict) and not feature.keys().isdisjoint(("bytes", "path"))
    if not (feature is None or encoded or parts or isinstance(feature, library.Image)):
        raise UserError(f"{origin}: column {image} holds no images ({str(feature)[:60]})")
    try:
        return dataset.select_columns([image, *others]).cast_column(image, library.Image(decode=False))
    except Exception as error:  # whatever the library raises; of lists of numbers it would make images
        raise UserError(f"{origin}: column {image} holds no images ({reason_of(error)})") from error


def find_columns(
    features: Any, config: DataConfig, origin: str
) -> tuple[str, str | None, tuple[str, ...] | None]:
    """The column of images, that of labels or None, and the names of the classes or None.

    By default the first column that holds images and the first that holds classes. Raises UserError where a wanted
    column is none, or there are no images.
    """
    library = datasets_library()
    for kind, wanted in (("image column", config.image_column), ("label column", config.label_column)):
        if wanted is not None and wanted not in features:
            raise unknown_name(kind, wanted, features)
    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, library.Image) or (isinstance(feature, dict) and "bytes" in feature)
    ]
    classes = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    image = config.image_column or _first([*images, *_IMAGE_NAMES], features)
    label = config.label_column or _first([*classes, *_LABEL_NAMES], features)
    if image is None:
        raise UserError(
            f"{origin}: no image column among {', '.join(features)}; name it with data.image_column"
        )
    return image, label, tuple(features[label].names) if label in classes else None


def _first(names: Sequence[str], features: Any) -> str | None:
    return next((name for name in names if name in features), None)


def written_labels(dataset: Any, column: str | None) -> Sequence[Any] | None:
    """The labels as they are written; None where there are none."""
    if column is None or column not in dataset.features:
        return None
    values: Sequence[Any] = dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    return values
