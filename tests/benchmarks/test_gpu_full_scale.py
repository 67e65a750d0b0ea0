"""benchmarks/gpu/full_scale.py: its protocol, its time limit, what it keeps of a teacher; nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import evidence_contenders
import full_protocol as protocol
import kept
import pieces
import worth
from running import alone
from unixkd.errors import UserError
from unixkd.models import ModelCard, PixelModel, create_model, load_student, save_model
from unixkd.training.compare import Job
from unixkd.training.display import Event, Note, silent
from unixkd.training.run import start
from unixkd.training.run_folder import RunFolder


def contender(name: str) -> evidence_contenders.Contender:
    return next(each for each in protocol.contenders() if each.name == name)


def test_those_who_limit_their_views_have_32_and_a_store() -> None:
    limited = [each for each in protocol.contenders() if each.views is not None]
    assert {each.views for each in limited if ", views" in each.name} == {32}
    assert contender("kd").views is None
    assert not any(each.stored for each in protocol.contenders() if each.views is None)


def test_half_the_epochs_see_the_whole_schedule_and_are_compared_with_all_of_it() -> None:
    config = protocol.student(
        contender("kd, epochs x0.5"), protocol.PAIRS["wrn_40_2-wrn_16_2"], 3, protocol.FULL
    )
    assert (config.train.epochs, config.reference_epochs, config.train.seed) == (120, 240, 3)
    assert [point * config.train.epochs for point in config.train.milestones] == [75, 90, 105]


def test_small_students_have_a_smaller_learning_rate_than_their_teachers() -> None:
    pair = protocol.PAIRS["wrn_40_2-ShuffleV1"]
    assert protocol.student(contender("unix"), pair, 0, protocol.FULL).train.lr == 0.01
    assert protocol.teacher(pair, protocol.FULL).train.lr == 0.05


@dataclass
class Slow:
    """Stands in for a run: three steps of a second in each of six epochs, of which every second one is saved."""

    now: float = 0.0
    epoch: int = 0
    name: str = "slow"
    notes: list[str] = field(default_factory=list)
    config: Any = field(
        default_factory=lambda: SimpleNamespace(train=SimpleNamespace(epochs=6, checkpoint_every=2))
    )

    def display(self, event: Event) -> None:
        assert isinstance(event, Note)
        self.notes.append(event.text)


def steps(run: Slow) -> Iterator[None]:
    for _ in range(3):
        run.now += 1
        yield


def end(run: Slow) -> None:
    run.epoch += 1


def go(run: Slow, pace: pieces.Pace, monkeypatch: pytest.MonkeyPatch) -> bool:
    for name, instead in (("write_results", lambda run: None), ("epoch_steps", steps), ("end_epoch", end)):
        monkeypatch.setattr(pieces, name, instead)
    return pieces.run_all([pieces.Task(lambda: run)], pace)[0]  # type: ignore[list-item,return-value]


@pytest.mark.parametrize(
    ("seconds", "finished", "epoch", "now", "notes"),
    [
        (30, True, 6, 18, []),
        (18, False, 4, 12, ["stopped after 4 of 6 epochs"]),  # the next checkpoint would come at 19
        (10, False, 2, 6, ["stopped after 2 of 6 epochs"]),
        (5, False, 1, 5, ["stopped after 0 of 6 epochs, 1 epochs and a part of one are lost"]),
    ],
)
def test_a_run_stops_at_the_last_checkpoint_it_can_reach(
    seconds: float, finished: bool, epoch: int, now: float, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Slow()
    assert go(run, pieces.Pace(seconds, lambda: run.now), monkeypatch) is finished
    assert (run.epoch, run.now, run.notes) == (epoch, now, notes)


def test_no_run_begins_that_would_not_reach_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Slow(), Slow()
    pace = pieces.Pace(10, lambda: first.now)
    assert not go(first, pace, monkeypatch)
    assert not go(second, pace, monkeypatch)
    assert second.now == 0


def test_a_run_that_fails_does_not_stop_the_next() -> None:
    pace = pieces.Pace(10, lambda: 0.0)

    def fail() -> Any:
        raise UserError("the loss is not finite")

    assert pieces.run_all([pieces.Task(fail)] * 2, pace) == [False, False]
    assert pace.failures == ["the loss is not finite"] * 2


def test_runs_take_turns_and_a_student_waits_for_its_teacher() -> None:
    """Two at once: the second student begins when the teacher has come to its end, after the first to be ready."""
    turns, pace = list[str](), pieces.Pace(100, lambda: 0.0)

    def task(name: str, steps: int, ready: Callable[[], bool] = lambda: True) -> pieces.Task:
        def begin() -> Any:
            if steps == 0:
                raise RuntimeError("out of memory\nfor a reason")
            return SimpleNamespace(name=name, epoch=0, config=Slow().config, steps=steps)

        return pieces.Task(begin, ready, lambda: turns.append(f"{name} ended"))

    def take(run: Any) -> Iterator[None]:
        for _ in range(run.steps):
            turns.append(run.name)
            yield

    def end(run: Any) -> None:
        run.epoch = 6

    with pytest.MonkeyPatch.context() as patch:
        for name, instead in (("write_results", lambda run: None), ("epoch_steps", take), ("end_epoch", end)):
            patch.setattr(pieces, name, instead)
        tasks = [
            task("teacher", 2),
            task("student", 1, lambda: "teacher ended" in turns),
            task("other", 3),
            task("broken", 0),
            task("never", 1, lambda: False),
        ]
        assert pieces.run_all(tasks, pace, at_once=2) == [True, True, True, False, False]
    rounds = [
        "teacher, other",
        "teacher, other",
        "teacher ended, other",
        "other ended, student",
        "student ended",
    ]
    assert turns == ", ".join(rounds).split(", ")
    assert pace.failures == ["RuntimeError: out of memory"]


def test_a_run_that_takes_turns_is_the_run_alone(tmp_path: Path) -> None:
    """Same weights to the bit: no run draws from what another one draws from, or sets what another one reads."""
    weights = []
    for at_once in (1, 2):
        runs = list[Any]()

        def begin(seed: int, folder: Path, runs: list[Any] = runs) -> Any:
            config = alone(epochs=1, seed=seed)
            config = replace(config, data=replace(config.data, limit=64))
            runs.append(start(config, RunFolder(folder), "new", silent))
            return runs[-1]

        folders = [(seed, tmp_path / f"{at_once}-{seed}") for seed in (0, 1)]
        tasks = [pieces.Task(partial(begin, seed, folder)) for seed, folder in folders]
        assert pieces.run_all(tasks, pieces.Pace(1000), at_once) == [True, True]
        weights.append([load_file(folder / "model.safetensors") for _, folder in folders])
        torch.set_flush_denormal(False)
    for one, other in zip(*weights, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(weights[0][0]["fc.weight"], weights[0][1]["fc.weight"])


def missing(pairs: list[str], names: list[str], seeds: list[int]) -> list[tuple[str, Job]]:
    return [
        (pair, Job(protocol.student(contender(name), protocol.PAIRS[pair], seed, protocol.FULL), Path()))
        for seed in seeds
        for name in names
        for pair in pairs
    ]


def test_the_run_that_adds_most_for_its_work_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 1 (small), 4 (its unix: 3) and 10 FLOPs; a teacher that is not there costs 12 for all its students."""
    cheap, dear = "resnet56-resnet20", "wrn_40_2-wrn_16_2"
    flops = {"resnet20": 1, "wrn_16_2": 4, "resnet56": 1, "wrn_40_2": 12}
    monkeypatch.setattr(worth, "step_flops", lambda student, teacher, method: flops[student])
    runs = missing([cheap, dear], ["kd", "random"], [0, 1])
    assert [
        (pair, job.config.label, job.config.train.seed) for pair, job in worth.by_worth(runs, [0, 1], {})
    ] == [
        (cheap, "kd", 0),  # 1
        (cheap, "random", 0),  # 1/2
        (cheap, "kd", 1),  # 1/2
        (dear, "kd", 0),  # 1/4
        (cheap, "random", 1),  # 1/4
        (dear, "random", 0),  # 1/8
        (dear, "kd", 1),  # 1/8
        (dear, "random", 1),  # 1/16
    ]
    teacher = {"wrn_40_2": protocol.teacher(protocol.PAIRS[dear], protocol.FULL)}
    order = [pair for pair, _ in worth.by_worth(runs, [0, 1], teacher)]
    assert order == [cheap] * 4 + [dear] * 4  # 4 and half of 12: 1/10, 1/20, 1/20, 1/40


def finished_teacher(folder: Path) -> PixelModel:
    """A run folder of an untrained network."""
    torch.manual_seed(0)
    model = PixelModel(create_model("resnet8", 5), ModelCard("resnet8", 5, 3, (0.5,) * 3, (0.25,) * 3))
    save_model(model, folder)
    summary = {"epochs": 240, "seed": 0, "accuracy": {"last": 0.5, "best": 0.75}}
    environment = {"precision": "bf16", "device": "none"}
    (folder / "summary.json").write_text(json.dumps({**summary, "environment": environment}))
    return model


def test_a_published_teacher_loads_with_rounded_layers(tmp_path: Path) -> None:
    model = finished_teacher(tmp_path / "run")
    kept.publish_teacher(tmp_path / "run", tmp_path / "resnet8", "a command")
    kept.check_teacher(tmp_path / "resnet8")
    loaded = load_student(tmp_path / "resnet8").net.state_dict()
    for name, value in model.net.state_dict().items():
        expected = value.half().float() if name.endswith("weight") and value.ndim > 1 else value
        assert torch.equal(loaded[name], expected), name
    assert load_file(tmp_path / "resnet8" / "model.safetensors")["conv1.weight"].dtype == torch.float16
    assert "| 75.00% |" in (tmp_path / "resnet8" / "README.md").read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "SHA256SUMS"])
def test_a_published_teacher_with_a_changed_file_is_refused(name: str, tmp_path: Path) -> None:
    finished_teacher(tmp_path / "run")
    kept.publish_teacher(tmp_path / "run", tmp_path / "resnet8", "a command")
    file = tmp_path / "resnet8" / name
    file.write_bytes(file.read_bytes()[:-1] + b"?" if name != "SHA256SUMS" else b"")
    with pytest.raises(UserError, match="resnet8"):
        kept.check_teacher(tmp_path / "resnet8")


def test_weights_too_large_for_fp16_are_not_published() -> None:
    with pytest.raises(UserError, match=r"fc\.weight"):
        kept.round_weights({"fc.weight": torch.full((2, 2), 1e5), "bn.running_var": torch.full((2,), 1e5)})
