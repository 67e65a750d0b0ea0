"""How many threads a run takes: all where they are no slower, one where they are; said, kept, and asked for once.

Nothing is timed here: the clocks are made up, and so is the number of threads.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from running import alone, call, metrics, summary
from unixkd.cli.plan_timing import LEAST, how_timed, planned_pair
from unixkd.config import ModelConfig, RunConfig, TrainConfig
from unixkd.models import create_model
from unixkd.models.loading import build_model
from unixkd.planning.timing import PIXELS, interleaved
from unixkd.training import compare, precision, resolved, threads
from unixkd.training.compare import decide_once
from unixkd.training.display import Note
from unixkd.training.precision import settle_threads
from unixkd.training.run import run
from unixkd.training.threads import LIMIT, SMALL, choose_threads, known_threads, set_threads

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Machine:
    """A machine of so many cores, on which a pass takes what is said: seconds on the wall and of the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: int, **seconds: tuple[float, float]) -> None:
        self.threads, self.wall, self.cpu = cores, 0.0, 0.0
        self.seconds, self.passes = seconds, []
        clock = SimpleNamespace(perf_counter=lambda: self.wall, process_time=lambda: self.cpu)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("unixkd.training.threads.time", clock)
        monkeypatch.setattr("unixkd.planning.timing.time.perf_counter", lambda: self.wall)
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(self, "threads", number))

    def work(self) -> None:
        self.passes.append(self.threads)
        wall, cpu = self.seconds["one" if self.threads == 1 else "every"]
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu


@pytest.mark.parametrize(
    ("one", "every", "chosen"),
    [
        ((0.1, 0.1), (0.055, 0.11), 2),  # a free machine
        ((0.2, 0.1), (0.21, 0.12), 2),  # a busy one, no worse: it may become free
        ((0.1, 0.1), (0.13, 0.12), 1),
        ((0.1, 0.1), (0.095, 0.19), 1),  # twice the work: no gain even on a free machine
        ((0.1, 0.1), (1.0, 1.0), 1),  # they wait for each other in a spin
    ],
)
def test_all_threads_are_taken_unless_one_is_faster(one, every, chosen, monkeypatch):
    machine = Machine(monkeypatch, 2, one=one, every=every)
    notes: list[str] = []
    assert choose_threads(machine.work, notes.append) == chosen
    assert machine.threads == 2  # as it was
    said = (
        f"2 take {every[0] / one[0]:.0%} of the time of one and {every[1] / one[1]:.0%} of its CPU time here"
    )
    assert notes == [f"{chosen} thread{'s' * (chosen > 1)}: {said}"]
    assert machine.wall <= LIMIT + 3 * (one[0] + every[0])


def test_threads_that_cannot_pay_are_asked_once(monkeypatch):
    machine = Machine(monkeypatch, 2, one=(0.1, 0.1), every=(0.5, 0.8))
    assert choose_threads(machine.work) == 1
    assert machine.passes == [1, 2]


def test_a_small_run_pays_a_pass_and_hears_nothing(monkeypatch):
    machine = Machine(monkeypatch, 8, one=(1.0, SMALL / 2), every=(0.0, 0.0))
    assert choose_threads(machine.work, pytest.fail) == 1
    assert machine.passes == [1]


def test_a_failing_pass_leaves_the_threads_as_they_were(monkeypatch):
    machine = Machine(monkeypatch, 2, one=(1.0, 1.0))
    with pytest.raises(KeyError):
        choose_threads(machine.work)
    assert machine.threads == 2


@pytest.mark.parametrize(
    ("wanted", "device", "processes", "known"),
    [
        (3, CPU, 1, 3),
        (None, CPU, 1, None),
        ("auto", CPU, 1, "auto"),
        ("auto", CPU, 2, None),
        ("auto", CUDA, 1, None),
    ],
)
def test_what_needs_no_probe_is_known(wanted, device, processes, known, monkeypatch):
    Machine(monkeypatch, 4)
    assert known_threads(wanted, device, processes) == known


def test_the_users_variable_and_a_single_core_decide_without_a_probe(monkeypatch):
    machine = Machine(monkeypatch, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert known_threads("auto", CPU) == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    machine.threads = 1
    assert known_threads("auto", CPU) == 1
    set_threads(machine.work, CPU, 1.0)
    assert machine.passes == []


def test_evaluation_goes_on_with_the_better_number(monkeypatch):
    machine = Machine(monkeypatch, 4, one=(1.0, 1.0), every=(2.0, 2.0))
    set_threads(machine.work, CPU, 1.0)
    assert machine.threads == 1


def test_a_probe_is_of_what_a_step_computes_and_leaves_both_networks_as_they_were(monkeypatch):
    seen, shares = [], []

    def chosen(call, note, share) -> int:
        call()
        shares.append(share)
        note("2 threads")
        return 2

    def one_pass(network, images, training) -> None:
        seen.append((network.dtype, network.module.training, len(images), training))

    Machine(monkeypatch, 2)
    monkeypatch.setattr(precision, "choose_threads", chosen)
    monkeypatch.setattr(precision, "one_pass", one_pass)
    student, teacher, notes = create_model("resnet8").eval(), create_model("resnet8").train(), []
    wanted = TrainConfig(precision="bf16", teacher_precision="fp32", batch_size=8)
    config = settle_threads(wanted, student, teacher, lambda: torch.zeros(2, 3, 4, 4), CPU, notes.append)
    assert (config.threads, notes, shares) == (2, ["2 threads"], [0.25])
    assert seen == [(torch.bfloat16, True, 2, True), (None, False, 2, False)]
    assert (student.training, teacher.training) == (False, True)


def test_a_short_pass_of_few_images_may_stand_for_a_long_one(monkeypatch):
    machine = Machine(monkeypatch, 4, one=(0.04, 0.04), every=(0.01, 0.04))
    assert choose_threads(machine.work) == 1
    assert choose_threads(machine.work, share=0.25) == 4


# Whole runs


def test_a_probe_draws_nothing_from_a_run(monkeypatch):
    """Dropout draws in each pass of a probe, and how many there are depends on the clock."""

    def drawn_after(passes: int) -> torch.Tensor:
        def decide(built, note, processes) -> RunConfig:
            torch.rand(passes)
            return built.config

        monkeypatch.setattr(resolved, "decide", decide)
        resolved.resolve(alone(), CPU, None, pytest.fail)
        return torch.rand(3)

    assert torch.equal(drawn_after(1), drawn_after(5))


def test_a_run_keeps_its_threads_and_a_resumed_one_does_not_ask_again(tmp_path, monkeypatch):
    def probed(call, note, share) -> int:
        note("one thread it is")
        return 1

    monkeypatch.setattr(precision, "known_threads", lambda wanted, *_: wanted)
    monkeypatch.setattr(precision, "choose_threads", probed)
    events: list[object] = []
    config, folder = alone(epochs=1), tmp_path / "run"
    run(config, folder, display=events.append)
    assert "one thread it is" in [event.text for event in events if isinstance(event, Note)]
    assert yaml.safe_load((folder / "run.yaml").read_text())["train"]["threads"] == 1
    assert summary(folder)["environment"]["threads"] == 1
    first = metrics(folder)
    (folder / "summary.json").unlink()
    monkeypatch.setattr(precision, "choose_threads", pytest.fail)
    run(config, folder, mode="resume")
    assert metrics(folder) == first


def test_null_is_torchs_own_number_as_in_older_runs(tmp_path):
    words = ("--data.limit", 40, "--train.batch_size", 20, "--epochs", 1, "--train.threads", "null")
    assert call("train", "--model", "resnet8", *words, "--out", tmp_path / "run") == 0
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["train"]["threads"] is None


@pytest.mark.parametrize(("workers", "threads"), [(2, 1), (1, 1)])
def test_runs_side_by_side_have_one_thread_each_without_a_probe(workers, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "resolve", pytest.fail)
    base = RunConfig(ModelConfig("resnet8"), train=TrainConfig(device="cpu"))
    decided = decide_once(base, tmp_path, pytest.fail, workers).train
    assert decided.threads == threads


# What plan times


def test_no_round_goes_beyond_the_limit_and_the_first_counts_where_it_is_alone(monkeypatch):
    machine = Machine(monkeypatch, 1, one=(1.0, 1.0))
    for limit, least, rounds in ((0.5, 0, 1), (0.5, 2, 2), (3.5, 0, 2), (99.0, 0, 4)):
        timed = interleaved({"a": machine.work}, 4, CPU, limit=limit, least=least, clock=lambda: machine.wall)
        assert timed == {"a": [1.0] * rounds}


def test_a_planned_pair_is_timed_on_few_images_as_a_run_would_be(monkeypatch, capsys):
    size = {"num_classes": 10, "in_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    teacher, student = (build_model(ModelConfig("resnet8"), **size).train() for _ in range(2))
    pair = planned_pair(teacher, student, 64, 32, timed=True)
    assert (len(pair.batch), pair.scale, pair.student_dtype) == (PIXELS // 32**2, 2.0, None)
    assert how_timed(pair) == "fp32, 1 thread, 32 images at once, 2 × as many taken to take 2 × as long"
    assert "timing steps of 32 images" in capsys.readouterr().err
    large = planned_pair(teacher, student, 64, 96, timed=True)
    assert (len(large.batch), large.scale) == (LEAST, 8.0)
    monkeypatch.setattr(threads, "choose_threads", pytest.fail)
    untimed = planned_pair(teacher, student, 64, 32, timed=False)
    assert (len(untimed.batch), replace(untimed, batch=pair.batch).scale) == (1, 1.0)
    assert not capsys.readouterr().err.endswith("as distill would\n")
