"""Methods × seeds: worker processes, resuming, cost-matched controls, failures."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from running import BATCH, IMAGES, call, distilled, everything, make_teacher, metrics, model_bytes, summary
from unixkd.cli import compare as cli_compare
from unixkd.config import AnswersConfig, MethodConfig, TrainConfig, flatten, to_plain
from unixkd.errors import UserError
from unixkd.method.ledger import Ledger
from unixkd.method.unix import kd, random, unix
from unixkd.training import compare, stopping
from unixkd.training.checkpoint import newest_state
from unixkd.training.compare import (
    Job,
    default_workers,
    matched_epochs,
    matched_jobs,
    plan_jobs,
    run_jobs,
    run_side_by_side,
)
from unixkd.training.display import Event, Finished, Note
from unixkd.training.engine import Engine
from unixkd.training.run import run
from unixkd.training.run_folder import RunFolder
from unixkd.training.used import unread_options

NAMES = [f"{method}-seed{seed}" for seed in (0, 1) for method in ("kd", "unix")]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def options(teacher) -> list[object]:
    """Two epochs of two methods and two seeds, one thread each."""
    return [
        *("compare", "--teacher", teacher, "--student", "resnet8", "--methods", "kd,unix", "--seeds", "0,1"),
        *("--data.limit", IMAGES, "--train.batch_size", BATCH, "--epochs", 2, "--train.threads", 1),
    ]


@pytest.fixture(scope="module")
def serial(options, tmp_path_factory) -> tuple[Path, str]:
    """The comparison in this process, one run after the other, and what it printed."""
    out, printed = tmp_path_factory.mktemp("compare") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert call(*options, "--jobs", 1, "--out", out) == 0
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def compared(serial) -> Path:
    return serial[0]


def job(teacher: Path, folder: Path, method: str = "kd", **train) -> Job:
    return Job(distilled(teacher, method, **{"epochs": 1, **train}), folder)


# Planning


def test_every_method_with_every_seed_seeds_outermost(teacher, tmp_path):
    base = distilled(teacher, epochs=7)
    jobs = plan_jobs(base, [MethodConfig("kd"), MethodConfig("unix")], [0, 1], tmp_path)
    assert [job.folder for job in jobs] == [tmp_path / "runs" / name for name in NAMES]
    assert [(job.config.method.name, job.config.train.seed) for job in jobs] == [
        *(("kd", 0), ("unix", 0), ("kd", 1), ("unix", 1))
    ]
    assert {job.config.reference_epochs for job in jobs} == {7}
    same = {
        replace(job.config, method=base.method, train=base.train, reference_epochs=None) for job in jobs[:0]
    }
    assert not same
    for each in jobs:
        back = replace(each.config, method=base.method, train=base.train, reference_epochs=None)
        assert back == base  # nothing but method, seed and reference differs


@pytest.mark.parametrize(
    ("methods", "seeds", "told"),
    [
        (["kd"], [], "at least one seed"),
        ([], [0], "at least one method"),
        (["kd", "kd"], [0], "a method is named twice"),
        (["kd"], [3, 1, 3], "a seed is named twice"),
    ],
)
def test_nothing_and_doubles_are_refused(methods, seeds, told, teacher, tmp_path):
    with pytest.raises(UserError, match=told):
        plan_jobs(distilled(teacher), [MethodConfig(name) for name in methods], seeds, tmp_path)


@pytest.mark.parametrize(
    ("method", "teacher_flops", "epochs"),
    [
        # unix on 64 + 64 + 36 of 164 images keeps 48 + 48 + 36 = 132, scores 164; costs in F_s:
        # (132 · (F_t + 3) + 164) / (164 · (F_t + 3)) of 30 epochs
        (unix(), 9, 27),  # (132 · 12 + 164) / (164 · 12) = 0.888
        (unix(), 97, 24),  # 0.8049 + 0.01 = 0.815
        (unix(), 0, 34),  # 0.8049 + 1/3 = 1.138: dearer than plain KD, so KD gets more epochs
        (random(), 9, 24),  # 0.8049
        (random(keep=0.05), 9, 2),  # 3 + 3 + 3 of 164: 1.6 epochs
        (kd(), 9, 30),
    ],
)
def test_epochs_that_the_cost_of_a_method_buys(method, teacher_flops, epochs):
    train = TrainConfig(epochs=30, batch_size=64)
    assert matched_epochs(Ledger(1, teacher_flops), method, train, 164, "backward_2x") == epochs


def test_at_least_one_epoch_is_matched():
    train = TrainConfig(epochs=1, batch_size=64)
    assert matched_epochs(Ledger(1, 9), random(keep=0.1), train, 64, "backward_2x") == 1


def test_matched_jobs_are_kd_with_a_schedule_as_long_as_they_are(teacher, tmp_path):
    base = distilled(teacher, epochs=30, schedule="multistep")
    first, second = matched_jobs(base, {"unix": 26}, [0, 5], tmp_path)
    assert first.folder == tmp_path / "runs" / "kd@unix-seed0"
    assert first.config.method == MethodConfig("kd")
    assert (first.config.label, first.config.reference_epochs, first.config.train.epochs) == (
        "kd@unix",
        30,
        26,
    )
    assert second.config == replace(first.config, train=replace(first.config.train, seed=5))


def test_runs_side_by_side_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(compare.torch.cuda, "is_available", lambda: False)
    assert default_workers(TrainConfig()) == 8
    assert default_workers(TrainConfig(threads=3)) == 2
    assert default_workers(TrainConfig(threads=16)) == 1
    assert default_workers(TrainConfig(device="cuda")) == 1
    monkeypatch.setattr(compare.torch.cuda, "is_available", lambda: True)
    assert default_workers(TrainConfig()) == 1
    assert default_workers(TrainConfig(device="cpu")) == 8


# The command


def test_a_comparison_leaves_a_folder_for_each_run_and_a_report(compared):
    assert sorted(p.name for p in (compared / "runs").iterdir()) == sorted(NAMES)
    for name in NAMES:
        result = summary(compared / "runs" / name)
        assert f"{result['method']}-seed{result['seed']}" == name
        assert result["environment"]["threads"] == 1
    page = (compared / "report.html").read_text()
    assert all(method in page for method in ("kd", "unix"))


def assert_all_is_told(text: str) -> None:
    assert all(f"{name}: epoch   2/2" in text for name in NAMES)
    assert text.count("teacher resnet14: accuracy") == 1
    assert "Report written to" in text


def test_what_the_runs_say_arrives(serial):
    assert_all_is_told(serial[1])


@pytest.mark.slow
def test_two_at_a_time_in_worker_processes_the_weights_are_the_same(compared, options, tmp_path, capsys):
    assert call(*options, "--jobs", 2, "--out", tmp_path) == 0
    for name in NAMES:
        assert everything(tmp_path / "runs" / name) == everything(compared / "runs" / name)
    assert_all_is_told(capsys.readouterr().out)


def test_finished_runs_are_skipped(compared, options, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    monkeypatch.setattr(compare, "run", None)  # nothing may run
    assert call(*options, "--jobs", 2, "--out", out) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().out


def test_an_interrupted_comparison_goes_on(compared, options, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    original = Engine.step
    steps = []

    def step(engine, *rest):
        steps.append(engine)
        if len(steps) == 8 + 6:  # in the second epoch of the second run
            raise KeyboardInterrupt
        return original(engine, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        assert call(*options, "--jobs", 1, "--out", out) == 75
    assert [p.name for p in sorted((out / "runs").iterdir())] == ["kd-seed0", "unix-seed0"]
    assert len(metrics(out / "runs" / "unix-seed0")) == 1
    assert call(*options, "--jobs", 1, "--out", out) == 0
    text = capsys.readouterr().out
    assert "1 of 4 runs are finished already" in text
    assert "unix-seed0: resumed after epoch 1" in text
    for name in NAMES:
        assert everything(out / "runs" / name) == everything(compared / "runs" / name)


def test_more_methods_and_seeds_are_added_to_what_is_there(compared, options, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    words = [{"kd,unix": "unix,random", "0,1": "1,2"}.get(word, word) for word in options]
    assert call(*words, "--jobs", 1, "--out", out) == 0
    added = {"random-seed1", "unix-seed2", "random-seed2"}
    assert {p.name for p in (out / "runs").iterdir()} == {*NAMES, *added}


@pytest.mark.parametrize("finished", [True, False])
def test_another_protocol_is_refused(finished, compared, options, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    if not finished:
        for path in out.glob("runs/*/summary.json"):
            path.unlink()
    assert call(*options, "--lr", "0.1", "--jobs", 1, "--out", out) == 1
    error = capsys.readouterr().err
    assert "train.lr: 0.05 then, 0.1 now" in error
    assert "kd-seed0" in error
    assert model_bytes(out / "runs" / "kd-seed0") == model_bytes(compared / "runs" / "kd-seed0")


@pytest.mark.parametrize(
    ("methods", "more", "told"),
    [
        ("kd,remix", [], "give --answers.path"),
        ("kd,unix:scorer=true_loss", ["--data.labels", "false"], "have no labels"),
        ("kd,random:keep=0.001", [], "keeps no image"),
        ("unix,kd", ["--loss.sp", "1", "--answers.path", "answers"], "stored answers hold logits only"),
        ("unix,kd", ["--answers.path", "{teacher}"], "is no store of teacher answers"),
    ],
)
def test_every_method_is_checked_before_the_first_run(
    methods, more, told, options, teacher, tmp_path, capsys
):
    words = [methods if word == "kd,unix" else word for word in options]
    more = [word.replace("{teacher}", str(teacher)) for word in more]
    assert call(*words, *more, "--jobs", 1, "--out", tmp_path / "out") == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_run_in_a_later_folder_is_found_before_the_first_run(compared, options, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(compared / "runs" / "unix-seed1", out / "runs" / "unix-seed1")
    (out / "runs" / "unix-seed1" / "summary.json").unlink()  # interrupted
    assert call(*options, "--lr", "0.1", "--jobs", 1, "--out", out) == 1
    assert "train.lr: 0.05 then, 0.1 now" in capsys.readouterr().err
    assert [path.name for path in (out / "runs").iterdir()] == ["unix-seed1"]


def test_an_option_that_a_method_does_not_read_leaves_its_runs_valid(
    compared, options, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    monkeypatch.setattr(compare, "run", None)  # nothing may run
    more = [
        "--answers.path",
        tmp_path / "answers",
        "--answers.fill",
        "epoch",
        "--train.label_smoothing",
        "0.1",
    ]
    only = [{"kd,unix": "unix"}.get(word, word) for word in options]
    assert call(*only, *more, "--jobs", 1, "--out", out) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    assert call(*options, *more, "--jobs", 1, "--out", out) == 1  # plain KD reads the store
    error = capsys.readouterr().err
    assert "answers.path: None then" in error
    assert "label_smoothing" not in error


def test_options_that_are_not_read_change_nothing(compared, teacher, tmp_path):
    config = distilled(teacher, "unix", threads=1, label_smoothing=0.1)
    answers = AnswersConfig(str(tmp_path / "answers"), "fp32", fill="epoch")
    changed = replace(config, answers=answers, reference_epochs=2)
    before = json.loads(json.dumps(to_plain(distilled(teacher, "unix"))))
    differing = {key for key, value in flatten(to_plain(changed)).items() if flatten(before)[key] != value}
    assert differing - {"train.threads", "reference_epochs"} <= unread_options(changed)
    run(changed, tmp_path / "run")
    assert everything(tmp_path / "run") == everything(compared / "runs" / "unix-seed0")


def test_plain_kd_at_a_methods_cost(options, teacher, tmp_path):
    """random at keep 3/4 keeps 76 of 100 images: of 4 epochs of KD its cost buys round(3.04)."""
    words = [{"kd,unix": "kd,random,student-alone", "0,1": "0"}.get(word, word) for word in options]
    words += ["--epochs", 4, "--match-cost", "--jobs", 1, "--out", tmp_path]
    assert call(*words) == 0
    runs = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert runs == ["kd-seed0", "kd@random-seed0", "random-seed0", "student-alone-seed0"]
    matched, full = summary(tmp_path / "runs" / "kd@random-seed0"), summary(tmp_path / "runs" / "kd-seed0")
    assert (matched["method"], matched["epochs"]) == ("kd@random", 3)
    assert matched["cost"]["relative_to_kd"] == {"backward_1x": 0.75, "backward_2x": 0.75}
    assert full["cost"]["relative_to_kd"] == {"backward_1x": 1.0, "backward_2x": 1.0}
    last = metrics(tmp_path / "runs" / "kd@random-seed0")[-1]
    assert last["step"] == 12
    # the cosine ends: the last of 12 steps is at 0.05 · (1 + cos(11π/12)) / 2
    assert last["lr"] == pytest.approx(0.05 * (1 - 0.9659258) / 2)
    assert "kd@random" in (tmp_path / "report.html").read_text()


def test_a_misspelt_method_waits_for_nothing(options, tmp_path, capsys):
    words = [{"kd,unix": "kd,unxi"}.get(word, word) for word in options]
    assert call(*words, "--out", tmp_path / "out") == 2
    assert "did you mean 'unix'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Workers


def test_runs_that_are_finished_count_as_done(compared, options, teacher, tmp_path):
    jobs = [job(teacher, tmp_path / str(seed), seed=seed) for seed in range(2)]
    events: list[Event] = []
    assert [result["seed"] for result in run_jobs(jobs, events.append, workers=1)] == [0, 1]
    (tmp_path / "1" / "summary.json").unlink()
    events.clear()
    assert [result["seed"] for result in run_jobs(jobs, events.append, workers=1)] == [1]
    assert [event.run for event in events if isinstance(event, Finished)] == ["0", "1"]
    assert Note("compare", "1 of 2 runs are finished already") in events


@pytest.mark.slow
def test_a_fault_in_a_worker_is_a_clear_error_of_the_command(options, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli_compare, "check_jobs", lambda jobs, note: None)  # would find it before
    broken = tmp_path / "broken"
    shutil.copytree(teacher, broken)
    (broken / "model.safetensors").write_bytes(b"junk")
    words = [broken if word == teacher else word for word in options]
    assert call(*words, "--jobs", 2, "--out", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "model.safetensors" in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") <= 2


def die(_: Job) -> None:
    os._exit(9)


@pytest.mark.slow
def test_a_worker_that_dies_is_reported(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "work", die)
    with pytest.raises(UserError, match="a worker process died"):
        run_jobs([job(teacher, tmp_path / "a"), job(teacher, tmp_path / "b")], lambda event: None, workers=2)


class Gone:
    """A main process that is no more."""

    def join(self) -> None:
        pass


@pytest.mark.parametrize("at_work", [False, True])
def test_a_worker_whose_main_process_is_gone_asks_its_run_to_save_and_ends(at_work, monkeypatch):
    """Idle at once; with a run that does not get to it, after the grace; and what it started ends with it."""
    ends: list[int] = []
    monkeypatch.setattr(compare, "GRACE", 0.01)
    monkeypatch.setattr(compare, "_at_work", lock := threading.Lock())
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setitem(stopping._state, "asked", False)
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    if at_work:
        lock.acquire()
    compare.end_with(Gone())
    assert stopping.asked()
    assert ends == [stopping.EXIT_CODE]
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


def processes_with(mark: str) -> list[int]:
    """Processes whose environment holds this text."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


def until(done: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes to this within the time."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.1)
    return done()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_killing_the_main_process_ends_its_workers_and_frees_their_locks(options, tmp_path):
    words = [*options, "--epochs", 100_000, "--jobs", 2, "--out", tmp_path]
    command = [sys.executable, "-m", "unixkd", *map(str, words)]
    main = subprocess.Popen(command, env=os.environ | {"MARK": str(tmp_path)}, stdout=subprocess.DEVNULL)
    runs = [tmp_path / "runs" / name for name in NAMES[:2]]
    try:
        assert until(lambda: all((folder / "metrics.jsonl").exists() for folder in runs), 120)
        main.kill()
        main.wait()
        assert until(lambda: not processes_with(str(tmp_path)), 30)
    finally:
        main.kill()
        for process in processes_with(str(tmp_path)):
            os.kill(process, signal.SIGKILL)
    for folder in runs:
        with FileLock(folder / ".lock", timeout=0):
            assert newest_state(folder / "checkpoints") is not None  # saved before it ended


class Stub(Executor):
    """Futures that the test itself brings to an end."""

    def __init__(self) -> None:
        self.futures: list[Future] = []

    def submit(self, function, /, *arguments):
        self.futures.append(Future())
        return self.futures[-1]


def test_after_a_failure_no_new_run_starts_and_events_are_still_read():
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    queue.put(Note("first", "at work"))
    pool, events = Stub(), []

    def display(event: Event) -> None:
        events.append(event.text)
        if event.text == "at work":
            assert len(pool.futures) == 2  # one for each worker, the third waits
            pool.futures[1].set_exception(UserError("broken"))
            queue.put(Note("first", "still at work"))
        else:  # the first ends only once its last event is read: giving up at once would wait for ever
            pool.futures[0].set_result({})

    with pytest.raises(UserError, match="broken"):
        run_side_by_side(pool, ["a", "b", "c"], queue, display, workers=2)
    assert events == ["at work", "still at work"]
    assert len(pool.futures) == 2
    queue.close()


# The demo


@pytest.mark.slow
def test_the_demo_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_compare, "DEMO_TEACHER", "resnet14")
    monkeypatch.setattr(cli_compare, "DEMO_METHODS", ("kd", "unix"))
    monkeypatch.setattr(cli_compare, "DEMO_SEEDS", (0,))
    monkeypatch.setattr(cli_compare, "DEMO_TRAIN", TrainConfig(epochs=1, threads=1))
    assert call("demo", "--out", tmp_path, "--jobs", 1) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "runs", "teacher"]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["kd-seed0", "unix-seed0"]
    assert RunFolder(tmp_path / "teacher").is_finished()
    capsys.readouterr()
    assert call("demo", "--out", tmp_path, "--jobs", 1) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out


def test_report_of_a_comparison(compared, tmp_path, capsys):
    assert call("report", compared, "--html", tmp_path / "page.html") == 0
    text = capsys.readouterr().out
    assert "unix" in text
    assert (tmp_path / "page.html").exists()
    assert call("report", tmp_path / "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err
    assert json.loads((compared / "runs" / NAMES[0] / "summary.json").read_text())["schema"] == 1


# A shared store


@pytest.mark.parametrize("fill", ["lazy", pytest.param("epoch", marks=pytest.mark.slow)])
def test_costs_do_not_depend_on_who_filled_the_store(fill, options, tmp_path, monkeypatch):
    """Alone, after the other, and interrupted after the other: the same charges; only the first asks in earnest."""
    words = [{"kd,unix": "kd"}.get(word, word) for word in options]
    words += ["--jobs", 1, "--answers.fill", fill, "--data.views", 2]
    original, steps = Engine.step, []

    def step(engine, *rest):
        steps.append(engine)
        if len(steps) == 6:  # in the second epoch of the first run
            raise KeyboardInterrupt
        return original(engine, *rest)

    def compared(name: str, store: str, seeds: str) -> int:
        return call(
            *words, "--seeds", seeds, "--answers.path", tmp_path / store, "--out", tmp_path / f"{name}-out"
        )

    assert compared("first", "first", "0,1") == 0
    assert compared("second", "second", "1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        assert compared("both", "first", "0,1") == 75
    assert compared("both", "first", "0,1") == 0
    costs = {
        (name, seed): summary(tmp_path / f"{name}-out" / "runs" / f"kd-seed{seed}")["cost"]
        for name, seed in (("first", 0), ("first", 1), ("second", 1), ("both", 0), ("both", 1))
    }
    charges = {key: {**cost, "shared": None} for key, cost in costs.items()}
    assert charges["first", 1] == charges["second", 1] == charges["both", 1]
    assert charges["both", 0] == charges["first", 0]
    images = costs["first", 1]["images"]
    assert (images["teacher_forwarded"], images["teacher_filled"], images["teacher_cached"]) == (
        *(2 * IMAGES, 2 * IMAGES), 2 * IMAGES if fill == "epoch" else 0
    )  # fmt: skip
    ledger = Ledger(
        *[costs["first", 1]["flops"][name] // (2 * IMAGES) for name in ("student_forward", "teacher")]
    )
    whole = ledger.teacher_flops / (ledger.teacher_flops + 3 * ledger.student_flops)
    shared = {key: cost["shared"]["backward_2x"] for key, cost in costs.items()}
    assert shared["first", 0] == shared["second", 1] == 0
    assert shared["first", 1] == shared["both", 0] == shared["both", 1] == pytest.approx(whole)
    assert "of it shared" in (tmp_path / "first-out" / "report.html").read_text()
