"""Real processes under torchrun: they train one student, end when one of them is killed, and go on exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from running import everything, make_teacher, metrics, summary
from unixkd.models import load_student

pytestmark = pytest.mark.slow
PATIENCE = 120
SOON = 30
"""Seconds in which all processes end once one is gone."""


def start(
    teacher: Path, out: Path, *more: str, program: Sequence[str] = ("-m", "unixkd")
) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *program,
    ]
    command += [
        "distill",
        "--teacher",
        str(teacher),
        "--student",
        "resnet8",
        "--data",
        "digits",
        "--epochs",
        "6",
    ]
    command += [
        "--train.precision",
        "fp32",
        "--train.teacher_precision",
        "fp32",
        "--out",
        str(out),
        "--resume",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *more], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )


def to_the_end(teacher: Path, out: Path, *more: str) -> Path:
    """Begin or go on, and finish."""
    said, _ = (process := start(teacher, out, *more)).communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert said.count("final accuracy") == 1
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has stopped."""
    return to_the_end(teacher, tmp_path_factory.mktemp("whole") / "run")


def workers(agent: int) -> list[int]:
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [int(pid) for pid in children]


def wait_for(folder: Path, epochs: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < epochs:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed_all_end_and_go_on_exactly(victim, teacher, whole, tmp_path):
    process = start(teacher, tmp_path / "killed")
    wait_for(tmp_path / "killed", 2, process)
    os.kill(workers(process.pid)[victim], signal.SIGKILL)
    said, _ = process.communicate(timeout=SOON)
    assert process.returncode != 0
    assert len(metrics(tmp_path / "killed")) < 6, "killed too late"
    assert "unixkd/train.py" not in said  # no traceback of ours
    assert everything(to_the_end(teacher, tmp_path / "killed")) == everything(whole)


def test_both_stop_when_torchrun_is_asked_to(teacher, tmp_path):
    process = start(teacher, tmp_path / "run")
    wait_for(tmp_path / "run", 1, process)
    process.terminate()
    said, _ = process.communicate(timeout=PATIENCE)
    assert said.count("and saved; the same command with --resume goes on") == 1
    assert (tmp_path / "run" / "checkpoints").exists()


def test_sharded_they_stop_and_go_on_exactly_and_one_process_loads_the_student(teacher, tmp_path):
    sharded = ("--train.sharding", "both")
    process = start(teacher, tmp_path / "stopped", *sharded)
    wait_for(tmp_path / "stopped", 2, process)
    process.terminate()
    said, _ = process.communicate(timeout=PATIENCE)
    assert said.count("and saved; the same command with --resume goes on") == 1
    for name in ("stopped", "whole"):
        to_the_end(teacher, tmp_path / name, *sharded)
    assert everything(tmp_path / "stopped") == everything(tmp_path / "whole")
    student = load_student(tmp_path / "whole")
    assert sum(p.numel() for p in student.parameters()) == summary(tmp_path / "whole")["parameters"]


FAULTY = """
import os, sys
from unixkd.cli import main as cli
from unixkd.training import engine
from unixkd.training.distributed.launch import end

def step(self, *rest):
    if os.environ["RANK"] == "1" and self.distiller.steps == 5:
        raise KeyError("a fault of the second process")
    return original(self, *rest)

original, engine.Engine.step = engine.Engine.step, step
end(cli.main(sys.argv[1:]))
"""


def test_one_fails_all_end_soon_and_its_traceback_is_told(teacher, tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    said, failed = [], None
    with start(teacher, tmp_path / "run", program=[str(tmp_path / "faulty.py")]) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if "a fault of the second process" in line and failed is None:
                failed = time.monotonic()
        process.wait(PATIENCE)
    assert failed is not None, "".join(said)
    assert time.monotonic() - failed < SOON
    assert process.returncode != 0
    assert any("Traceback" in line for line in said)
    assert any("in step" in line and "faulty.py" in line for line in said)
