"""The short version of benchmarks/robustness/bad_inputs.py: damaged files and options, most in this process."""

from __future__ import annotations

import argparse

import pytest

from bad_inputs import in_process, run_cases
from unixkd.cli import handlers


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
