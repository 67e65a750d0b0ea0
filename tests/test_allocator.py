"""Freed memory stays with the process while a run wants it, and goes back to the system afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from running import alone
from unixkd import train
from unixkd.allocator import keep_freed_memory

MEGABYTE = 1 << 20
LARGE = 256 * MEGABYTE

pytestmark = pytest.mark.skipif(
    not keep_freed_memory(False) or not Path("/proc/self/statm").exists(), reason="needs Linux with glibc"
)


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def growth_after_a_large_tensor() -> int:
    """What the process holds more of after a tensor has come and gone."""
    before = resident()
    torch.ones(LARGE // 4).sum()
    return resident() - before


def test_freed_memory_is_kept_and_then_given_back():
    keep_freed_memory(True)
    try:
        assert growth_after_a_large_tensor() > 0.9 * LARGE
        growth = [growth_after_a_large_tensor() for _ in range(20)]
        assert max(growth[10:]) < 0.1 * LARGE  # what was kept is used again
        kept = resident()
    finally:
        keep_freed_memory(False)
    assert resident() < kept - 0.9 * LARGE
    assert growth_after_a_large_tensor() < 0.1 * LARGE


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_asks_for_it_where_it_is_configured_and_leaves_the_process_as_it_was(
    wanted, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(train, "keep_freed_memory", asked.append)
    train.run(alone(epochs=1, keep_memory=wanted), tmp_path / "run")
    assert asked == [True] * wanted + [False]


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("unixkd.allocator._glibc", lambda: None)
    assert not keep_freed_memory(True)
