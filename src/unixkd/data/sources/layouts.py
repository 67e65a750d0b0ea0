"""How folders of images lie: where they begin, which of them are splits, and what was found in others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unixkd.data.files import is_hidden, sort_out
from unixkd.data.source import TEST_NAMES
from unixkd.errors import UserError
from unixkd.names import plural

_KINDS = {"train": "train", "training": "train"}
_KINDS |= {"test": "test", "testing": "test"}
_KINDS |= dict.fromkeys(("val", "valid", "validation", "dev", "eval", "holdout"), "val")
_OF_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_DEEPEST, _SHOWN, _MANY = 4, 6, 2


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, sorted; what a system hides is left out."""
    try:
        shown = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    folders = [entry for entry in shown if entry.is_dir()]
    return folders, [entry for entry in shown if not entry.is_dir()]


def kind_of(name: str) -> str | None:
    """Which split a name means: train, test or val, by a word of it; None for none, or for several.

    >>> kind_of("Training"), kind_of("seg_test"), kind_of("val2017"), kind_of("train_val"), kind_of("cat")
    ('train', 'test', 'val', None, None)
    """
    kinds = {_KINDS[word] for word in re.split("[^a-z]+", name.lower()) if word in _KINDS}
    return kinds.pop() if len(kinds) == 1 else None


def beginning(folder: Path, known: Sequence[str] = ()) -> Path:
    """Where the classes or splits lie: in the folder, or in the only one in it, as in an archive of a folder.

    A folder that is one of the known classes is one, whatever it holds.
    """
    place = folder
    for _ in range(_DEEPEST):
        folders, files = entries(place)
        for name in _OF_KAGGLE:
            if (place / name / "train").is_dir():
                return place / name
        if len(folders) >= _MANY or (place / "train").is_dir():
            return place
        if not folders or folders[0].name in known or sort_out(files)[0]:
            return folder
        place = folders[0]
    return folder


def find_splits(folder: Path) -> tuple[Path | None, list[Path]]:
    """The folder to train on, or None, and those to evaluate on, the preferred one first.

    `train` is one whatever lies beside it. Other names are splits where one is to train on and one is not, and either
    both are such a word and no more (Training, Testing) or all folders have one (train_images, test_images).
    """
    folders, _ = entries(folder)
    kinds = {entry: kind for entry in folders if (kind := kind_of(entry.name))}
    words = {entry: kind for entry, kind in kinds.items() if entry.name.lower() in _KINDS}
    chosen = kinds if len(kinds) == len(folders) else words
    exact = folder / "train"
    trains = [exact] if exact.is_dir() else [entry for entry, kind in chosen.items() if kind == "train"]
    tests = [entry for entry, kind in chosen.items() if kind != "train"]
    first = {name: i for i, name in enumerate(TEST_NAMES)}
    tests.sort(key=lambda entry: (first.get(entry.name, len(first)), chosen[entry] != "test", entry.name))
    if len(trains) > 1 and chosen is kinds:
        names = ", ".join(entry.name for entry in trains)
        raise not_understood(folder, f"several folders to train on ({names})", "call one of them train")
    if not trains and chosen is kinds and len(tests) > 1:
        names = ", ".join(entry.name for entry in tests)
        raise not_understood(folder, f"folders to evaluate on ({names}), none to train on", "call one train")
    return (trains[0], tests) if trains and (tests or exact.is_dir()) else (None, [])


def not_understood(folder: Path, problem: str, advice: str = "") -> UserError:
    """An error that shows what a folder holds, and the nearest form that would do."""
    return UserError(f"{folder}: {problem}", *_listing(folder), f"would do: {advice or _nearest(folder)}")


def _listing(folder: Path) -> list[str]:
    """A line for each of the first folders and one for the files, counted without what lies deeper."""
    folders, _ = entries(folder)
    lines = [f"found: {entry.name}/ ({_counted(entry)})" for entry in folders[:_SHOWN]]
    if len(folders) > _SHOWN:
        lines.append(f"found: {plural(len(folders) - _SHOWN, 'more folder')}")
    return [*lines, f"found: {_counted(folder, files_only=True)}"]


def _counted(folder: Path, files_only: bool = False) -> str:
    """How many folders, images and other files of each suffix lie in a folder."""
    folders, files = entries(folder)
    images, others = sort_out(files)
    counts = [plural(len(folders), "folder")] if folders and not files_only else []
    counts += [plural(len(images), "image")] if images else []
    counts += [f"{kind} {count:,}" for kind, count in others.most_common(_SHOWN)]
    return ", ".join(counts) or ("no files" if files_only else "empty")


def _nearest(folder: Path) -> str:
    """What comes nearest to a form that is read."""
    folders, files = entries(folder)
    for entry in folders:
        inside, loose = entries(entry)
        if (entry / "train").is_dir() or (len(inside) >= _MANY and not sort_out(loose)[0]):
            return f"folder:{entry}, with {plural(len(inside), 'folder')} in it"
    for suffix, kind in ((".parquet", "parquet"), (".tar", "wds")):
        if any(file.suffix.lower() == suffix for file in files):
            return f"{kind}:{folder}, for files of {suffix}"
    archives = [file for file in files if re.search(r"\.(zip|tgz|gz)$", file.name.lower())]
    if archives:
        return f"folder:{archives[0]}, an archive as it came"
    if folders and sort_out(files)[0]:
        return (
            "every image in the folder of its class, or the classes in labels.csv (columns file_name, label)"
        )
    return "PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or images alone, unlabelled"


def note_of_others(folder: Path, used: set[Path]) -> tuple[str, ...]:
    """A line that names the folders and images beside the splits that are not used."""
    folders, files = entries(folder)
    others = sorted(entry.name for entry in [*folders, *sort_out(files)[0]] if entry not in used)
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return (f"{folder}: not used: {', '.join(others[:5])}{more}",) if others else ()
