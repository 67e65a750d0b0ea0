"""A command in a process of its own, which may hang, and what it leaves: files, processes."""

from __future__ import annotations

import faulthandler
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bad_inputs import Outcome, in_process, judged
from unixkd.cli import screen

SECONDS = 10
"""After which a case in this process hangs."""
REAL_SECONDS = 60
"""After which a real command hangs: importing torch takes its time."""
ROOM = 2 << 30
"""Bytes of address space that a case may take beside what the process has."""
Way = Callable[[list[str], Path], tuple[Outcome, list[str]]]
"""How a command is run in a place: how it ended, and the processes that it left."""


@contextmanager
def inside(place: Path) -> Iterator[None]:
    """Within, this folder is the working one, and temporary files are made in its `tmp`."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning ends no command
        patch.chdir(place)
        patch.setattr(tempfile, "tempdir", str(place / "tmp"))
        patch.setenv("TMPDIR", str(place / "tmp"))
        patch.setenv("COLUMNS", "200")
        patch.setattr(screen.console, "_width", 200)  # it has read COLUMNS if it is there already
        yield


def here(words: list[str], place: Path) -> tuple[Outcome, list[str]]:
    """Run a command in this process."""
    with inside(place):
        return in_process(words), []


def apart(words: list[str], place: Path) -> tuple[Outcome, list[str]]:
    """Run a command in a fork of this process, which is killed where it hangs, be it in C.

    A fork has all modules at hand: it is ready in milliseconds.
    """
    read, write = os.pipe()
    stacks = place / "tmp" / "stacks"
    child = os.fork()
    if not child:
        try:
            os.setsid()
            limit_room()
            with stacks.open("w") as file, inside(place):
                faulthandler.dump_traceback_later(SECONDS - 0.5, file=file)
                os.write(write, pickle.dumps(in_process(words)))
        finally:
            os._exit(0)
    os.close(write)
    content = b""
    while select.select([read], [], [], SECONDS)[0] and (part := os.read(read, 1 << 16)):
        content += part
    os.close(read)
    left = [
        number for number in of_session(child) if content and number != str(child)
    ]  # itself it is just ending
    end_session(child)
    os.waitpid(child, 0)
    where = stacks.read_text()
    stacks.unlink()
    return (pickle.loads(content) if content else Outcome(None, "", f"it hangs or dies: {where}")), left


def as_real(words: list[str], place: Path) -> tuple[Outcome, list[str]]:
    """Run a command as a user does, with as many threads as here: others round otherwise."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = os.environ | threads | {"TMPDIR": str(place / "tmp"), "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-m", "unixkd", *words], cwd=place, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", preexec_fn=limit_room,
    )  # fmt: skip
    try:
        said, error = process.communicate(timeout=REAL_SECONDS)
    except subprocess.TimeoutExpired:
        end_session(process.pid)
        process.communicate()
        return Outcome(None, "", "it hangs"), []
    left = of_session(process.pid)
    end_session(process.pid)
    return judged(process.returncode, error, said), left


def end_session(number: int) -> None:
    """Kill what is left of a session that this process has begun."""
    for each in of_session(number):
        os.kill(int(each), signal.SIGKILL)


def limit_room() -> None:
    """From now on, this process gets no more memory than a small run needs."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, resource.RLIM_INFINITY))


def of_session(number: int) -> list[str]:
    """The processes of a session that are still at work."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if int(session) == number and state != "Z":
            found.append(stat.parent.name)
    return found


def tree(place: Path) -> dict[str, Any]:
    """Every path below a place: what kind it is, how large, when it was changed, where it points."""
    found = {}
    for root, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(root, name)
            status = path.lstat()
            link = str(path.readlink()) if path.is_symlink() else None
            changed = (status.st_size, status.st_mtime_ns) if link is None and not path.is_dir() else None
            found[str(path.relative_to(place))] = (status.st_mode, changed, link)
    return found
