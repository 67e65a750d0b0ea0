"""What `bad_inputs.py` damages, and how: one function for each kind of case, told by a random generator."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

NASTY: tuple[Any, ...] = (
    *(None, "", " ", "nan", "inf", "-inf", "1e309", -1, 0, 1.5, -0.5, 2**63, 10**30, True, False),
    *(
        [],
        {},
        [None],
        {"a": {"b": 1}},
        "x" * 3000,
        "\x00",
        "ä\n: [",
        "../../etc/passwd",
        "résumé",
        "auto",
        "kd",
    ),
)
"""Values that an option may not be meant to have."""
UNENDING = ("epochs", "workers", "threads", "jobs", "runs", "rounds")
"""Options of which a large number is no mistake, but takes for ever."""
TAG = "!!python/object/apply:os.system ['touch {place}/pwned']"


@dataclass(frozen=True)
class Case:
    """A command on something damaged.

    Args:
        kind: what is damaged
        words: the command
        what: was done to it
        untouched: a finished run that has to be whole afterwards
    """

    kind: str
    words: list[str]
    what: str = ""
    untouched: Path | None = None


def damage(chance: random.Random, path: Path) -> str:
    """Break a file; how."""
    content = bytearray(path.read_bytes())
    where = chance.randrange(max(1, len(content)))
    how = chance.choice(("flip", "cut", "zero", "insert", "junk", "empty", "gone", "folder", "double"))
    if how == "flip" and content:
        for _ in range(chance.choice((1, 1, 8))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del content[where:]
    elif how == "zero":
        content[where : where + 64] = bytes(len(content[where : where + 64]))
    elif how == "insert":
        content[where:where] = chance.randbytes(chance.randrange(1, 64))
    elif how == "junk":
        content = bytearray(chance.randbytes(chance.randrange(1, 4096)))
    elif how == "empty":
        content.clear()
    elif how == "double":
        content *= 2
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes(content)
    return f"{path.name}: {how} at {where}"


def some_file(chance: random.Random, folder: Path, pattern: str = "*") -> Path:
    """One of a folder's files, in whatever depth."""
    return chance.choice(
        sorted(path for path in folder.rglob(pattern) if path.is_file() and path.name != ".lock")
    )


def damaged_run(chance: random.Random, base: Path, place: Path) -> tuple[Path, str]:
    """A copy of the finished run with one of its files broken."""
    folder = place / "run"
    shutil.copytree(base / "run", folder)
    return folder, damage(chance, some_file(chance, folder))


def resumed(chance: random.Random, base: Path, place: Path) -> Case:
    """Resume a run with something broken, one epoch before its end."""
    folder = place / "run"
    shutil.copytree(base / "run", folder)
    for name in ("summary.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints" / "epoch-00002")
    broken = some_file(chance, folder if chance.random() < 0.5 else folder / "checkpoints")
    what = damage(chance, broken)
    words = ["distill", "--config", str(base / "run" / "run.yaml"), "--resume", "--out", str(folder)]
    return Case("resume", words, what, base / "run")


def read(chance: random.Random, base: Path, place: Path) -> Case:
    """Evaluate, predict with, report or distil from a run with something broken."""
    folder, what = damaged_run(chance, base, place)
    image = str(next((base / "images").rglob("*.png")))
    words = chance.choice(
        (
            ["evaluate", str(folder)],
            ["predict", str(folder), image],
            ["report", str(folder), "--html", str(place / "report.html")],
            distilling(str(folder), place),
            ["plan", "--teacher", str(folder), "--student", "resnet8", "--rounds", "0"],
        )
    )
    return Case("run folder", words, what, base / "run")


def distilling(teacher: str, place: Path) -> list[str]:
    """A short distillation."""
    words = ["distill", "--teacher", teacher, "--student", "resnet8", "--data.limit", "40", "--epochs", "1"]
    return [*words, "--train.batch_size", "16", "--train.precision", "fp32", "--out", str(place / "out")]


def weights(chance: random.Random, base: Path, place: Path) -> Case:
    """A student or a teacher from a broken weights file."""
    suffix = chance.choice((".safetensors", ".pth", ".pt"))
    path = place / f"weights{suffix}"
    if suffix == ".safetensors":
        shutil.copy(base / "teacher" / "model.safetensors", path)
    else:
        import torch
        from safetensors.torch import load_file

        torch.save({"model": load_file(base / "teacher" / "model.safetensors")}, path)
    what = damage(chance, path)
    words = [*distilling("resnet8", place), "--teacher.weights", str(path)]
    return Case("weights", words, what, base / "run")


def images(chance: random.Random, base: Path, place: Path) -> Case:
    """A folder of images with some broken, or the folder itself rearranged."""
    folder = place / "images"
    shutil.copytree(base / "images", folder)
    what = "; ".join(damage(chance, some_file(chance, folder)) for _ in range(chance.choice((1, 1, 3))))
    words = [
        "train",
        "--model",
        "resnet8",
        "--data",
        f"folder:{folder}",
        "--data.size",
        "10",
        "--epochs",
        "1",
    ]
    words += ["--data.in_memory", chance.choice(("true", "false")), "--data.workers", "0"]
    return Case("images", [*words, "--train.batch_size", "4", "--out", str(place / "out")], what)


def parquet(chance: random.Random, base: Path, place: Path) -> Case:
    """A broken Parquet file, or one with labels that are none."""
    folder = place / "table"
    shutil.copytree(base / "table", folder)
    path = some_file(chance, folder)
    what = strange_labels(chance, path) if chance.random() < 0.5 else damage(chance, path)
    words = ["train", "--model", "resnet8", "--data", f"parquet:{folder}", "--epochs", "1"]
    return Case("parquet", [*words, "--train.batch_size", "4", "--out", str(place / "out")], what)


def strange_labels(chance: random.Random, path: Path) -> str:
    """Labels or images of a Parquet file replaced by something else."""
    import pyarrow
    from pyarrow import parquet as files

    table = files.read_table(path)
    column = chance.choice(("label", "label", "image"))
    number = table.column_names.index(column)
    value = chance.choice(
        ([-1], [2**40], [0.5], ["cat"], [None], [[1, 2]], [10**6], [float("nan")], [b"junk"])
    )
    files.write_table(table.set_column(number, column, pyarrow.array(value * len(table))), path)
    return f"{path.name}: {column} = {value[0]!r}"


def store(chance: random.Random, base: Path, place: Path) -> Case:
    """A run with a broken store of answers."""
    folder = place / "answers"
    shutil.copytree(base / "answers", folder)
    what = damage(chance, some_file(chance, folder))
    words = ["distill", "--config", str(base / "run" / "run.yaml"), "--answers.path", str(folder)]
    return Case("answers", [*words, "--epochs", "1", "--out", str(place / "out")], what, base / "run")


def settings(chance: random.Random, base: Path, place: Path) -> Case:
    """A YAML file with wrong values, keys, types or tags."""
    path = place / "settings.yaml"
    values = yaml.safe_load((base / "run" / "run.yaml").read_text())
    values["train"]["epochs"] = 1
    what = []
    for _ in range(chance.choice((1, 1, 2))):
        group = chance.choice(sorted(values))
        holder = values[group] if isinstance(values[group], dict) and chance.random() < 0.9 else values
        key = chance.choice(sorted(holder))
        new = harmless(key, chance.choice(NASTY))
        if chance.random() < 0.15:
            holder[f"{key}x"] = holder.pop(key)
        else:
            holder[key] = new
        what.append(f"{group}/{key}: {new!r}"[:100])
        if holder is values:
            break
    text = yaml.safe_dump(values)
    if chance.random() < 0.2:
        text = text.replace("lr: 0.05", f"lr: {TAG.format(place=place)}")
    path.write_text(text)
    if chance.random() < 0.2:
        what.append(damage(chance, path))
    words = ["distill", "--config", str(path), "--out", str(place / "out")]
    return Case("settings", words, "; ".join(what), base / "run")


def harmless(key: str, value: Any) -> Any:
    """The value, or a small number for an option of which a large one is no mistake."""
    large = isinstance(value, int | float) and not isinstance(value, bool) and value > 4
    return 3 if key in UNENDING and large else value


def arguments(chance: random.Random, base: Path, place: Path) -> Case:
    """Options and values that are made up."""
    from unixkd.cli.main import make_parser
    from unixkd.cli.options import COMMANDS

    name = chance.choice([*COMMANDS, "distil", ""])
    words = [name]
    if name in COMMANDS:
        known = [string for action in make_parser(name)._actions for string in action.option_strings]
        words += start_of(name, base, place)
        for _ in range(chance.choice((1, 1, 2, 3))):
            option = chance.choice(known)
            value = harmless(option.rpartition(".")[2].lstrip("-"), chance.choice(NASTY))
            if option in ("--out", "--html", "--answers.path", "--data.root"):
                value = str(place / chance.choice(("out", "new", "ä b")))
            if chance.random() < 0.1:
                option = option[:-1] + chance.choice("xyz")
            words += chance.choice(
                ([option, text(value)], [f"{option}={text(value)}"], [option], [text(value)])
            )
    return Case("arguments", [word for word in words if "\x00" not in word], "", base / "run")


def start_of(name: str, base: Path, place: Path) -> list[str]:
    """Options with which a command is quick and stays in its place."""
    short = ["--data.limit", "40", "--train.batch_size", "16", "--epochs", "1"]
    pair = ["--teacher", str(base / "teacher"), "--student", "resnet8"]
    out = ["--out", str(place / "out")]
    return {
        "train": ["--model", "resnet8", *short, *out],
        "distill": [*pair, *short, *out],
        "compare": [*pair, *short, "--methods", "kd", "--seeds", "0", "--jobs", "1", *out],
        "demo": ["--out", str(place / "demo"), "--nonsense"],
        "evaluate": [str(base / "run")],
        "predict": [str(base / "run"), str(base / "images")],
        "plan": [*pair, "--rounds", "0"],
        "report": [str(base / "run"), "--html", str(place / "report.html")],
    }.get(name, [])


def text(value: Any) -> str:
    """A value as typed."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


Kind = Callable[[random.Random, Path, Path], Case]
KINDS: dict[str, Kind] = {
    "settings": settings,
    "arguments": arguments,
    "resume": resumed,
    "run folder": read,
    "weights": weights,
    "images": images,
    "parquet": parquet,
    "answers": store,
}
