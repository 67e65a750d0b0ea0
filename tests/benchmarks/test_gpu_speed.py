"""benchmarks/gpu/speed.py on a CPU: its arithmetic by hand, its judgement, its order and time limit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import floor
import measure
import speed
from cases import Case, make_split
from runs import Run, rehearse, reproducible
from unixkd.method.unix import kd, unix

SMALL = replace(speed.QUICK, images=56, check_steps=2, side_by_side=3)
"""Three steps of 16 images and one of 8."""
UNIX = Case("resnet8", "resnet8", "unix", "fp32", 16)


def network() -> nn.Sequential:
    """For images of 2 × 2 pixels: 3·3·2 weights and 2 biases, then 8·5 weights and 5 biases."""
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))


def test_a_networks_sizes_by_hand() -> None:
    found = floor.Network(network(), (1, 2, 2))
    assert found.flops == 2 * (2 * 4 * 9 + 8 * 5)
    assert found.outputs == 2 * 4 + 5
    assert found.weights == 20 + 45


def test_a_steps_work_by_hand() -> None:
    """UNIX on 8 images: 8 scored, 6 asked, 6 trained (1 forward, a backward of 2)."""
    one = floor.Network(network(), (1, 2, 2))
    work = floor.step_work(one, one, unix().counts(8, 8), value_bytes=2)
    assert work.flops == (8 + 6 + 3 * 6) * one.flops
    activations = 2 * 2 * 13 * (8 + 6 + 3 * 6)
    weights = 65 * 4 * (1 + 1 + 2) + 65 * 24
    assert work.traffic == activations + weights


def test_plain_kd_does_not_pay_for_scoring() -> None:
    one = floor.Network(network(), (1, 2, 2))
    work = floor.step_work(one, one, kd().counts(8, 8), value_bytes=4)
    assert work.flops == (8 + 3 * 8) * one.flops
    assert work.traffic == 2 * 4 * 13 * 32 + 65 * 4 * 3 + 65 * 24


def test_the_floor_is_the_slower_of_arithmetic_and_traffic() -> None:
    chip = floor.Chip({"bf16": 1e12}, bandwidth=1e9)
    found = floor.Work(flops=2 * 10**9, traffic=5 * 10**6).floor(chip, "bf16")
    assert (found["arithmetic_ms"], found["traffic_ms"], found["floor_ms"]) == pytest.approx((2, 5, 5))


def test_an_unknown_chip_has_no_floor() -> None:
    found = floor.Work(flops=1, traffic=1).floor(floor.CHIPS.get("NVIDIA T4"), "bf16")
    assert found == {"flops": 1, "bytes": 1, "arithmetic_ms": None, "traffic_ms": None, "floor_ms": None}


@pytest.mark.parametrize(
    ("found", "control", "weights", "passed"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.2, 4.4], 0.0, True),
        ([1.0, 2.0, 4.8], [1.0, 2.2, 4.4], 0.0, True),  # one step in three: the median stands
        ([1.0, 2.2, 4.4], [1.0, 2.2, 4.4], 0.0, False),
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.4], 0.0, False),  # a control that agrees shows nothing
        ([1.0, 2.0, 4.0], [1.0, 2.2, 4.4], 0.02, False),
        ([1.0, 2.0, 4.0], [1.0, 2.2, 4.4], float("nan"), False),
        ([float("nan")] * 3, [1.0, 2.2, 4.4], 0.0, False),
    ],
)
def test_judgement(found: list[float], control: list[float], weights: float, passed: bool) -> None:
    expected = torch.tensor([1.0, 2.0, 4.0])
    verdict = measure.judge(expected, torch.tensor(found), torch.tensor(control), weights, tolerance=0.01)
    assert verdict["passed"] == passed


def test_judgement_names_the_first_different_step() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0])
    verdict = measure.judge(losses, torch.tensor([1.0, 2.1, 4.0]), 2 * losses, 0.0, tolerance=0.1)
    assert (verdict["equal"], verdict["first_different_step"]) == (False, 1)
    same = measure.judge(losses, losses, 2 * losses, 0.0, tolerance=0.1)
    assert (same["equal"], same["first_different_step"]) == (True, None)


def test_weights_and_buffers_are_compared() -> None:
    a, b = (nn.BatchNorm1d(2) for _ in range(2))
    a.num_batches_tracked.fill_(99)  # would outweigh everything
    assert measure.weight_difference(a, b) == 0
    b.running_mean.fill_(1.0)
    assert measure.weight_difference(a, b) == pytest.approx((2 / 4) ** 0.5)  # weight 1, 1; variance 1, 1


@pytest.fixture(scope="module")
def bench() -> measure.Bench:
    return measure.Bench(SMALL)


@pytest.mark.parametrize("method", ["unix", "kd"])
def test_a_recorded_run_is_the_eager_one_and_a_late_one_is_not(bench: measure.Bench, method: str) -> None:
    found = bench.measure("check", replace(UNIX, method=method))
    assert found["equal"]
    assert found["passed"]
    assert found["control_difference"] > found["tolerance"]


def test_a_run_with_another_learning_rate_is_found(
    bench: measure.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unixkd.training.optimizer.learning_rate", lambda *_: 0.5)
    eager = Run(SMALL, bench.split, UNIX, graph=False)
    expected = eager.losses(3)
    monkeypatch.undo()
    captured = Run(SMALL, bench.split, UNIX, graph=True)
    weights = measure.weight_difference(eager.student, captured.student)
    assert not measure.judge(expected, captured.losses(3), 2 * expected, weights, 5e-3)["passed"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("single", ["eager", "graph", "graph_benchmark"]),
        ("side_by_side", ["1_run", "3_runs"]),
        ("stored", ["asked", "stored"]),
        ("ema", ["graph", "graph_ema"]),
    ],
)
def test_timed_stages_have_all_figures(bench: measure.Bench, kind: str, names: list[str]) -> None:
    found = bench.measure(kind, replace(UNIX, method="kd"))
    assert list(found["contenders"]) == names
    for name, figures in found["contenders"].items():
        runs = 3 if name == "3_runs" else 1
        assert figures["images_per_second"] * figures["ms_per_step"] == pytest.approx(1e3 * runs * 16)
        assert figures["mfu"] is None
    assert set(found[f"{names[0]}_over"]) == set(names[1:])
    json.dumps(found)


def test_photos_are_timed_eager_and_captured_however_they_are_held(bench: measure.Bench) -> None:
    found = bench.measure("photos", replace(UNIX, method="kd", batch_size=8))
    held = ("in_memory", "kept", "decoded")
    assert list(found["contenders"]) == [f"{how}_{step}" for step in ("eager", "graph") for how in held]
    assert {name: list(each) for name, each in found.items() if name.endswith("_over")} == {
        "in_memory_eager_over": ["in_memory_graph"],
        "kept_eager_over": ["kept_graph"],
        "decoded_eager_over": ["decoded_graph"],
        "in_memory_graph_over": ["kept_graph", "decoded_graph"],
    }


def test_mfu_and_floor_of_a_known_chip(bench: measure.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that take 4 ms together, where one would take 0.5 ms of arithmetic and 1 ms of traffic."""
    work = floor.Work(flops=10**9, traffic=2 * 10**9)
    monkeypatch.setattr(bench, "work", lambda _case: work)
    monkeypatch.setattr(bench, "chip", floor.Chip({"tf32": 2e12}, bandwidth=2e12))
    found = bench.figures(UNIX, measure.Samples([0.004] * 3, [0.004] * 3), runs=2)
    assert (found["ms_per_step"], found["mfu"], found["over_floor"]) == pytest.approx((4, 0.25, 2))


def test_runs_with_other_seeds_take_other_steps(bench: measure.Bench) -> None:
    a, b = (Run(SMALL, bench.split, UNIX, graph=True, seed=seed).losses(3) for seed in (0, 1))
    assert not torch.equal(a, b)


def test_a_refused_capture_is_an_error(bench: measure.Bench) -> None:
    def refuse(_body: object) -> Any:
        raise RuntimeError("no graphs today")

    with pytest.raises(RuntimeError, match=r"nothing was captured: .*no graphs today"):
        Run(replace(SMALL, record=refuse), bench.split, UNIX, graph=True).set_up()


def test_settings_are_as_before_after_a_comparison() -> None:
    cudnn = torch.backends.cudnn
    before = (cudnn.allow_tf32, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    with reproducible():
        assert (cudnn.allow_tf32, cudnn.deterministic) == (False, True)
        assert torch.are_deterministic_algorithms_enabled()
    after = (cudnn.allow_tf32, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    assert after == before


def test_images_differ_and_are_the_same_every_time() -> None:
    images = make_split(SMALL).images
    assert torch.equal(images, make_split(SMALL).images)
    assert images.shape == (56, 8, 8, 3)
    assert len(images.flatten(1).unique(dim=0)) == 56
    assert torch.equal(images[:, ::2, ::2], images[:, 1::2, 1::2])  # blocks of 2 × 2 pixels


def test_the_stand_in_repeats_the_step() -> None:
    calls: list[int] = []
    replay = rehearse(lambda: calls.append(1))
    warm = len(calls)
    replay()
    assert len(calls) == warm + 1


class Clock:
    """A clock that moves when something is measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def take(seconds: Iterator[float], minutes: float, **expected: float) -> tuple[dict[str, Any], list[str]]:
    """The figures of a full plan whose stages take so long, and what was saved after each."""
    clock, saved = Clock(), list[str]()

    def measured(kind: str, _case: Case) -> dict[str, Any]:
        clock.now += next(seconds)
        if kind == "check":
            return {"passed": True, "equal": True}
        return {"contenders": {"graph": {"ms_per_step": 1.0}}}

    stages = speed.plan(speed.FULL)
    figures = speed.take_stages(
        stages, measured, lambda f: saved.append(json.dumps(f)), minutes, expected, clock
    )
    return figures, saved


def test_the_most_important_comes_first() -> None:
    kinds = [kind for kind, _ in speed.plan(speed.FULL)]
    assert kinds[:18] == ["check"] * 12 + ["single"] * 6
    assert kinds[18:21] == ["side_by_side"] * 3
    assert kinds[-12:] == ["compile"] * 12
    assert len(set(speed.plan(speed.FULL))) == len(kinds)


def test_everything_is_measured_and_saved_where_there_is_time() -> None:
    figures, saved = take(iter(lambda: 1.0, None), minutes=10)
    assert figures["left_out"] == []
    assert figures["seconds"] == len(saved) == len(speed.plan(speed.FULL))
    assert len(json.loads(saved[11])["check"]) == 12
    assert json.loads(saved[11])["single"] == {}


def test_what_was_measured_is_not_measured_again_unless_it_failed(tmp_path: Path) -> None:
    stages = speed.plan(speed.QUICK)[:3]
    names = [str(case) for _, case in stages]
    before = {"check": {names[0]: {"passed": True}, names[1]: {"error": "MemoryError"}}}
    measured = list[str]()

    def measure_one(_kind: str, case: Case) -> dict[str, Any]:
        measured.append(str(case))
        return {"passed": True, "equal": True}

    figures = speed.take_stages(stages, measure_one, lambda _: None, 1, {}, before=before)
    assert measured == names[1:]
    assert speed.reached(figures, stages, known=False)
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"device": "NVIDIA H200", **before, "left_out": []}))
    assert speed.measured_before(file, {"device": "NVIDIA H200"}) == before
    assert speed.measured_before(file, {"device": "NVIDIA H100"}) == {}


def test_no_stage_begins_that_would_end_too_late() -> None:
    """12 checks of 10 s, then singles of 20 s until 5 minutes are over; compiling is not even tried."""
    times = iter([10.0] * 12 + [20.0] * 100)
    figures, _ = take(times, minutes=5, compile=120)
    assert len(figures["check"]) == 12
    assert len(figures["single"]) + len(figures["side_by_side"]) == 9
    assert figures["compile"] == {}
    assert figures["seconds"] == 300
    assert len(figures["left_out"]) == len(speed.plan(speed.FULL)) - 21


def test_a_stage_that_fails_does_not_stop_the_rest() -> None:
    stages = speed.plan(speed.QUICK)[:3]

    def measured(_kind: str, case: Case) -> dict[str, Any]:
        if case == stages[1][1]:
            raise MemoryError("too large")
        return {"passed": True, "equal": True}

    figures = speed.take_stages(stages, measured, lambda _: None, 1, {})
    found = list(figures["check"].values())
    assert [f.get("error") for f in found] == [None, "MemoryError: too large", None]
    assert not speed.reached(figures, stages, known=False)


@pytest.mark.parametrize(
    ("change", "known", "passed"),
    [
        ({}, True, True),
        ({"ms": 1.9}, True, False),
        ({"ms": 1.9}, False, True),
        ({"passed": False}, False, False),
        ({"checks": 11}, False, False),
    ],
)
def test_the_target(change: dict[str, Any], known: bool, passed: bool) -> None:
    stages = speed.plan(speed.FULL)
    figures: dict[str, Any] = {kind: {} for kind, _ in stages}
    for kind, case in stages:
        if kind == "check" and len(figures["check"]) < change.get("checks", 12):
            figures["check"][str(case)] = {"passed": change.get("passed", True)}
        if kind == "single":
            usual = case.precision == "bf16" and case.batch_size == 64
            ms = change.get("ms", 1.8) if usual else 9.0
            figures["single"][str(case)] = {"contenders": {"graph": {"ms_per_step": ms}}}
    assert speed.reached(figures, stages, known=known) == passed
