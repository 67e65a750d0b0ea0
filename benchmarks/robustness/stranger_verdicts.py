"""Commands on a damaged folder of a stranger's, and what each has to come to: a rule of its own, not the code's.

The rule is about figures: what a command reads and what it prints or writes from that. A changed file that it reads
means an error that names the file (a comparison's report: the run is named and left out); one that it does not read
means the output that the whole folder gives, byte for byte.
"""

from __future__ import annotations

import fnmatch
import json
import os
import random
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import stranger_damages as damages
from apart import Way, here, inside, tree
from bad_inputs import Outcome, in_process

# A precision that a probe decides differs from run to run.
FP32 = ("--train.precision", "fp32", "--train.teacher_precision", "fp32")
SMALL = ("--data.limit", "40", "--train.batch_size", "16", *FP32)
PAIR = ("--teacher", "teacher", "--student", "resnet8", *SMALL)
DISTILL = (
    "distill", *PAIR, "--method", "hard", "--epochs", "3", "--answers.path", "answers", "--data.views", "2",
)  # fmt: skip
COMPARE = (
    "compare", *PAIR, "--methods", "kd,hard", "--seeds", "0", "--epochs", "2", "--jobs", "1", "--out", "cmp",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command on a folder.

    Args:
        words: what is typed
        folder: what may be damaged
        reads: patterns of the files in the folder from which it has its figures
        writes: what it may write, besides the folder itself
        made: run folders whose results are part of what it gives
    """

    words: tuple[str, ...]
    folder: str
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    made: tuple[str, ...] = ()


RECORDS = ("summary.json", "run.yaml", "plan.json", "metrics.jsonl", "selection.json")
MODEL = ("config.json", "model.safetensors")
GOES_ON = ("run.yaml", "metrics.jsonl", "plan.json", "checkpoints/*")
COMMANDS = {
    "report": Command(("report", "run"), "run", RECORDS),
    "evaluate": Command(("evaluate", "run", "--rounds", "0"), "run", (*MODEL, "run.yaml")),
    "predict": Command(("predict", "run", "0.png", "--json"), "run", (*MODEL, "run.yaml")),
    "export": Command(
        ("export", "run", "--formats", "safetensors", "--overwrite"), "run", (*MODEL, "run.yaml", "summary.json")
    ),
    "load": Command(("evaluate", "run/export", "--data", "digits", "--rounds", "0"), "run/export", MODEL),
    "teach": Command(
        ("distill", "--teacher", "run", "--student", "resnet8", *SMALL, "--epochs", "1", "--out", "student"),
        "run", MODEL, ("student",), ("student",),
    ),
    "again": Command((*DISTILL, "--resume", "--out", "run"), "run", ("*",), ("answers",), ("run",)),
    "resume": Command((*DISTILL, "--resume", "--out", "half"), "half", GOES_ON, ("answers",), ("half",)),
    "answers": Command((*DISTILL, "--resume", "--out", "half"), "answers", ("*",), ("half",), ("half",)),
    "compare": Command(COMPARE, "cmp", ("*",), (), ("cmp/runs/hard-seed0",)),
    "report-many": Command(("report", "cmp"), "cmp", tuple(f"runs/*/{name}" for name in RECORDS)),
}  # fmt: skip
ABSENT = {  # where a folder or a link stands now, or nothing: to be read from
    "report.html": ("report", "report-many"),
    "checkpoints": ("again", "resume", "evaluate"),
    "logs": ("again", "resume"),
    "export": ("export", "again", "report"),
    "runs": ("compare", "report-many"),
    "runs/hard-seed0": ("compare", "report-many"),
    "runs/hard-seed0/checkpoints": ("compare",),
}
"""Folders, and files to be written, that a stranger may have made a link out of the folder."""


@dataclass(frozen=True)
class Case:
    """A damaged file, and the command on its folder."""

    command: str
    file: str
    damage: str
    path: tuple[str | int, ...] = ()
    number: bool = False

    def __str__(self) -> str:
        where = "".join(f".{key}" for key in self.path)
        return f"{self.command} {self.file}{where} {self.damage}"


@dataclass
class Result:
    """What a case came to: its outcome, the results, and what of them is not as it has to be."""

    outcome: Outcome
    results: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def make_set(base: Path) -> None:
    """The whole folders: a teacher, a finished run with answers and an export, an interrupted one, a comparison."""
    base.mkdir(parents=True)
    (base / "mine").mkdir()
    (base / "tmp").mkdir()
    Image.effect_noise((8, 8), 90).save(base / "0.png")
    with inside(base):
        done(("train", "--model", "resnet8", *SMALL, "--epochs", "1", "--out", "teacher"))
        done((*DISTILL, "--out", "run"))
        done(("export", "run", "--formats", "safetensors"))
        shutil.rmtree(base / "answers")
        for number, words in ((1, (*DISTILL, "--out", "half")), (2, COMPARE)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("unixkd.training.engine.Engine.step", in_run(number))
                assert in_process(list(words)).code == 75
    assert not (base / "half/summary.json").exists()
    assert not (base / "cmp/runs/hard-seed0/summary.json").exists()
    assert (base / "cmp/runs/kd-seed0/summary.json").exists()


def in_run(number: int) -> Any:
    """A step that asks this process to stop in the run with this number, in its second epoch of 3 steps."""
    from unixkd.training.engine import Engine

    original, engines = Engine.step, []

    def step(engine: Engine, *rest: Any) -> Any:
        if engine not in engines:
            engines.append(engine)
        if len(engines) == number and engine.distiller.steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(engine, *rest)

    return step


def done(words: tuple[str, ...]) -> None:
    outcome = in_process(list(words))
    assert outcome.code == 0, outcome


def cases(base: Path) -> list[Case]:
    """Every file of every folder × every damage × every command on it, and fields of its records with wrong values."""
    chance, found = random.Random(20), []
    for name, command in COMMANDS.items():
        folder = base / command.folder
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            inner = str(file.relative_to(folder))
            kinds = damages.OF_FILES | (damages.OF_TEXT if damages.is_text(file) else {})
            if not file.stat().st_size:  # the lock
                kinds = {
                    kind: make
                    for kind, make in kinds.items()
                    if not kind.startswith(("flip", "trunc", "empty"))
                }
            found += [Case(name, inner, kind) for kind in kinds]
            if damages.is_text(file) and is_read(command, inner):
                if file.name not in damages.STAMPS:
                    found += [
                        Case(name, inner, f"sealed-{kind}") for kind in ("deep", "deep_objects", "bomb")
                    ]
                values = damages.load(file)
                paths = list(damages.fields(values))
                found += [
                    Case(name, inner, wrong, path, type(damages.at(values, path)) in (int, float))
                    for path in chance.sample(paths, min(len(paths), 60))
                    for wrong in chance.sample(sorted(damages.WRONG), 1)
                ]
        found += [Case(name, place, "link_folder") for place, names in ABSENT.items() if name in names]
    return found


def is_read(command: Command, file: str) -> bool:
    return any(fnmatch.fnmatch(file, pattern) for pattern in command.reads)


# One case


def run_case(case: Case, base: Path, place: Path, whole: Result, way: Way) -> Result:
    """Damage a copy, run, and say what is wrong with what came of it; `place` is where every copy lies."""
    command = COMMANDS[case.command]
    fresh(base, place)
    make_damage(case, place)
    result = run_command(command, place, way)
    if result.outcome.fault is None:
        result.faults += judge(case, command, result, whole)
    return result


def make_damage(case: Case, place: Path) -> None:
    """Make what the case says."""
    file, mine = place / COMMANDS[case.command].folder / case.file, place / "mine"
    kind = case.damage.removeprefix("sealed-")
    if case.path:
        damages.put_wrong(file, case.path, case.damage)
    elif kind == "link_folder":
        if file.suffix == ".html":
            file.unlink(missing_ok=True)
            (mine / "page").write_text("the user's page\n")
            file.symlink_to(mine / "page")
        else:
            damages.replaced_by_link(file, mine)
    else:
        (damages.OF_FILES | damages.OF_TEXT)[kind](file, random.Random(str(case)), mine)
        if kind != case.damage:
            damages.reseal(file)


def whole_result(command: Command, base: Path, place: Path) -> Result:
    """What a command gives on the whole folder; it runs in this process, so that forks have its modules at hand."""
    fresh(base, place)
    return run_command(command, place, here)


def fresh(base: Path, place: Path) -> None:
    """A copy of the whole folders."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place, symlinks=True)


def run_command(command: Command, place: Path, way: Way) -> Result:
    """Run a command in a place, and look at what it leaves."""
    before = tree(place)
    outcome, left = way(list(command.words), place)
    result = Result(outcome)
    if outcome.fault is not None:
        result.faults.append(outcome.fault)
    after = tree(place)
    allowed = (command.folder, *command.writes, "tmp")
    for path in sorted(before.keys() | after.keys()):
        inner = any(path == each or path.startswith(f"{each}/") for each in allowed)
        if before.get(path) != after.get(path) and not inner:
            result.faults.append(f"wrote outside: {path}")
        if path in after and path not in before and (path.startswith("tmp/") or path.endswith(".tmp")):
            result.faults.append(f"left behind: {path}")
    if left:
        result.faults.append(f"left processes: {left}")
    if outcome.code == 0:
        result.results = results_of(command, place)
        if not command.made:
            result.results["said"] = outcome.said
        if command.words[0] == "compare":
            result.results["table"] = rows(outcome.said)
    return result


def judge(case: Case, command: Command, result: Result, whole: Result) -> list[str]:
    """What is wrong with an exit code, a message or a result, by the rule of this module."""
    outcome, same = result.outcome, result.results == whole.results
    shown = (
        outcome.said,
        outcome.error,
        result.results.get("page", ""),
        result.results.get("README.md", b"").decode(errors="replace"),
    )
    if any("\x1b" in text for text in shown):
        return ["shows control characters of the file as they are"]
    if outcome.code not in (0, 1):
        return [f"exit code {outcome.code}: {outcome.error[:300]}"]
    if outcome.code == 1:
        faults = []
        if outcome.error.count("\n") > 2 or len(outcome.error) > 2000:
            faults.append(
                f"a message of {outcome.error.count(chr(10))} lines, {len(outcome.error)} characters"
            )
        if not names_file(case, outcome.error):
            faults.append(f"the message does not name the file: {outcome.error[:300]}")
        if must_be_same(case, command):
            faults.append(f"an error for a file that is not read: {outcome.error[:300]}")
        return faults
    if same:
        return []
    if is_named(case, outcome.said):
        return []
    trained = "half/model.safetensors"
    if case.command == "answers" and result.results[trained] == whole.results[trained]:
        return []  # a damaged answer was asked for again, and charged
    if may_differ(case):
        return []
    return [f"another result without a word: {differences(result.results, whole.results)}"]


def must_be_same(case: Case, command: Command) -> bool:
    """Whether the command has to do what it does on the whole folder: it reads the file neither way."""
    stamp = Path(case.file).name in damages.STAMPS
    return (
        not is_read(command, case.file)
        and not stamp
        and case.damage != "link_folder"
        and ".lock" not in case.file
        and not (command.words[0] == "export" and case.file.startswith("export"))
        and case.command not in ("again", "resume", "compare", "answers")
    )


def names_file(case: Case, text: str) -> bool:
    """Whether a message names the damaged file, its checkpoint, or for checksums any file that they are of."""
    text, names = " ".join(text.split()), [Path(case.file).name, *Path(case.file).parts[:-1]]
    if Path(case.file).name in damages.STAMPS:
        return True
    # said of the folder, with what differs
    whole = ("configuration differs", "changed since", "answers", "knows the classes by other names")
    return any(part in text for part in (*names, *whole))


def is_named(case: Case, text: str) -> bool:
    """Whether the output says that it passed over the file: a checkpoint, a run of a comparison, an export's data."""
    flat = "".join(text.split()).lower()
    return Path(case.file).name in flat and any(word in flat for word in ("passedover", "leftout", "warning"))


def may_differ(case: Case) -> bool:
    """Whether another result is right, or cannot be told from a right one.

    A value of the right kind under the right checksum is what the file says. A record that is not there gives no
    figure.
    """
    if case.path:
        # An export leaves out what is no figure; what a run ran on and with is shown as text, whatever it is.
        shown = case.command == "export" or "environment" in case.path
        shown |= case.command != "evaluate" and case.file.endswith("run.yaml")
        return shown or case.damage not in ("string", "list", "digits") or not case.number
    if case.command == "export" and (case.damage == "link_folder" or case.file.startswith("export")):
        return True  # what it replaces is said, what else lies there is no part of it
    optional = {"report": (*RECORDS[1:], "checksums.json"), "export": ("run.yaml", "summary.json")}
    names = optional.get(case.command.partition("-")[0], ())
    return case.damage in ("gone", "folder", "link_nowhere") and Path(case.file).name in names


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Which results are others, and how they begin to differ."""
    lines = []
    for name in ours.keys() | theirs.keys():
        a, b = repr(ours.get(name)), repr(theirs.get(name))
        if a != b:
            start = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
            )
            lines.append(
                f"{name}: …{a[max(0, start - 40) : start + 60]} for …{b[max(0, start - 40) : start + 60]}"
            )
    return "; ".join(sorted(lines))[:600]


def results_of(command: Command, place: Path) -> dict[str, Any]:
    """What a command gives, but for what a clock measures: its output, the runs and the files that it made."""
    results: dict[str, Any] = {}
    folder = place / command.folder
    if command.words[0] == "report":
        results["page"] = (folder / "report.html").read_text()
    if command.words[0] == "export":
        results |= {path.name: path.read_bytes() for path in (folder / "export").iterdir() if path.is_file()}
    for name in command.made:
        results |= {f"{name}/{key}": value for key, value in run_results(place / name).items()}
    return results


def rows(said: str) -> list[list[str]]:
    """The rows of a comparison's table, without the seconds of training, which stand before the number of runs."""
    words = [line.split() for line in said.splitlines()]
    return [[*line[:-2], line[-1]] for line in words if line and line[0] in ("kd", "hard")]


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """A summary or a line of metrics without what a clock has measured."""
    return {key: value for key, value in record.items() if key not in ("seconds", "time")}


def run_results(folder: Path) -> dict[str, Any]:
    """A run's results without its seconds."""
    found: dict[str, Any] = {}
    for name in ("model.safetensors", "config.json", "run.yaml", "plan.json", "selection.json"):
        path = folder / name
        found[name] = path.read_bytes() if path.is_file() else None
    if (folder / "metrics.jsonl").is_file():
        lines = (folder / "metrics.jsonl").read_text(errors="replace").splitlines()
        found["metrics.jsonl"] = [untimed(json.loads(line)) for line in lines]
    if (folder / "summary.json").is_file():
        found["summary.json"] = untimed(json.loads((folder / "summary.json").read_text()))
    return found
