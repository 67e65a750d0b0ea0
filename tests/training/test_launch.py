"""How a process knows that it is one of several, and how such a one ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from unixkd.errors import UserError
from unixkd.training.distributed import launch, world

SCRIPT = """
import atexit
from unixkd.training.distributed.launch import end

class Last:
    def __del__(self):
        print("the interpreter was taken down")

last = Last()
atexit.register(print, "handlers ran")
print("done")
end(3)
"""


@pytest.mark.parametrize(("size", "after"), [("1", ["the interpreter was taken down"]), ("2", [])])
def test_one_of_several_ends_before_the_interpreter_does(size, after):
    environment = os.environ | {"WORLD_SIZE": size, "RANK": "0"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert process.returncode == 3, process.stderr
    assert process.stdout.splitlines() == ["done", "handlers ran", *after]
    assert process.stderr == ""


@pytest.mark.parametrize("size", ["two", "0", "-1", ""])
def test_a_number_of_processes_that_is_none(size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match="WORLD_SIZE"):
        launch.processes()


def test_a_task_of_srun_alone_is_one_process(monkeypatch):
    """torchrun says how many there are; SLURM's variables do not."""
    for name, value in {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert (launch.processes(), launch.rank()) == (1, 0)


def test_processes_that_cannot_find_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="RANK, MASTER_ADDR, MASTER_PORT"), world.together():
        pass
