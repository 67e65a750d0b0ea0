"""Damaged files, folders and options: no traceback, no hang, nothing written outside, and the right verdict.

The first part is the short version of benchmarks/robustness/bad_inputs.py. The second takes a run folder from a
stranger, every file of it × every damage × every command that is given it (`damages`, `verdicts`).
"""

from __future__ import annotations

import argparse
import fnmatch
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apart import Way, apart, as_real
from bad_inputs import in_process, run_cases
from damages import FLIPS
from unixkd.cli import handlers
from verdicts import COMMANDS, Case, Result, cases, make_set, run_case, whole_result

MOST = {"compare": 60, "report-many": 60, "again": 100, "report": 180}
"""Cases of the commands that take a second and more; of the others all up to 420."""
LIGHT, HEAVY = ("evaluate", "predict", "load", "export"), ("teach", "resume", "answers")
FAST = {LIGHT: 130, HEAVY: 20}
"""Cases of the fast tier: of commands that train nothing, and of those that train."""
REAL = 100
"""Cases that are run as real commands."""
KNOWN: tuple[tuple[str, str, str], ...] = (
    ("* digits", "Exceeds the limit (4300 digits)", "a number of 5,000 digits ends in a traceback"),
    (
        "* huge",
        "MemoryError",
        "a huge file is read whole: traceback, or the message of a batch that is too large",
    ),
    ("* huge", "hangs", "the checksum of a huge file is taken, though its size is wrong already"),
    ("* *deep*", "RecursionError", "what is nested deeply ends in a traceback"),
    ("* *bomb", "hangs", "aliases of aliases are walked through"),
    ("* string", "shows control characters", "values of a file are shown with their control characters"),
    ("* link_nowhere", "FileNotFoundError", "the size of checkpoints is taken of a link to nowhere"),
    ("* link_copy", "wrote outside", "stored answers and metrics are written through a link"),
    ("* link_folder", "wrote outside", "pages, exports, logs, checkpoints are written through a link"),
    ("* *state.json*", "Error: ", "the values of state.json are not checked before they are used"),
    ("* *state.json.*", "does not name the file", "state.json is not named by who checks one of its values"),
    ("resume metrics.jsonl*", "another result", "lines of an unfinished run are taken over unchecked"),
    ("again metrics.jsonl.*", "another result", "lines under right checksums are taken over unchecked"),
    ("resume run.yaml flip-*", "another result", "a key that no option has is kept and gets a checksum"),
    ("report metrics.jsonl.*", "OverflowError", "an epoch's number may be larger than a float"),
    ("export run.yaml.*", "Error: ", "data of a run.yaml are used before their types are checked"),
    ("export summary.json.*", "Error: ", "the summary is shown on a card before its types are checked"),
    ("evaluate run.yaml.*", "does not name the file", "of a run.yaml's data only the option is named"),
    ("* *asked-since-*", "Error: ", "a journal of answers is opened before it is looked at"),
    (
        "* *.*",
        "TypeCheckError",
        "a value of the wrong type reaches a function (the tests' checks of shapes find it)",
    ),
    ("* .lock *", "does not name the file", "of a lock that cannot be taken only the folder is named"),
)
"""What fails: a pattern of the cases (command, file, damage), a part of the fault, why. An entry that no case meets any
more fails the slow tests: take it out."""


@pytest.mark.slow
def test_no_traceback_no_hang_no_damaged_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = run_cases(argparse.Namespace(cases=64, commands=2, first=2000, seed=1), tmp_path)
    assert found["failures"] == []
    assert found["as_commands"] == 2
    assert min(found["kinds"].values()) == 8


def test_a_traceback_would_be_found(monkeypatch):
    def broken(options: argparse.Namespace) -> None:
        raise KeyError("a bug")

    monkeypatch.setitem(handlers.HANDLERS, "report", broken)
    outcome = in_process(["report", "runs"])
    assert outcome.fault is not None
    assert "KeyError" in outcome.fault


# A run folder from a stranger


class Folders:
    """The whole folders, and what each command gives on them."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, root / "base"
        make_set(self.base)
        self.cases = self.chosen()
        self.met: set[tuple[str, str, str]] = set()
        self.finished: set[str] = set()
        self._whole: dict[str, Result] = {}

    def chosen(self) -> list[Case]:
        """Of all cases those that are run in the slow tier, command by command."""
        chance, every = random.Random(1), cases(self.base)
        of = {name: [case for case in every if case.command == name] for name in COMMANDS}
        return [
            case
            for name, some in of.items()
            for case in chance.sample(some, min(len(some), MOST.get(name, 420)))
        ]

    def whole(self, name: str) -> Result:
        if name not in self._whole:
            result = whole_result(COMMANDS[name], self.base, self.root / "place")
            assert result.outcome.code == 0
            assert result.faults == []
            self._whole[name] = result
        return self._whole[name]

    def run(self, some: Sequence[Case], way: Way = apart, place: str = "place") -> list[str]:
        """Run cases; what was found that is not known."""
        problems = []
        for case in some:
            result = run_case(case, self.base, self.root / place, self.whole(case.command), way)
            for fault in result.faults:
                entries = [entry for entry in KNOWN if is_entry(entry, case, fault)]
                self.met.update(entries)
                problems += [] if entries else [f"{case}: {fault}"]
        return problems


def is_entry(entry: tuple[str, str, str], case: Case, fault: str = "") -> bool:
    """Whether a fault is the one of an entry of `KNOWN`; without a fault: whether the case may have it."""
    pattern, part, _ = entry
    return fnmatch.fnmatchcase(str(case), pattern) and (not fault or part in fault)


def may_hang(case: Case) -> bool:
    return any("hangs" in part and is_entry((pattern, part, why), case) for pattern, part, why in KNOWN)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return Folders(tmp_path_factory.mktemp("stranger"))


def test_some_damages_of_a_run_folder(folders):
    chance, some = random.Random(2), [case for case in folders.cases if not may_hang(case)]
    for names, number in FAST.items():
        problems = folders.run(chance.sample([case for case in some if case.command in names], number))
        assert not problems, "\n".join(problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_damage_of_every_file_has_the_right_verdict(name, folders):
    assert len(folders.cases) >= 2000
    problems = folders.run([case for case in folders.cases if case.command == name])
    folders.finished.add(name)
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_what_is_known_to_fail_still_does(folders):
    """After all cases were run."""
    if {case.command for case in folders.cases} == folders.finished:
        assert set(KNOWN) == folders.met


@pytest.mark.slow
def test_damages_met_by_real_commands(folders):
    some = random.Random(3).sample([case for case in folders.cases if not may_hang(case)], REAL)
    for case in some:
        folders.whole(case.command)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda part: folders.run(some[part::2], as_real, f"real-{part}"), range(2))
    problems = [problem for each in found for problem in each]
    assert not problems, "\n".join(problems)


def test_a_result_from_a_changed_file_would_be_found(folders, monkeypatch):
    """Without checksums flipped weights are exported without a word."""
    folders.whole("export")
    monkeypatch.setattr("unixkd.models.weights.check_unchanged", lambda path: None)
    flipped = [Case("export", "model.safetensors", f"flip-{number}") for number in range(FLIPS)]
    problems = folders.run(flipped)
    assert "another result without a word" in "\n".join(problems)


def test_a_hang_a_process_left_and_a_write_outside_would_be_found(folders, monkeypatch):
    """A command that sleeps, one that leaves a process behind, one that writes beside the folder."""
    import subprocess
    import time

    import apart as helper

    monkeypatch.setattr(helper, "SECONDS", 2)
    folders.whole("predict")
    deeds = {
        "it hangs": lambda options: time.sleep(60),
        "left processes": lambda options: subprocess.Popen(["sleep", "60"]),
        "wrote outside: mine/new": lambda options: Path("mine/new").write_text("x"),
        "left behind: tmp/x": lambda options: Path("tmp/x").write_text("x"),
    }
    for fault, deed in deeds.items():
        monkeypatch.setitem(handlers.HANDLERS, "predict", deed)
        problems = folders.run([Case("predict", "plan.json", "gone")])
        assert fault in "\n".join(problems)
