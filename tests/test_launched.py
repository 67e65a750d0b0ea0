"""How a process that is one of several ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit
from unixkd.launched import end

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
