"""How a process knows that it is one of several, and how such a one ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from unixkd.errors import UserError
from unixkd.training.distributed import launch
from unixkd.training.distributed import world as distributed_world

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


ALLOCATION = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "gpu[07-08]"}
STEP = {
    **ALLOCATION,
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    """Sets these variables of SLURM, and no others of its or torchrun's."""

    def put(values):
        for name in [name for name in os.environ if name.startswith("SLURM_") or name in NAMES]:
            monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_a_task_of_srun_knows_the_others(environment):
    environment(STEP)
    given = launch.variables()
    assert {name: given[name] for name in NAMES} == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(20_000 + (16 * 4711 + 2) % 10_000),
    }
    assert (launch.processes(), launch.rank()) == (4, 3)


def test_what_is_set_already_stays(environment):
    environment({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    given = launch.variables()
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.1", "29500")
    environment({**STEP, "WORLD_SIZE": "8", "RANK": "5"})  # torchrun, started by srun once a machine
    assert (launch.processes(), launch.rank()) == (8, 5)


@pytest.mark.parametrize(
    "values",
    [
        ALLOCATION,  # the shell of salloc
        {**ALLOCATION, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # the script of sbatch
        {
            **STEP,
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_STEP_ID": "4294967290",
        },  # the shell of salloc, as a step
        {**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_elsewhere_in_an_allocation_a_process_is_alone(values, environment):
    environment(values)
    assert (launch.processes(), launch.rank()) == (1, 0)
    with distributed_world.together() as world:
        assert world.size == 1


def test_where_the_first_one_is_has_to_be_said_where_slurm_does_not(environment):
    for nodes in ({"SLURM_STEP_NODELIST": "rack[1-2]n[1-4]"}, {"SLURM_STEP_NODELIST": ""}):
        environment({**STEP, **nodes})
        with (
            pytest.raises(UserError, match=r"srun started 4 processes.* export MASTER_ADDR"),
            distributed_world.together(),
        ):
            pass


WORLD = """
from unixkd.training.distributed.world import together
from unixkd.training.distributed.launch import end
with together() as world:
    print(world.gather((world.rank, world.local)))
end(0)
"""


def test_tasks_of_srun_find_each_other():
    job = {**STEP, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    job["SLURM_JOB_ID"] = str(os.getpid())  # another port than a run beside this one
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", WORLD],
            env=os.environ | job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [task.communicate(timeout=60)[0] for task in tasks] == ["[(0, 0), (1, 1)]\n"] * 2
