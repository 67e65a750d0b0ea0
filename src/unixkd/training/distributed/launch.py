"""How this process was started: alone, or by torchrun or srun as one of several. Imports no torch."""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from unixkd.errors import UserError


class LeaderError(UserError):
    """What the leading process has told the user already."""


FIRST_PORT, PORTS = 20_000, 10_000
"""Where processes that srun has started meet unless MASTER_PORT says otherwise: below those that systems give away."""


def variables() -> Mapping[str, str]:
    """The environment; where srun started this process as one of several, with what torchrun would have set.

    A step of several tasks has SLURM_STEP_NUM_TASKS; the shell of `salloc` and the script of `sbatch` have none,
    or 1, though their SLURM_NTASKS is that of the allocation. What is set already stays.
    """
    given = os.environ
    tasks = given.get("SLURM_NTASKS", "1")
    started = tasks == given.get("SLURM_STEP_NUM_TASKS") and tasks.isdecimal() and int(tasks) > 1
    if "WORLD_SIZE" in given or not started or "SLURM_PROCID" not in given:
        return given
    job, step = (
        int(found) if (found := given.get(f"SLURM_{of}_ID", "")).isdecimal() else 0 for of in ("JOB", "STEP")
    )
    told = {
        "WORLD_SIZE": tasks,
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given.get("SLURM_LOCALID", "0"),
        "MASTER_PORT": str(FIRST_PORT + (16 * job + step) % PORTS),
    }
    if (host := first_host(given.get("SLURM_STEP_NODELIST", ""))) is not None:
        told["MASTER_ADDR"] = host
    return {**told, **given}


def first_host(nodes: str) -> str | None:
    """The first of SLURM's list of hosts; None where it is written in a way that is not known here.

    >>> first_host("gpu[007-010,12],login"), first_host("a1,a2"), first_host("rack[1-2]node[1-4]")
    ('gpu007', 'a1', None)
    """
    found = re.match(r"([\w.-]+)(?:\[(\d+)[\d,-]*\])?(?:,|$)", nodes)
    return None if found is None else found[1] + (found[2] or "")


def processes() -> int:
    """How many were started together.

    Raises:
        UserError: WORLD_SIZE is no number
    """
    given = variables().get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"the environment variable WORLD_SIZE is {given!r}, which is no number of processes")
    return int(given)


def rank() -> int:
    """This process's number among them; 0 leads, and alone speaks for all."""
    given = variables()
    own = given.get("RANK", "0")
    return int(own) if own.isdecimal() and given.get("WORLD_SIZE", "1") != "1" else 0


def end(code: int) -> NoReturn:
    """End the process with an exit code, one of several without Python's last clean-up.

    That takes the interpreter away from under torch's threads: one that still holds a message's tensor then aborts
    the process (https://github.com/pytorch/pytorch/pull/179291), and with it a run that is done.
    """
    if variables().get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
