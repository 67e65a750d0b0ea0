"""Make what lies here, or `expected.json` alone, with the commit that the tests compare with; README.md says how."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMIT = "37e24f0"

UNFINISHED = {
    "killed": (40, signal.SIGKILL),  # in epoch 2 of 3: its journal knows more than the checkpoint of epoch 1
    "stopped": (87, signal.SIGTERM),  # in the middle of epoch 4 of 5
    "stale": (31, signal.SIGTERM),  # in the middle of epoch 3 of 5
}
"""After which step which signal reaches a run."""

SIGNALLED = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
number, step, taken = int(sys.argv.pop(1)), int(sys.argv.pop(1)), []
def count(*_):
    taken.append(1)
    if len(taken) == step:
        os.kill(os.getpid(), number)
register_optimizer_step_post_hook(count)
from unixkd.__main__ import run
run()
"""


def check_commit() -> None:
    """Raise where the package that runs is not the commit's: a record of anything else would be worthless."""
    import unixkd

    source = Path(unixkd.__file__).parent
    subprocess.run(["git", "diff", "--quiet", COMMIT, "--", "."], cwd=source, check=True)


def make_folders(test: Any) -> None:
    """The teacher, the three unfinished runs with their store, and a comparison."""
    for name in ("teacher", "answers", *UNFINISHED, "compare"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    finish(test, "teacher")
    for name, (step, number) in UNFINISHED.items():
        words = test.words_of(test.commands()[name])
        ended = subprocess.run(
            [sys.executable, "-c", SIGNALLED, str(int(number)), str(step), *words], cwd=HERE
        )
        assert ended.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 75}[number]
    finish(test, "compare")


def finish(test: Any, name: str) -> None:
    """Run a command to its end."""
    code, output = test.run({name: (HERE, test.words_of(test.commands()[name]))})[name]
    assert code == 0, output


def leave_out() -> None:
    """Remove what is large and read by nobody; README.md lists it."""
    kept = HERE / "compare" / "runs" / "kd-seed0"
    for summary in HERE.rglob("summary.json"):
        if summary.parent != kept:
            shutil.rmtree(summary.parent / "checkpoints")
    shutil.rmtree(kept / "checkpoints" / "epoch-00004")
    for name in ("stopped", "stale"):
        (older,) = (path for path in (HERE / name / "checkpoints").glob("epoch-*") if "step" not in path.name)
        shutil.rmtree(older)
    (HERE / "compare" / "report.html").unlink()
    for lock in HERE.rglob(".lock"):
        lock.unlink()


def record(test: Any) -> dict[str, Any]:
    """What the commit makes of the folders, in copies of them."""
    with tempfile.TemporaryDirectory() as folder:
        played = test.Played(Path(folder))
        played.output("served")
        (Path(folder) / "demos").mkdir()
        return {
            "commit": COMMIT,
            "machine": test.machine(),
            "unfinished": {name: test.unfinished(played, name) for name in test.RUNS},
            "served": test.result(played.served / "served"),
            "loaded": test.loaded(),
            "evaluated": test.evaluated(played),
            "compared": test.compared(played),
            "reported": test.reported(played),
            "demo": {size: test.demo(Path(folder) / "demos", size) for size in ("short", "whole")},
        }


def main() -> None:
    """All of it, or with the word `expected` the record alone."""
    check_commit()
    sys.path.insert(0, str(next(HERE.parents[1].rglob("test_first_house.py")).parent))
    import test_first_house as test

    if sys.argv[1:] != ["expected"]:
        make_folders(test)
        leave_out()
    (HERE / "expected.json").write_text(json.dumps(record(test), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
