"""CIFAR-10 and CIFAR-100 from Parquet shards, from torchvision's layout, or downloaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unixkd.data.cache import cache_dir, cached_array, files_key
from unixkd.data.images import Pixels, read_image, to_array, to_channels
from unixkd.data.source import Decoded, ImageFormat, Source, check_filled, check_labels
from unixkd.errors import UserError, missing_extra
from unixkd.names import local_path

_CLASSES = {"cifar10": 10, "cifar100": 100}
_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
# of the training pixels; CIFAR-100's as in the paper's reference experiments
_MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4866, 0.4409)}
_STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2675, 0.2565, 0.2761)}


def load_cifar(name: str, root: str | None) -> Source:
    """The data set in `root`, whichever layout lies there; downloaded where `root` is empty or not given.

    Args:
        name: cifar10 | cifar100
        root: folder with `train-*.parquet` and `test-*.parquet` (or with them in `data/`), or with
            torchvision's folder; None: torchvision's layout in the cache

    Raises:
        UserError: the folder is missing or holds something else, a file is corrupt, or the download failed.
    """
    folder = local_path(root) if root else cache_dir()
    if root and not folder.is_dir():
        raise UserError(f"data.root {folder} is no folder; make it to download {name} into it")
    for place in (folder, folder / "data"):
        if any(place.glob("train-*.parquet")):
            return _from_parquet(name, place)
    if root and not (folder / _FOLDERS[name]).is_dir() and any(folder.iterdir()):
        raise UserError(
            f"data.root {folder} holds neither train-*.parquet nor {_FOLDERS[name]}; "
            f"give the folder of {name}, or an empty one to download into"
        )
    return _from_torchvision(name, folder)


def is_here(name: str, root: str | None) -> bool:
    """Whether `load_cifar` reads the data set without a download."""
    folder = local_path(root) if root else cache_dir()
    shards = any(any(place.glob("train-*.parquet")) for place in (folder, folder / "data"))
    return shards or (folder / _FOLDERS[name]).is_dir()


def _source(
    name: str, splits: Sequence[tuple[Pixels, Any]], class_names: Sequence[str] | None, folder: Path
) -> Source:
    """The data set of the pixels and the labels of both splits."""
    count = _CLASSES[name]
    if class_names is not None and len(class_names) != count:
        raise UserError(f"{folder}: {len(class_names)} class names, but {name} has {count}")
    (train, train_labels), (test, test_labels) = splits
    checked = check_labels(train_labels, count, f"{folder}: train")
    check_filled(checked, count, class_names, f"{folder}: train")
    tested = Decoded(test, check_labels(test_labels, count, f"{folder}: test"))
    names = None if class_names is None else tuple(class_names)
    return Source(Decoded(train, checked), tested, names, count, ImageFormat(32, 3, _MEAN[name], _STD[name]))


def _from_torchvision(name: str, folder: Path) -> Source:
    from torchvision import datasets

    dataset = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    download = not (folder / _FOLDERS[name]).is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        splits = [dataset(str(folder), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        doing = "download into" if download else "read from"
        raise UserError(
            f"cannot {doing} {folder}: {error}; give a folder that holds {name} with --data.root"
        ) from error
    pairs = [(np.asarray(split.data), split.targets) for split in splits]
    return _source(name, pairs, splits[0].classes, folder)


def _from_parquet(name: str, folder: Path) -> Source:
    label_columns = ("fine_label", "label") if name == "cifar100" else ("label", "fine_label")
    splits, class_names = [], []
    for split in ("train", "test"):
        files = sorted(folder.glob(f"{split}-*.parquet"))
        if not files:
            raise UserError(f"{folder}: no {split}-*.parquet beside the other shards")
        columns = [_read_column(file, label_columns) for file in files]
        pixels = cached_array(f"{name}-{split}-{files_key(files)}", partial(_decode, files))
        splits.append((pixels, np.concatenate([column.to_numpy() for column, _ in columns])))
        class_names.append(columns[0][1])
    return _source(name, splits, class_names[0], folder)


def _read_column(file: Path, choices: Sequence[str]) -> tuple[Any, list[str] | None]:
    """The first of the columns that the file has, and the class names that its metadata gives it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "parquet", "Parquet files") from error
    try:
        with parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            for choice in choices:
                if choice in schema.names:
                    return opened.read([choice]).column(choice), _class_names(schema.metadata, choice)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file}: cannot be read as Parquet ({error}); fetch it again") from error
    raise UserError(f"{file}: no column {' or '.join(choices)}; it has {', '.join(schema.names)}")


def _decode(files: Sequence[Path]) -> Pixels:
    arrays = []
    for file in files:
        for row, value in enumerate(_read_column(file, ("img", "image"))[0].to_pylist()):
            where = f"{file}: row {row}"
            data = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(data, bytes):
                raise UserError(f"{where}: holds no image bytes")
            image = read_image(data, where)
            if image.size != (32, 32):
                raise UserError(f"{where}: {image.width} x {image.height} pixels instead of 32 x 32")
            arrays.append(to_array(to_channels(image, 3)))
    return np.stack(arrays)


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
