"""Commands of Python in copies of a process that has imported torch: most of a dry run would be imports else.

A copy has the command's own arguments, folders to import from, environment and output, and imports everything of this
repository anew, so that what a command lacks on a bare machine it lacks here. Not for CUDA, which no copy can use.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

OURS = Path(__file__).resolve().parents[2]
SHARED = ("torch._dynamo", "torchvision")
"""What every stage imports: the first step of torch's optimisers imports the first one."""


class Copy:
    """A process that runs a command, with what is used of `subprocess.Popen`.

    Args:
        words: the command: Python, then a script or `-m` and a module, then arguments
        output: of both kinds
        environment: all of it
        searched: folders to import from, after the script's own and those of PYTHONPATH
    """

    def __init__(
        self, words: Sequence[str], output: BinaryIO, environment: Mapping[str, str], searched: Sequence[str]
    ) -> None:
        assert words[0] == sys.executable
        self.returncode: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            become(words[1:], output, environment, searched)

    def wait(self, timeout: float) -> int:
        """The exit code, of a signal its negative number.

        Raises:
            subprocess.TimeoutExpired: it goes on
        """
        until = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                raise subprocess.TimeoutExpired("a copy", timeout)
            else:
                time.sleep(0.02)
        return self.returncode

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)


def import_shared() -> None:
    """Import what the copies share."""
    for name in SHARED:
        importlib.import_module(name)


def become(
    words: Sequence[str], output: BinaryIO, environment: Mapping[str, str], searched: Sequence[str]
) -> None:
    """Be the process that Python would have started; does not come back."""
    code = 1
    try:
        os.setsid()
        for number in (1, 2):
            os.dup2(output.fileno(), number)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment)
        code = run(words, [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *searched])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words: Sequence[str], searched: Sequence[str]) -> int:
    """Run a script, or with `-m` a module, as Python does; the exit code."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and "site-packages" not in file and Path(file).is_relative_to(OURS):
            del sys.modules[name]
    is_module = words[0] == "-m"
    sys.argv = list(words[1:] if is_module else words)
    sys.path[:] = [str(Path.cwd()) if is_module else str(Path(words[0]).parent), *searched]
    sys.path_importer_cache.clear()
    try:
        if is_module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
            return 1
        return int(end.code or 0)
    return 0
