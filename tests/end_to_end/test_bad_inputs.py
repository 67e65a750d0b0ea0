"""Damaged files, folders and options: no traceback, no hang, nothing written outside, and the right verdict.

The short version of benchmarks/robustness/bad_inputs.py, and of strangers.py: a run folder from a stranger, every file
of it × every damage × every command that is given it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from apart import as_real
from bad_inputs import in_process, run_cases
from stranger_damages import FLIPS
from stranger_verdicts import Case
from strangers import Folders
from unixkd.cli import handlers

LIGHT, HEAVY = ("evaluate", "predict", "load", "export", "report"), ("teach", "resume", "answers", "again")


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


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return Folders(tmp_path_factory.mktemp("stranger"))


def test_some_damages_of_a_run_folder(folders):
    assert len(folders.cases) >= 2000
    problems = folders.run(folders.sample(16, 2, LIGHT) + folders.sample(2, 2, HEAVY))
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_more_damages_of_a_run_folder(folders):
    problems = folders.run(folders.sample(60, 5)) + folders.run(folders.sample(2, 6), as_real)
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
