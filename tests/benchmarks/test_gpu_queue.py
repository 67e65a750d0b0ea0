"""benchmarks/gpu/all.py: time limit, failures, what is not run twice, stopping; a dry run of all stages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import all as gpu_queue
import speed
import stages
import warm
from stages import MINUTES, NO_LIMIT, Outcome, Queue, Stage


def shell(name: str, script: str, minutes: float = 1, **options: object) -> Stage:
    return Stage(name, ("sh", "-c", script), minutes, **options)  # type: ignore[arg-type]


def quiet(_text: str) -> None:
    """Shows nothing."""


def test_figures_are_the_last_json_and_a_failure_is_named_with_its_log(tmp_path: Path) -> None:
    shown: list[str] = []
    steps = [
        shell("good", 'echo "{\\"ms\\": 2}"; echo bye', summary=lambda figures: f"{figures['ms']} ms"),
        shell("bad", "echo start; echo 'ValueError: too large' >&2; echo more; exit 3"),
        shell("later", "echo 7 passed"),
    ]
    outcomes = Queue(tmp_path, 120).work(steps, shown.append)
    assert {name: (each.state, each.text) for name, each in outcomes.items()} == {
        "good": ("done", "2 ms"),
        "bad": ("failed", "ValueError: too large"),
        "later": ("done", "7 passed"),
    }
    assert json.loads((tmp_path / "good.json").read_text()) == {"ms": 2}
    assert f"log: {tmp_path / 'logs' / 'bad.log'}" in shown[-1]
    tables = [text.splitlines() for text in shown if text.startswith("\n")]
    assert len(tables) == 3  # one after every stage
    assert tables[0][3].split() == ["bad", "waits"]
    assert max(len(line) for line in tables[0]) <= 80
    assert stages.exit_code(outcomes) == 1


def test_only_what_is_not_done_is_run_again(tmp_path: Path) -> None:
    def steps(third: str) -> list[Stage]:
        scripts = {"a": "exit 0", "b": "exit 75", "c": "exit 1", "d": third}
        return [shell(name, f"echo {name} >> {tmp_path}/ran; {s}") for name, s in scripts.items()]

    first = Queue(tmp_path / "out", 120).work(steps("true"), quiet)
    assert [each.state for each in first.values()] == ["done", "left", "failed", "done"]
    Queue(tmp_path / "out", 120).work(steps("true"), quiet)
    Queue(tmp_path / "out", 120).work(steps("true; true"), quiet)  # another command
    assert (tmp_path / "ran").read_text().split() == [*"abcd", *"bc", *"bcd"]


@pytest.mark.parametrize(
    ("states", "code"),
    [(["done", "done"], 0), (["done", "left"], 75), (["left", "failed"], 1)],
)
def test_exit_codes(states: list[str], code: int) -> None:
    assert stages.exit_code({str(n): Outcome(state, []) for n, state in enumerate(states)}) == code


class Timed(Queue):
    """Its stages take a minute longer than they said; the clock is moved, nothing is run."""

    now = 0.0

    def __init__(self, out: Path, minutes: float) -> None:
        super().__init__(out, 60 * minutes, clock=lambda: self.now)

    def run(self, stage: Stage) -> Outcome:
        took = 60 * (min(stage.minutes, self.left() / 60 - 1) + 1)
        self.now += took
        return Outcome("done" if took < 600 else "left", list(stage.command), took)


def test_nothing_begins_that_would_not_end_in_time(tmp_path: Path) -> None:
    limited = ("speed", MINUTES)
    steps = [
        Stage("tests", ("tests",), 4),  # ends at 5
        Stage("slow", ("slow",), 6),  # would end at 11
        Stage("speed", limited, 3, least=1),  # ends at 9
        Stage("table", limited, NO_LIMIT, least=2),
        Stage("small", limited, NO_LIMIT, least=0.5),
        Stage("data", limited, 0, missing="no images"),
    ]
    found = Timed(tmp_path, 10).work(steps, quiet)
    assert {name: each.text for name, each in found.items() if each.state == "left"} == {
        "slow": "5.0 minutes were left, it wants 6.0",
        "table": "1.0 minutes were left, it wants 2.0",
        "data": "no images",
    }
    again = Timed(tmp_path, 10)
    assert [stage.name for stage in steps if again.why_not(stage, again.outcomes[stage.name])] == ["data"]


def test_a_stage_is_expected_to_take_what_it_took(tmp_path: Path) -> None:
    queue, stage = Timed(tmp_path, 5), Stage("tests", ("tests",), 1)
    assert queue.why_not(stage, Outcome("failed", ["tests"], seconds=240)) is None
    assert queue.why_not(stage, Outcome("failed", ["tests"], seconds=360)) is not None
    assert queue.why_not(stage, Outcome("failed", ["others"], seconds=360)) is None


def test_a_stage_is_told_its_minutes(tmp_path: Path) -> None:
    steps = [
        Stage("told", ("echo", MINUTES), 2, least=0),
        Stage("rest", ("echo", MINUTES), NO_LIMIT, least=0),
    ]
    found = Queue(tmp_path, 600).work(steps, quiet)
    assert float(found["told"].text) == 2
    assert 9 < float(found["rest"].text) <= 10


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "], ids=["it stops", "it does not listen"])
def test_a_stage_over_its_time_is_ended_with_all_that_it_started(
    trap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "GRACE", 0.2)
    queue = Queue(tmp_path, 0.3)
    stage = shell("hangs", f"{trap}sleep 60 & echo $! > {tmp_path}/child; wait; wait; sleep 60", least=0)
    found = queue.work([stage, shell("next", "true", minutes=0)], quiet)
    assert (found["hangs"].state, found["hangs"].text) == ("left", "its time was over")
    assert found["next"].state == "left"
    assert gone(int((tmp_path / "child").read_text()))


def gone(process: int) -> bool:
    """Whether a process has ended, within a second."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().split()[2] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


STOPPABLE = """
import sys
from pathlib import Path
from stages import Queue, Stage, exit_code
queue = Queue(Path(sys.argv[1]), 120)
queue.listen()
script = "echo $$ > " + sys.argv[1] + "/child; exec sleep 60"
steps = [Stage("first", ("sh", "-c", script), 1), Stage("second", ("true",), 1)]
sys.exit(exit_code(queue.work(steps)))
"""


def test_sigterm_stops_the_stage_at_work_and_begins_no_other(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(stages.__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPABLE, str(tmp_path)], env=environment, stdout=subprocess.DEVNULL
    )
    child = tmp_path / "child"
    until = time.monotonic() + 20
    while not (child.exists() and child.read_text().strip()) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    assert gone(int(child.read_text()))
    found = json.loads((tmp_path / "queue.json").read_text())
    assert {name: (each["state"], each["text"]) for name, each in found.items()} == {
        "first": ("left", "stopped"),
        "second": ("left", "stopped before it began"),
    }


@pytest.mark.parametrize(
    ("text", "figures", "line"),
    [
        ("F\nE       assert 1 == 2\nE   more\nAssertionError: no\n", {}, "assert 1 == 2"),
        ("Traceback:\n  x\ntorch.OutOfMemoryError: CUDA\n", {}, "torch.OutOfMemoryError: CUDA"),
        ("full_scale: error: no such file\n", {}, "full_scale: error: no such file"),
        ("ok\n", {"failures": ["resnet20: the loss is not finite\nx"]}, "resnet20: the loss is not finite"),
        ("ok\n", {"check": {"a": {"error": "MemoryError: b"}}}, "MemoryError: b"),
        ("{}\n", {"passed": False, "target": "1.8 ms"}, "missed its target: 1.8 ms"),
    ],
)
def test_the_first_line_of_what_went_wrong(text: str, figures: dict[str, object], line: str) -> None:
    assert stages.first_error(text, figures) == line


def test_the_queue_has_a_stage_for_every_kind_and_says_what_it_lacks(tmp_path: Path) -> None:
    planned = gpu_queue.plan(tmp_path, None, quick=False)
    assert [stage.name for stage in planned] == ["tests", *speed.KINDS, "table"]
    of_all = {"check": {"a": {"error": "no"}}, "single": {"b": {}}, "passed": True}  # as they share a folder
    assert planned[2].keep(of_all) == {"single": {"b": {}}, "passed": True}
    assert planned[-1].missing == "no images: give --root or set UNIXKD_CIFAR100"
    assert gpu_queue.plan(tmp_path, "~/images", quick=False)[-1].missing == ""


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["all.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^no CUDA device is available here; --quick tries"):
        gpu_queue.main()
    assert not (tmp_path / "out").exists()


COMMAND = """
import json, os, signal, sys, threading, time
import stages
print(json.dumps({"argv": sys.argv, "path": sys.path, "own": os.environ.get("OWN"), "name": __name__}), flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
sys.exit({"fail": "no such thing", "left": 75}.get(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("word", "code"), [("fine", 0), ("left", 75), ("fail", 1), ("wait", -signal.SIGTERM)]
)
def test_a_copy_of_a_process_is_as_one_that_python_starts(word: str, code: int, tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    environment = {"OWN": "1", "PYTHONPATH": str(Path(stages.__file__).parent)}
    words = [sys.executable, str(script), word]
    found = []
    for start in (partial(warm.Copy, searched=gpu_queue.SEARCHED), stages.start_process):
        with (tmp_path / "log").open("wb") as log:
            child = start(words, log, environment)
        if word == "wait":
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0)
            until = time.monotonic() + 20
            while not (tmp_path / "log").read_text() and time.monotonic() < until:
                time.sleep(0.01)
            child.terminate()
        assert child.wait(20) == child.returncode == code
        figures, *rest = (tmp_path / "log").read_text().splitlines()
        found.append((json.loads(figures), rest))
    assert found[0][1] == found[1][1]
    assert (
        found[0][0].pop("path")[:2]
        == found[1][0].pop("path")[:2]
        == [str(tmp_path), environment["PYTHONPATH"]]
    )
    assert found[0][0] == found[1][0]


@pytest.mark.slow
def test_the_dry_run_has_a_result_for_every_stage(tmp_path: Path) -> None:
    command = [sys.executable, gpu_queue.__file__, "--quick", "--out", str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["stages"]
    assert {name: each["state"] for name, each in found.items()} == dict.fromkeys(
        ["tests", *speed.KINDS, "table"], "done"
    )
    for kind in speed.KINDS:
        cases = [str(case) for each, case in speed.plan(speed.QUICK) if each == kind]
        assert list(found[kind]["figures"][kind]) == cases
        assert found[kind]["figures"]["passed"]
        assert found[kind]["text"] != "its figures are not as expected"
    finished = found["table"]["figures"]["finished"]
    assert finished["resnet56-resnet20"] == {"kd": 1, "unix": 1, "unix-random": 1}
