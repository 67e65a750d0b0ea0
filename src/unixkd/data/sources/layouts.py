"""How folders of images lie: where they begin, which of them are splits, and what was found in others."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from unixkd.data.files import find_images, is_hidden, sort_out
from unixkd.data.source import TEST_NAMES
from unixkd.errors import UserError
from unixkd.names import plural

_KINDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_KINDS |= dict.fromkeys(("val", "valid", "validation", "dev", "eval", "holdout"), "val")
_OF_KAGGLE = "ILSVRC/Data/CLS-LOC"
_DEEPEST, _SHOWN = 4, 6
_OTHERS = {".parquet": "parquet:{0}", ".tar": "wds:{0}", ".zip": "folder:{1}", ".gz": "folder:{1}"}
_FORMS = "PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or images alone, unlabelled"


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, sorted; what a system hides is left out."""
    split: tuple[list[Path], list[Path]] = [], []
    try:
        with os.scandir(folder) as found:
            for entry in sorted(found, key=lambda entry: os.path.normcase(entry.name)):  # as paths are sorted
                if not is_hidden(entry.name):
                    split[not entry.is_dir()].append(folder / entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    return split


def kind_of(name: str) -> str | None:
    """Which split a name means: train, test or val, by a word of it; None for none, or for several.

    >>> kind_of("Training"), kind_of("seg_test"), kind_of("val2017"), kind_of("train_val"), kind_of("cat")
    ('train', 'test', 'val', None, None)
    """
    kinds = {_KINDS[word] for word in re.split("[^a-z]+", name.lower()) if word in _KINDS}
    return kinds.pop() if len(kinds) == 1 else None


def beginning(folder: Path, known: Sequence[str] = ()) -> Path:
    """Where classes or splits lie: in the folder, or deeper where each level is one folder that is no known class."""
    place = folder
    for _ in range(_DEEPEST):
        if (place / _OF_KAGGLE / "train").is_dir():
            return place / _OF_KAGGLE
        folders, files = entries(place)
        if len(folders) > 1 or (place / "train").is_dir():
            return place
        if not folders or folders[0].name in known or sort_out(files)[0]:
            break
        place = folders[0]
    return folder


def find_splits(folder: Path) -> tuple[Path | None, list[Path]]:
    """The folder to train on, or None, and those to evaluate on, the preferred one first.

    Splits are folders whose names differ by their split's word alone: train and val, seg_train and seg_test. `train` is
    one whatever lies beside it, and needs none to evaluate on.
    """
    folders, groups = entries(folder)[0], dict[str, list[Path]]()
    for entry in (entry for entry in folders if kind_of(entry.name)):
        rest = " ".join(
            word for word in re.split("[^a-z]+", entry.name.lower()) if word and word not in _KINDS
        )
        groups.setdefault(rest, []).append(entry)
    bare, exact = groups.get("", []), folder / "train"
    pairs = (group for group in groups.values() if {"train"} < {kind_of(entry.name) for entry in group})
    whole = [group for group in pairs if any(find_images(entry)[0] for entry in group)]  # and no other files
    chosen = bare if exact in bare else [entry for group in whole for entry in group]
    trains = [exact] if exact in bare else [entry for entry in chosen if kind_of(entry.name) == "train"]
    if len(trains) > 1 or (not trains and 1 < len(bare) == len(folders)):
        names = ", ".join(entry.name for entry in chosen or bare)
        problem = f"no single folder to train on ({names})"
        raise UserError(f"{folder}: {problem}", *details(folder, "call one of them train"))
    tests = [entry for entry in chosen if kind_of(entry.name) != "train"]
    tests = [entry for entry in tests if entry.name in TEST_NAMES or find_images(entry)[0]]  # or eval/*.py
    alike = Counter(re.sub("[^a-z]", "", entry.name.lower()) for entry in tests)
    if exact not in trains and any(count > 1 for count in alike.values()):
        names = ", ".join(entry.name for entry in tests)
        problem = f"no single folder to evaluate on ({names})"
        raise UserError(f"{folder}: {problem}", *details(folder, "call one pair train and test"))
    first = {name: i for i, name in enumerate(TEST_NAMES)}
    tests.sort(
        key=lambda entry: (first.get(entry.name, len(first)), kind_of(entry.name) != "test", entry.name)
    )
    return (trains[0] if trains else None), tests


def details(folder: Path, advice: str = "") -> list[str]:
    """What a folder holds, in a few lines, and which form would do, by default the nearest one that is read."""
    folders, files = entries(folder)
    lines = [f"{entry.name}/ ({_counted(*entries(entry))})" for entry in folders[:_SHOWN]]
    lines += [plural(len(folders) - _SHOWN, "more folder")] if len(folders) > _SHOWN else []
    lines += [_counted([], files)] if files else []
    return [*(f"found: {line}" for line in lines), f"would do: {advice or nearest(folder)}"]


def _counted(folders: list[Path], files: list[Path]) -> str:
    images, others = sort_out(files)
    counts = [plural(len(found), what) for found, what in ((folders, "folder"), (images, "image")) if found]
    return ", ".join(counts + [f"{kind} {count:,}" for kind, count in others.most_common(_SHOWN)]) or "empty"


def nearest(folder: Path) -> str:
    """The form that is read and comes nearest to what a folder holds."""
    folders, files = entries(folder)
    for entry in folders:
        inside, loose = entries(entry)
        filled = [one for one in inside[:_SHOWN] if sort_out(entries(one)[1])[0]]
        if (entry / "train").is_dir() or (len(filled) > 1 and not sort_out(loose)[0]):
            return f"folder:{entry}"
    if folders and sort_out(files)[0]:
        return "every image in the folder of its class, or their classes in labels.csv (columns file, label)"
    known = (
        _OTHERS[file.suffix.lower()].format(folder, file) for file in files if file.suffix.lower() in _OTHERS
    )
    return next(known, _FORMS)
