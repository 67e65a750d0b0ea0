"""Stopped at any step and resumed, a run is the run it would have been; nothing is lost, nothing is paid twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from running import SMALL, Signal, alone, call, distilled, everything, make_teacher, metrics, stop_and_resume
from unixkd.config import AnswersConfig, MethodConfig, RunConfig
from unixkd.errors import UserError
from unixkd.method.epoch_choice import History
from unixkd.method.step import StepResult
from unixkd.teacher.journal import Journal
from unixkd.training import stopping
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.run import run
from unixkd.training.stopping import Stopped, asked, stoppable

WHOLE_EPOCH = 4  # steps


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def stored(config: RunConfig, path: Path, **fields: Any) -> RunConfig:
    return replace(config, answers=AnswersConfig(str(path), **fields))


CONFIGS: dict[str, Callable[[Path], RunConfig]] = {
    "alone": lambda teacher: alone(nesterov=True),
    "unix, averaged": lambda teacher: distilled(teacher, optimizer="adamw", lr=1e-3, ema_decay=0.9),
    "stale": lambda teacher: distilled(teacher, MethodConfig("stale", keep=0.6), epochs=3),
    "infobatch": lambda teacher: distilled(teacher, MethodConfig("infobatch", full_last=0.0), epochs=3),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_twice_in_an_epoch_it_is_the_same_run(name, teacher, tmp_path):
    config = CONFIGS[name](teacher)
    run(config, tmp_path / "whole")
    stop_and_resume(config, tmp_path / "parts", 1, 2, 5)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


@pytest.mark.parametrize("forgotten", ["sums", "history"])
def test_the_comparison_finds_what_is_forgotten_within_an_epoch(forgotten, teacher, tmp_path, monkeypatch):
    """The negative control of the test above."""
    config = CONFIGS["stale"](teacher)
    run(config, tmp_path / "whole")
    if forgotten == "sums":
        original = EpochStats.load_state
        monkeypatch.setattr(
            EpochStats, "load_state", lambda tally, tensors, numbers: original(tally, {}, numbers)
        )
    else:
        monkeypatch.setattr(History, "state", lambda history: {"score": history.score, "age": history.age})
    stop_and_resume(config, tmp_path / "parts", 1)
    assert everything(tmp_path / "parts") != everything(tmp_path / "whole")


def test_stopped_in_the_last_step_of_an_epoch_it_is_evaluated_later(teacher, tmp_path):
    config = distilled(teacher)
    run(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        Signal(patch, WHOLE_EPOCH - 1)
        with pytest.raises(Stopped):
            run(config, tmp_path / "parts")
    assert not (tmp_path / "parts" / "metrics.jsonl").exists() or metrics(tmp_path / "parts") == []
    run(config, tmp_path / "parts", mode="resume")
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_a_request_is_heard_within_and_forgotten_afterwards(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        assert not asked()
        with stoppable():  # changes nothing
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    assert (asked(), signal.getsignal(signal.SIGTERM)) == (False, before)
    assert capfd.readouterr().err == "\nunixkd: stopping after this step; once more stops at once\n"


def test_another_thread_than_the_main_one_leaves_the_signals_alone():
    heard = []

    def work() -> None:
        with stoppable():
            heard.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [before]
    assert not stopping._state["listening"]


# As commands


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unixkd", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Until a file of the pattern is there."""
    until = time.monotonic() + 120
    while not any(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


ENDLESS = (*SMALL[:-1], 2000, "--train.eval_every", 2000, "--train.threads", 1)


def assert_told_how_to_go_on(told: str) -> None:
    assert "stopping after this step" in told
    assert "and saved; the same command with --resume goes on" in told
    assert "Traceback" not in told


def test_a_command_stops_on_sigterm_with_75_and_says_how_to_go_on(tmp_path, capfd, monkeypatch):
    Signal(monkeypatch, WHOLE_EPOCH + 1)
    assert call("train", "--model", "resnet8", *ENDLESS, "--out", tmp_path / "run") == stopping.EXIT_CODE
    assert_told_how_to_go_on(capfd.readouterr().err)


@pytest.mark.slow
def test_a_process_stops_on_sigterm_with_75_and_says_how_to_go_on(tmp_path):
    process = start("train", "--model", "resnet8", *ENDLESS, "--out", tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoints", "epoch-*", process)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == stopping.EXIT_CODE
    assert_told_how_to_go_on(told)


def test_a_second_signal_ends_at_once(tmp_path):
    """Between the two there is no step that could end."""
    code = (
        "import os, signal, time\n"
        "from unixkd.training.stopping import stoppable\n"
        "with stoppable():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stdout) == (stopping.EXIT_CODE, "first\n")


@pytest.mark.slow
def test_a_comparison_stops_in_all_its_processes(teacher, tmp_path):
    words = ("compare", "--teacher", teacher, "--student", "resnet8", "--methods", "kd,random", "--seeds", 0)
    process = start(*words, *ENDLESS, "--jobs", 2, "--out", tmp_path / "out")
    for name in ("kd-seed0", "random-seed0"):
        wait_for(tmp_path / "out" / "runs" / name / "checkpoints", "epoch-*", process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == stopping.EXIT_CODE, told
    assert "Traceback" not in told
    for name in ("kd-seed0", "random-seed0"):
        checkpoints = tmp_path / "out" / "runs" / name / "checkpoints"
        assert "-step-" in max(path.name for path in checkpoints.glob("epoch-*"))


# Answers that outlive a kill


@pytest.mark.parametrize("fill", ["lazy", "epoch"])
def test_a_killed_run_pays_again_for_what_it_asked_after_its_checkpoint(fill, teacher, tmp_path, monkeypatch):
    """Killed without a checkpoint in epochs 1 and 2; the control has no journal."""
    config = distilled(teacher, "kd", epochs=3)

    def parts(name: str) -> tuple[Any, ...]:
        wanted = stored(config, tmp_path / f"{name}-answers", fill=fill)
        for step in (2, 6, 6):
            with pytest.MonkeyPatch.context() as patch:
                Kill(patch, step)
                with pytest.raises(Killed):
                    run(wanted, tmp_path / name, mode="resume")
        run(wanted, tmp_path / name, mode="resume")
        return everything(tmp_path / name)

    run(stored(config, tmp_path / "answers", fill=fill), tmp_path / "whole")
    assert parts("parts") == everything(tmp_path / "whole")
    monkeypatch.setattr(Journal, "append", lambda journal, rows: None)
    assert parts("control") != everything(tmp_path / "whole")


class Killed(BaseException):
    """Nobody catches it."""


class Kill:
    """The end of the process, as far as its files go, after a step of the run and before anything is saved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        original = Engine.step

        def step(engine: Engine, *rest: Any) -> StepResult:
            result = original(engine, *rest)
            if engine.distiller.steps == at:
                raise Killed
            return result

        monkeypatch.setattr(Engine, "step", step)


def test_a_journal_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "asked-since-epoch-00001.bin").mkdir()
    with pytest.raises(UserError, match=r"asked-since-epoch-00001\.bin cannot be read"):
        Journal(tmp_path).rows_since("epoch-00001")


def test_what_another_run_has_asked_stays_free(teacher, tmp_path):
    """Of two runs that share a store, the second is killed and resumed, and pays for nothing."""
    config = stored(distilled(teacher, "kd"), tmp_path / "answers", fill="lazy")
    run(config, tmp_path / "first")
    with pytest.MonkeyPatch.context() as patch:
        Kill(patch, 2)
        with pytest.raises(Killed):
            run(config, tmp_path / "second")
    second = run(config, tmp_path / "second", mode="resume")
    assert second["cost"]["images"]["teacher_forwarded"] == 0


def test_journals_of_checkpoints_that_are_gone_are_removed(teacher, tmp_path):
    config = stored(distilled(teacher, "kd", epochs=4), tmp_path / "answers", fill="lazy")
    run(config, tmp_path / "run")
    journals = Journal(tmp_path / "run" / "checkpoints").files()
    assert all("epoch-00003" in path.name or "epoch-00004" in path.name for path in journals)


def test_a_torn_journal_loses_its_last_number_only(tmp_path):
    path = tmp_path / "asked-since-epoch-00001.bin"
    path.write_bytes(torch.tensor([7, 9]).numpy().astype("<i8").tobytes()[:-3])
    assert Journal(tmp_path).rows_since("epoch-00001").tolist() == [7]
    assert Journal(tmp_path).rows_since("epoch-00002").tolist() == []


# One folder, one process


HOLD = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); input()"


def test_a_folder_in_use_is_refused_and_free_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("unixkd.training.run_folder.LOCK_SECONDS", 0.1)
    run(alone(), tmp_path / "run")
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training here"):
            run(alone(), tmp_path / "run", mode="resume")
        holder.kill()
    run(alone(), tmp_path / "run", mode="resume")


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    folder = tmp_path / "run"
    run(alone(), folder)
    end = f".{'0f' * 16}.tmp"
    half = [folder / f".summary.json{end}", folder / "checkpoints" / f".epoch-00003{end}" / "state.json"]
    half[1].parent.mkdir()
    for path in half:
        path.write_text("{")
    run(alone(), folder, mode="resume")
    assert not half[0].exists()
    assert not half[1].parent.exists()
