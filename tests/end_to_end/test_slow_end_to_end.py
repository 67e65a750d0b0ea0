"""The whole way, in processes of its own: the demo's claim, Ctrl-C and SIGKILL in the middle of work."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from running import call, everything, make_teacher, summary
from unixkd.training.checkpoint import checkpoints
from unixkd.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

MAIN = "import sys\nfrom unixkd.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
PATIENCE = 300.0
FULL_PRECISION = ("--train.precision", "fp32", "--train.teacher_precision", "fp32")
"""In a process of its own a command would probe."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


class Started:
    """A command in a process group of its own."""

    def __init__(self, place: Path, *words: object) -> None:
        script = place / "main.py"  # a file, as worker processes import the main module again
        script.write_text(MAIN)
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # where the tests run in the background, SIGINT is ignored, and a command would inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_for(self, *folders: Path) -> None:
        """Wait until each of the runs has a checkpoint."""
        end = time.monotonic() + PATIENCE
        while not all(checkpoints(folder / "checkpoints") for folder in folders):
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.05)

    def wait_for_the_group_to_end(self) -> None:
        """Wait until no process of the group is left (multiprocessing's own tracker is a little later)."""
        end = time.monotonic() + PATIENCE
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.killpg(self.process.pid, 0)
                assert time.monotonic() < end
                time.sleep(0.05)

    def stop(self, how: signal.Signals) -> tuple[int, str]:
        """Send a signal to the group; exit code and output."""
        os.killpg(self.process.pid, how)
        output, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output


def distill(teacher: Path, out: Path) -> list[object]:
    return [
        *("distill", "--teacher", teacher, "--student", "resnet8", "--epochs", 20, "--data.limit", 300),
        *("--train.threads", 1, *FULL_PRECISION, "--out", out),
    ]


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert call(*distill(teacher, out)) == 0
    return out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_end(how, whole, teacher, tmp_path):
    words = distill(teacher, tmp_path / "run")
    started = Started(tmp_path, *words)
    started.wait_for(tmp_path / "run")
    code, output = started.stop(how)
    assert not RunFolder(tmp_path / "run").is_finished()
    if how == signal.SIGINT:
        assert code == 75
        assert "--resume goes on" in output
        assert "Traceback" not in output
    assert call(*words, "--resume") == 0
    assert everything(tmp_path / "run") == everything(whole)


def test_a_comparison_stopped_by_ctrl_c_leaves_no_process_and_goes_on(teacher, tmp_path):
    words = [
        *("compare", "--teacher", teacher, "--student", "resnet8", "--methods", "kd,unix", "--seeds", "0,1"),
        *("--epochs", 15, "--data.limit", 300, "--train.threads", 1),
        *(*FULL_PRECISION, "--out", tmp_path / "out"),
    ]
    started = Started(tmp_path, *words, "--jobs", 2)
    started.wait_for(*(tmp_path / "out" / "runs" / f"{method}-seed0" for method in ("kd", "unix")))
    code, output = started.stop(signal.SIGINT)
    assert code == 75, output
    assert "Traceback" not in output
    started.wait_for_the_group_to_end()
    assert call(*words, "--jobs", 1) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert names == ["kd-seed0", "kd-seed1", "unix-seed0", "unix-seed1"]
    base = ["distill", *words[1:5], *words[9:-1]]
    again = [*base, tmp_path / "alone", "--method", "unix", "--reference_epochs", 15]
    assert call(*again) == 0
    assert everything(tmp_path / "alone") == everything(tmp_path / "out" / "runs" / "unix-seed0")


def test_a_distilled_student_learns_the_digits_at_less_than_the_cost_of_kd(tmp_path):
    """Loose bounds, far from what one seed more or less changes."""
    assert call("train", "--model", "wrn_16_1", "--epochs", 10, "--out", tmp_path / "teacher") == 0
    assert summary(tmp_path / "teacher")["accuracy"]["last"] > 0.95
    words = ("--teacher", tmp_path / "teacher", "--student", "resnet8", "--epochs", 10)
    for method in ("kd", "unix"):
        assert call("distill", *words, "--method", method, "--out", tmp_path / method) == 0
    kd, unix = summary(tmp_path / "kd"), summary(tmp_path / "unix")
    assert min(kd["accuracy"]["last"], unix["accuracy"]["last"]) > 0.93
    assert min(kd["agreement"], unix["agreement"]) > 0.93
    assert unix["cost"]["images"]["trained"] < 0.77 * kd["cost"]["images"]["trained"]
    assert call("report", tmp_path, "--html", tmp_path / "report.html") == 0
