"""Opening a stream: what is known of it before it is read, and its evaluation set."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from unixkd.config import DataConfig
from unixkd.data import folder
from unixkd.data.cache import files_key
from unixkd.data.checks import check_stream
from unixkd.data.hub import (
    datasets_library,
    encoded_images,
    find_image_column,
    find_label_column,
    load_parts,
    parquet_files,
    read_labels,
    reason_of,
)
from unixkd.data.records import Encoded, Source, normalization
from unixkd.data.streamed import Streamed, encoded
from unixkd.errors import UserError

_HEAD = 64  # images at the beginning that stand for all


def load_stream(place: str, config: DataConfig) -> tuple[Source, Streamed]:
    """What is known of a stream, with its evaluation set, and the stream for training.

    The evaluation set is fetched whole, and kept on the disk by `datasets`.

    Args:
        place: a data set of the Hub, or a Parquet file or a folder of them
        config: `stream_images`, `stream_buffer`, the columns and `split_seed`, which decides the order

    Raises:
        UserError: it cannot be loaded, its length is not known, or an option is none of a stream's.
    """
    check_stream(config)
    origin, library = f"stream:{place}", datasets_library()
    path = Path(place).expanduser()
    files = parquet_files(path) if path.exists() else None
    how: dict[str, Any] = {"path": place} if files is None else {"path": "parquet", "data_files": files}
    parts = load_parts(library, origin, streaming=True, **how)
    train = parts.get("train") or (next(iter(parts.values())) if len(parts) == 1 else None)
    if train is None or train.features is None:
        known = ", ".join(parts) or "none"
        raise UserError(f"{origin}: no training images whose columns are known; its parts are {known}")
    image = find_image_column(library, train.features, config.image_column, origin)
    label = find_label_column(library, train.features, config.label_column)
    names = None
    if label is not None and isinstance(train.features[label], library.ClassLabel):
        names = tuple(train.features[label].names)
    test = _evaluation_set(library, parts, (image, label), names, origin, _version(place, files))
    num_classes = _num_classes(names, test)
    if label is not None and config.labels and num_classes is None:
        raise UserError(
            f"{origin}: {label} is no class column, so that the classes are not known: give data.labels false, or "
            "another data.label_column"
        )
    train = _undecoded(library, train, image, label)
    head, total = _head(train, image, origin), _total(train, files)
    streamed = Streamed(
        stream=train,
        image=image,
        label=label,
        count=_epoch(config, total, origin),
        total=total,
        buffer=config.stream_buffer,
        seed=config.split_seed,
        num_classes=num_classes,
        head=head,
        origin=origin,
    )
    first = Encoded.of(list(head), None, origin)
    size, channels = folder.inspect(first, test)
    mean, std = normalization(channels)
    return Source(first, test, names, num_classes, channels, size, mean, std), streamed


def _num_classes(names: tuple[str, ...] | None, test: Encoded | None) -> int | None:
    if names is not None:
        return len(names)
    return None if test is None or test.labels is None else int(test.labels.max()) + 1


def _undecoded(library: ModuleType, part: Any, image: str, label: str | None) -> Any:
    columns = part.select_columns([image] if label is None else [image, label])
    return columns.cast_column(image, library.Image(decode=False))


def _head(train: Any, image: str, origin: str) -> tuple[bytes, ...]:
    try:
        examples = list(train.take(_HEAD))
    except Exception as error:
        raise UserError(f"{origin}: cannot be read ({reason_of(error)})") from error
    if not examples:
        raise UserError(f"{origin}: no training images")
    return tuple(encoded(example[image], f"{origin}: image {i}") for i, example in enumerate(examples))


def _total(train: Any, files: dict[str, list[str]] | None) -> int | None:
    """Images of the whole stream, where its metadata say so."""
    if files is not None:
        from pyarrow import parquet

        return sum(parquet.read_metadata(file).num_rows for file in files["train"])
    known = (train.info.splits or {}).get(train.split)
    return None if known is None or not known.num_examples else int(known.num_examples)


def _epoch(config: DataConfig, total: int | None, origin: str) -> int:
    wanted = config.stream_images
    if wanted is None and total is None:
        raise UserError(
            f"{origin}: how many images it has is not known: give data.stream_images, those of an epoch"
        )
    count = total if wanted is None else wanted
    assert count is not None
    if count < 1 or (total is not None and count > total):
        raise UserError(
            f"data.stream_images is {count}, but {origin} has {total or 'an unknown number of'} images"
        )
    return count


def _version(place: str, files: dict[str, list[str]] | None) -> str:
    """What tells the data from what they were: the files' sizes and times, or the commit on the Hub."""
    if files is not None:
        return files_key(Path(file) for part in sorted(files) for file in files[part])
    from huggingface_hub import HfApi  # datasets itself needs it

    try:
        return str(HfApi().dataset_info(place).sha)
    except Exception as error:
        raise UserError(
            f"stream:{place}: the Hub cannot be asked for its version ({reason_of(error)})"
        ) from error


def _evaluation_set(
    library: ModuleType,
    parts: dict[str, Any],
    columns: tuple[str, str | None],
    names: tuple[str, ...] | None,
    origin: str,
    version: str,
) -> Encoded | None:
    """The first labelled part that is for evaluation, from the disk."""
    image, label = columns
    for name in folder.TEST_NAMES:
        part = parts.get(name)
        if part is None or label is None or label not in (part.features or {}):
            continue
        part = _undecoded(library, part, image, label)
        told = repr((origin, version, name, part.features, library.__version__))
        try:
            whole = library.Dataset.from_generator(
                _examples, gen_kwargs={"stream": part}, features=part.features, **_known_by(library, told)
            )
        except Exception as error:
            raise UserError(f"{origin}: {name}: cannot be read ({reason_of(error)})") from error
        num_classes = len(names) if names else None
        _, labels = read_labels(library, whole, label, f"{origin}: {name}", names, num_classes)
        if labels is not None:
            return encoded_images(library, whole, image, labels, f"{origin}: {name}")
    return None


def _known_by(library: ModuleType, told: str) -> dict[str, str]:
    """By what `datasets` knows a set again that it has kept; older versions keep a copy for every start."""
    if "fingerprint" not in inspect.signature(library.Dataset.from_generator).parameters:
        return {}
    return {"fingerprint": hashlib.sha256(told.encode()).hexdigest()[:16]}


def _examples(stream: Any) -> Iterator[dict[str, Any]]:
    yield from stream
