"""Freed memory stays with the process while a run wants it, and goes back to the system afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from running import alone
from unixkd.training import run
from unixkd.training.memory import keep_freed_memory

IN_A_NEW_PROCESS = """
import torch
from pathlib import Path
from unixkd.training.memory import keep_freed_memory

LARGE = 256 << 20

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def growth():
    before = resident()
    torch.ones(LARGE // 4).sum()  # comes and goes
    return resident() - before

growth()  # whatever torch sets up
keep_freed_memory(True)
assert growth() > 0.9 * LARGE
more = [growth() for _ in range(20)]
assert sum(more) < 6 * LARGE, more  # what was kept is used again, a few times not the whole of it
kept = resident()
keep_freed_memory(False)
assert resident() < kept - 0.9 * LARGE
assert growth() < 0.1 * LARGE
"""


@pytest.mark.skipif(
    not keep_freed_memory(False) or not Path("/proc/self/statm").exists(), reason="needs Linux with glibc"
)
@pytest.mark.slow
def test_freed_memory_is_kept_and_then_given_back():
    done = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_asks_for_it_where_it_is_configured_and_leaves_the_process_as_it_was(
    wanted, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(run, "keep_freed_memory", asked.append)
    run.run(alone(epochs=1, keep_memory=wanted), tmp_path / "run")
    assert asked == [True] * wanted + [False]


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("unixkd.training.memory._glibc", lambda: None)
    assert not keep_freed_memory(True)
