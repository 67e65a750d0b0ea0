"""WebDataset shards: tar files of images with their labels, read at random where they lie."""

from __future__ import annotations

import glob
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unixkd.data.folder import TEST_NAMES, inspect
from unixkd.data.records import Encoded, Source, check_filled, check_labels, normalization
from unixkd.data.tar_index import TarImages, tar_index
from unixkd.errors import UserError

_MOST = 1_000_000
_BRACES, _NUMBER = re.compile(r"\{([^{}]*)\}"), re.compile(r"-?\d{1,18}")


def load_shards(pattern: str, label_field: str | None, most_unreadable: int = 0) -> Source:
    """Tar files as a source: images `KEY.jpg`, and beside them `KEY.cls`, `KEY.json` or `KEY.txt`.

    The pattern is a tar file, a folder of them or with `train/` and `val/` of them, or a path with
    `{000..146}`, `{a,b}`, `*` or `?`. Files with test, val, valid or validation as a part of their name are the
    test set, all others are for training. Labels are numbers, or words that are then classes in alphabetical order.

    Raises:
        UserError: a file is missing, is no whole tar file, or holds a faulty sample; a label is faulty.
    """
    shards = _shards(pattern)
    if not shards.get("train"):
        raise UserError(f"wds:{pattern}: no tar files to train on; there are some for {', '.join(shards)}")
    images, labels = _read(shards["train"], label_field, f"wds:{pattern}")
    classes = None if labels is None else _classes(labels)
    train, test = _encoded(images, labels, classes, f"wds:{pattern}: train"), None
    for part in TEST_NAMES:
        if test is None and part in shards:
            images, labels = _read(shards[part], label_field, f"wds:{pattern}: {part}")
            if labels is not None:
                classes = classes or _classes(labels)
                test = _encoded(images, labels, classes, f"wds:{pattern}: {part}")
    names, num_classes = classes or (None, None)
    if train.labels is not None and num_classes is not None:
        check_filled(train.labels, num_classes, names, f"wds:{pattern}: train")
    elif label_field is not None and classes is None:
        raise UserError(f"wds:{pattern}: no sample has the label {label_field}: correct data.label_column")
    size, channels = inspect(train, test, most_unreadable)
    mean, std = normalization(channels)
    return Source(train, test, names, num_classes, channels, size, mean, std)


def expand(pattern: str) -> list[str]:
    """Every text that a pattern with `{000..146}` or `{a,b}` stands for.

    >>> expand("{train,val}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']

    Raises:
        UserError: they are more than a million.
    """
    parts = _BRACES.split(pattern)  # what is between braces comes at odd places
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    if math.prod(map(len, choices)) > _MOST:
        raise UserError(f"{pattern}: stands for more than {_MOST:,} files")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> Sequence[str]:
    ends = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if ends is None:
        return inside.split(",")
    first, last = int(ends[1]), int(ends[2])
    if not 0 <= last - first < _MOST:
        raise UserError(f"{{{inside}}}: from {first} to {last} is no range of at most {_MOST:,} files")
    return [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]


def _shards(pattern: str) -> dict[str, list[Path]]:
    """Tar files by the part of the data that they hold."""
    place = Path(pattern).expanduser()
    if re.match(r"(pipe:|\w+://)", pattern):
        raise UserError(f"wds:{pattern}: shards are local files: fetch them first, or give stream:ID")
    if place.is_dir():
        folders = {part: place / part for part in ("train", *TEST_NAMES) if (place / part).is_dir()}
        if "train" in folders:
            return {
                part: found for part, folder in folders.items() if (found := sorted(folder.glob("*.tar")))
            }
        files = sorted(place.glob("*.tar"))
    else:
        files = [Path(file) for text in expand(str(place)) for file in _matching(text)]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]}: no such file ({len(missing)} of {len(files)} of {pattern} are missing)"
            )
    if not files:
        raise UserError(f"wds:{pattern}: no .tar files there")
    shards: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z0-9]+", file.name.lower())
        part = next((name for name in TEST_NAMES if name in words and len(files) > 1), "train")
        shards.setdefault(part, []).append(file)
    return shards


def _matching(text: str) -> list[str]:
    return sorted(glob.glob(text)) if re.search(r"[*?\[]", text) and not Path(text).exists() else [text]  # noqa: PTH207


def _read(
    files: list[Path], label_field: str | None, where: str
) -> tuple[TarImages, NDArray[np.bytes_] | None]:
    """The images of tar files, and their labels as they are written, or None where none has one."""
    images = TarImages(files, [tar_index(file, label_field) for file in files])
    if not len(images):
        raise UserError(f"{where}: no images in {files[0]}{' and the others' if len(files) > 1 else ''}")
    labels = np.concatenate([index["label"] for index in images.indices])
    lacking = np.flatnonzero(labels == b"")
    if len(lacking) == len(labels):
        return images, None
    if len(lacking):
        name = images.name(int(lacking[0]))
        raise UserError(
            f"{name}: has no label, as {len(lacking)} of {len(labels)} images; the others have one"
        )
    return images, labels


def _classes(labels: NDArray[np.bytes_]) -> tuple[tuple[str, ...] | None, int]:
    """Class names, where labels are words, and the number of classes."""
    words = [text.decode("utf-8", "replace") for text in np.unique(labels).tolist()]
    if all(_NUMBER.fullmatch(word) for word in words):
        return None, max(max(int(word) for word in words) + 1, 1)
    names = tuple(sorted(words))
    return names, len(names)


def _encoded(
    images: TarImages,
    labels: NDArray[np.bytes_] | None,
    classes: tuple[tuple[str, ...] | None, int] | None,
    origin: str,
) -> Encoded:
    """The images with the number of each one's class. Raises UserError for a label that is no class."""
    if labels is None or classes is None:
        return Encoded.of(images, None, origin)
    names, num_classes = classes
    number = {name: i for i, name in enumerate(names or ())}
    texts, place = np.unique(labels, return_inverse=True)
    words = [text.decode("utf-8", "replace") for text in texts.tolist()]
    values = [
        number.get(word, int(word) if not names and _NUMBER.fullmatch(word) else word) for word in words
    ]
    return Encoded.of(images, check_labels([values[i] for i in place], num_classes, origin), origin)
