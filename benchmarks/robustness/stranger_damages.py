"""What can be wrong with a file of a folder that came from somebody else: each damage by its name, made in place."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from unixkd.errors import checksum

DEPTH, DIGITS, HUGE = 100_000, 5_000, 1 << 40
"""Of nested lists; of a number; bytes of a file without content (sparse: it takes no room)."""
FLIPS = 4
STAMPS = ("checksums.json", "manifest.json")
"""Files that hold the checksums of the others beside them."""
WRONG: dict[str, Any] = {
    "null": None,
    "string": "\x1b[31mno number",
    "list": [[]],
    "huge": 10**400,
    "negative": -7,
    "nan": float("nan"),
    "digits": "DIGITS",
}
"""Values for a field that is meant to hold another one; DIGITS becomes a number of 5,000 digits."""


def flip(file: Path, chance: random.Random, mine: Path) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, chance: random.Random, mine: Path) -> None:
    """Cut the file short."""
    os.truncate(file, chance.randrange(1, file.stat().st_size))


def empty(file: Path, chance: random.Random, mine: Path) -> None:
    os.truncate(file, 0)


def gone(file: Path, chance: random.Random, mine: Path) -> None:
    file.unlink()


def folder(file: Path, chance: random.Random, mine: Path) -> None:
    """A folder with something in it under the file's name."""
    file.unlink()
    file.mkdir()
    (file / "inside.txt").write_text("something")


def link_out(file: Path, chance: random.Random, mine: Path) -> None:
    """A link to a file of the user's that holds something else."""
    file.unlink()
    (mine / "notes.txt").write_text("the user's notes\n")
    file.symlink_to(mine / "notes.txt")


def link_copy(file: Path, chance: random.Random, mine: Path) -> None:
    """A link to a file of the user's that holds what the file has held."""
    file.rename(mine / "copy")
    file.symlink_to(mine / "copy")


def link_nowhere(file: Path, chance: random.Random, mine: Path) -> None:
    """A link to a file that is not there: whoever writes to it makes it."""
    file.unlink()
    file.symlink_to(mine / "new")


def deep(file: Path, chance: random.Random, mine: Path) -> None:
    """Lists in lists, 100,000 deep."""
    file.write_text("[" * DEPTH + "]" * DEPTH + "\n")


def deep_objects(file: Path, chance: random.Random, mine: Path) -> None:
    """Objects in objects, in a file that begins as it should."""
    file.write_text('{"schema": 1, "a": ' * DEPTH + "1" + "}" * DEPTH + "\n")


def bomb(file: Path, chance: random.Random, mine: Path) -> None:
    """Aliases of aliases: a few lines of YAML that stand for 10^12 words. As JSON it is no JSON."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    file.write_text("\n".join([*lines, "data: *a11", "train: *a11", ""]))


def huge(file: Path, chance: random.Random, mine: Path) -> None:
    """A file of 1 TiB, of which only the beginning is there."""
    os.truncate(file, HUGE)


Damage = Callable[[Path, random.Random, Path], None]
OF_FILES: dict[str, Damage] = {f"flip-{number}": flip for number in range(FLIPS)} | {
    "truncate": truncate, "empty": empty, "gone": gone, "folder": folder, "link_out": link_out,
    "link_copy": link_copy, "link_nowhere": link_nowhere, "deep": deep, "huge": huge,
}  # fmt: skip
OF_TEXT: dict[str, Damage] = {"deep_objects": deep_objects, "bomb": bomb}
"""Of JSON and YAML only."""


def replaced_by_link(place: Path, mine: Path) -> None:
    """A link to a folder of the user's in the place of a folder, or of nothing."""
    (mine / "folder").mkdir()
    if place.is_dir():
        shutil.copytree(place, mine / "folder", dirs_exist_ok=True)
        shutil.rmtree(place)
    (mine / "folder" / "precious.txt").write_text("the user's\n")
    place.symlink_to(mine / "folder")


def reseal(file: Path) -> None:
    """Give a changed file the checksum that it has now, as somebody with intent would."""
    for stamps in (file.with_name(name) for name in STAMPS):
        if (
            file.name not in STAMPS
            and stamps.is_file()
            and file.name in (sums := json.loads(stamps.read_text()))
        ):
            stamps.write_text(json.dumps(sums | {file.name: checksum(file)}, indent=2) + "\n")


# Fields of records


def is_text(file: Path) -> bool:
    return file.suffix in (".json", ".jsonl", ".yaml")


def load(file: Path) -> Any:
    """The values of a JSON or YAML file; of lines of JSON a list."""
    text = file.read_text()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)


def fields(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all values in a record, groups and lists too; of a list only the first one."""
    if path:
        yield path
    pairs = (
        values.items()
        if isinstance(values, dict)
        else enumerate(values[:1])
        if isinstance(values, list)
        else ()
    )
    for key, value in pairs:
        yield from fields(value, (*path, key))


def at(values: Any, path: tuple[str | int, ...]) -> Any:
    """The value at a path."""
    for key in path:
        values = values[key]
    return values


def put_wrong(file: Path, path: tuple[str | int, ...], wrong: str) -> None:
    """Replace a field by a value that it may not have, under the right checksum."""
    values = load(file)
    at(values, path[:-1])[path[-1]] = WRONG[wrong]
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(line) + "\n" for line in values)
    else:
        text = (
            yaml.safe_dump(values, sort_keys=False)
            if file.suffix == ".yaml"
            else json.dumps(values, indent=2)
        )
    if wrong == "digits":
        text = text.replace('"DIGITS"', "9" * DIGITS).replace("DIGITS", "9" * DIGITS)
    file.write_text(text)
    reseal(file)
