"""Where a run's figures also go: they are those of metrics.jsonl, and no run is another one for them."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from running import DATA, SMALL, alone, call, distilled, everything, make_teacher, metrics, summary
from several import together
from unixkd.config import LogConfig, RunConfig, read_yaml
from unixkd.errors import UserError
from unixkd.training import compare, loggers
from unixkd.training.compare import Job, run_job
from unixkd.training.display import Event, Note
from unixkd.training.engine import Engine
from unixkd.training.run import run

ALL = LogConfig(tensorboard=True, wandb="tests")
EPOCHS, STEPS = 4, 4
"""Of each epoch, so many steps."""

WHERE = {
    **{f"train/{key}": (key,) for key in ("step", "lr", "loss")},
    "train/loss_parts/kd": ("loss_parts", "kd"),
    **{f"evaluation/{key}": (key,) for key in ("accuracy", "agreement", "calibration_error")},
    **{
        f"images/{key}": ("images", key)
        for key in (
            *("scored", "refreshed", "trained", "evaluated"),
            *("teacher_forwarded", "teacher_cached", "teacher_filled"),
        )
    },
    **{f"cost/{key}": ("cost", key) for key in ("backward_1x", "backward_2x")},
    **{f"seconds/{key}": ("seconds", key) for key in ("train", "evaluate")},
    **{
        f"selection/{key}": ("selection", key)
        for key in ("visited", "kept", "distinct", "score_kept", "score_dropped", "hard_kept", "hard_dropped")
    },
}
"""Every figure's name, and where metrics.jsonl has it."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    """unix, evaluated and saved after every second epoch."""
    teacher = make_teacher(tmp_path_factory.mktemp("teacher") / "run")
    return distilled(teacher, epochs=EPOCHS, eval_every=2, checkpoint_every=2)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory) -> Path:
    """The run without any logger."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run(config, folder)
    assert not (folder / "logs").exists()
    return folder


@pytest.fixture(scope="module")
def logged(config, tmp_path_factory) -> Path:
    """The run with all loggers."""
    folder = tmp_path_factory.mktemp("logged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run(config, folder, log=ALL)
    return folder


@pytest.fixture(scope="module")
def resumed(config, tmp_path_factory) -> Path:
    """The same, ended in its last epoch: the third, which was logged but not saved, is trained again."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        end_in_step(patch, 3 * STEPS + 1)
        with pytest.raises(RuntimeError, match="power cut"):
            run(config, folder, log=ALL)
    assert [line["epoch"] for line in metrics(folder)] == [1, 2, 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run(config, folder, mode="resume", log=ALL)
    return folder


def end_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    original = Engine.step

    def step(engine: Engine, *rest: Any) -> Any:
        if engine.distiller.steps == number:
            raise RuntimeError("power cut")
        return original(engine, *rest)

    patch.setattr(Engine, "step", step)


def expected(folder: Path, name: str) -> dict[int, Any]:
    """A figure by epoch, as metrics.jsonl has it."""
    values = {}
    for line in metrics(folder):
        value: Any = line
        for key in WHERE[name]:
            value = value[key]
        values[line["epoch"]] = value
    return values


def measured(folder: Path, name: str) -> dict[int, Any]:
    return {epoch: value for epoch, value in expected(folder, name).items() if value is not None}


def scalars(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0}).Reload()


def steps(folder: Path) -> list[int]:
    """The epochs whose loss TensorBoard shows."""
    return [event.step for event in scalars(folder).Scalars("train/loss")]


def wandb_files(folder: Path) -> list[Path]:
    return sorted((folder / "logs" / "wandb").glob("offline-run-*/run-*.wandb"))


def wandb_records(path: Path) -> Iterator[Any]:
    """What W&B's own file holds: protobuf messages in blocks of 32 KiB, as in LevelDB's log, behind 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            yield Record.FromString(whole)
            whole = b""


def wandb_values(path: Path, part: str) -> list[dict[str, Any]]:
    """The messages of one kind, each as names and values."""
    found = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == part:
            message = getattr(record, part)
            items = message.item if part == "history" else message.update
            found.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return found


@pytest.mark.parametrize("which", ["logged", "resumed"])
def test_tensorboard_reads_what_metrics_jsonl_holds(which, request):
    folder = request.getfixturevalue(which)
    events = scalars(folder)
    for name in WHERE:
        found = {event.step: event.value for event in events.Scalars(name)}
        assert len(found) == len(events.Scalars(name)), f"{name}: an epoch twice"
        assert found == {e: float(np.float32(v)) for e, v in measured(folder, name).items()}, name
    (final,) = events.Scalars("final/accuracy/last")
    assert final.value == np.float32(summary(folder)["accuracy"]["last"])


def test_tensorboard_has_the_configuration_as_hyper_parameters(logged):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = scalars(logged).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["method.name"].string_value == "unix"
    assert given["train.lr"].number_value == 0.05
    assert given["train.clip_norm"].string_value == "None"


def test_wandb_offline_keeps_what_metrics_jsonl_holds(logged):
    (path,) = wandb_files(logged)
    history = {line["_step"]: line for line in wandb_values(path, "history")}
    assert list(history) == [1, 2, 3, 4]
    for name in WHERE:
        assert {s: line[name] for s, line in history.items() if name in line} == measured(logged, name), name
    final = {key: value for update in wandb_values(path, "summary") for key, value in update.items()}
    assert final["final/accuracy/last"] == summary(logged)["accuracy"]["last"]
    (begun,) = [r.run for r in wandb_records(path) if r.WhichOneof("record_type") == "run"]
    settings = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (settings["method.name"], settings["train.lr"], settings["train.clip_norm"]) == (
        "unix",
        0.05,
        None,
    )
    assert (begun.project, begun.display_name) == ("tests", "run")


def test_wandb_goes_on_with_the_same_run(resumed):
    before, after = wandb_files(resumed)
    identity = (resumed / "logs" / "wandb-id").read_text()
    assert before.stem == after.stem == f"run-{identity}"
    first, second = (
        {line["_step"]: line["train/loss"] for line in wandb_values(path, "history")}
        for path in (before, after)
    )
    assert (list(first), list(second)) == ([1, 2, 3], [3, 4])
    assert first | second == measured(resumed, "train/loss")
    assert first[3] == second[3]


def test_a_run_is_the_same_with_loggers_and_without(plain, logged, resumed):
    assert everything(plain) == everything(logged) == everything(resumed)
    assert read_yaml(plain / "run.yaml") == read_yaml(logged / "run.yaml")


def test_a_run_may_be_resumed_with_other_loggers_which_get_all_of_it(config, plain, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        end_in_step(patch, 3 * STEPS + 1)
        with pytest.raises(RuntimeError, match="power cut"):
            run(config, tmp_path, log=LogConfig(wandb="tests"))
    run(config, tmp_path, mode="resume", log=LogConfig(tensorboard=True))
    assert {e.step: e.value for e in scalars(tmp_path).Scalars("train/loss")} == {
        epoch: float(np.float32(value)) for epoch, value in expected(plain, "train/loss").items()
    }
    assert everything(tmp_path) == everything(plain)


class Notes(list[str]):
    """A display that keeps the notes."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.append(event.text)


@pytest.mark.parametrize("when", ["open", "epoch", "finish"])
def test_a_logger_that_fails_is_a_warning_once_and_the_run_is_the_same(
    when, config, plain, tmp_path, monkeypatch
):
    calls = []

    class Failing:
        """In the place of Weights & Biases."""

        def __init__(self, *arguments: Any) -> None:
            self.called("open")

        def epoch(self, record: dict[str, Any]) -> None:
            self.called("epoch")

        def finish(self, summary: dict[str, Any] | None) -> None:
            self.called("finish")

        def called(self, method: str) -> None:
            calls.append(method)
            if method == when and calls.count(method) == (2 if when == "epoch" else 1):
                raise OSError(28, "No space left\non device")

    monkeypatch.setattr(loggers, "WandB", Failing)
    notes = Notes()
    run(config, tmp_path, display=notes, log=ALL)
    assert [note for note in notes if "failed" in note] == [
        "warning: the log for Weights & Biases has failed, the run goes on without it "
        "(OSError: [Errno 28] No space left on device)"
    ]
    assert (
        calls
        == ["open", "epoch", "epoch", "epoch", "epoch", "finish"][
            : {"open": 1, "epoch": 3, "finish": 6}[when]
        ]
    )
    assert everything(tmp_path) == everything(plain)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_a_logger_that_cannot_write_is_a_warning(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    notes = Notes()
    run(alone(epochs=1), tmp_path, display=notes, log=LogConfig(tensorboard=True))
    assert sum("the log for TensorBoard has failed" in note for note in notes) == 1
    assert (tmp_path / "summary.json").exists()


def test_wandb_without_a_key_is_a_warning_and_asks_nothing(tmp_path, monkeypatch):
    import wandb

    wandb.teardown()  # it has read its variables already
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no .netrc
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    notes = Notes()
    run(alone(epochs=1), tmp_path / "run", display=notes, log=LogConfig(wandb="tests"))
    wandb.teardown()
    (warning,) = [note for note in notes if "failed" in note]
    assert "the log for Weights & Biases has failed" in warning
    assert "API key" in warning
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_an_error_before_the_run(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    config = {"tensorboard": LogConfig(tensorboard=True), "wandb": LogConfig(wandb="tests")}[package]
    with pytest.raises(UserError, match=rf"pip install 'unixkd\[{package}\]'"):
        run(alone(), tmp_path / "run", log=config)
    option = (f"--log.{package}", "true")
    words = ("compare", "--teacher", "./nowhere", "--student", "resnet8", "--out", tmp_path / "run", *option)
    assert call(*words) == 1
    assert f"unixkd[{package}]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_overwriting_a_run_removes_its_logs(tmp_path):
    run(alone(epochs=2), tmp_path, log=ALL)
    run(alone(epochs=1), tmp_path, mode="overwrite", log=LogConfig(tensorboard=True))
    assert not wandb_files(tmp_path)
    assert steps(tmp_path) == [1]


def test_every_run_of_a_comparison_logs_into_its_own_folder(config, tmp_path, monkeypatch):
    words = ("compare", "--teacher", config.teacher.name, "--student", "resnet8", "--methods", "kd,random")
    assert (
        call(*words, "--seeds", "0", "--jobs", "1", "--out", tmp_path, "--log.tensorboard", "true", *SMALL)
        == 0
    )
    for name in ("kd-seed0", "random-seed0"):
        folder = tmp_path / "runs" / name
        assert steps(folder) == list(expected(folder, "train/loss"))
    monkeypatch.setattr(compare, "tell", lambda event: None)  # in a worker process
    run_job(Job(alone(epochs=1), tmp_path / "worker", LogConfig(tensorboard=True)))
    assert steps(tmp_path / "worker") == [1]


def test_options_and_files_name_loggers(tmp_path):
    (tmp_path / "log.yaml").write_text("log:\n  tensorboard: true\n")
    words = ("train", "--model", "resnet8", "--data", "digits", *SMALL, "--out", tmp_path / "run")
    assert call(*words, "--config", tmp_path / "log.yaml", "--log.wandb", "tests") == 0
    assert scalars(tmp_path / "run").Scalars("train/loss")[0].step == 1
    assert len(wandb_files(tmp_path / "run")) == 1
    assert "log" not in read_yaml(tmp_path / "run" / "run.yaml")
    assert call(*words, "--resume") == 0  # without any


def log_in_two(folder: str) -> None:
    run(replace(alone(epochs=2), data=DATA), Path(folder), log=LogConfig(tensorboard=True))


@pytest.mark.slow
def test_of_several_processes_the_first_logs(tmp_path):
    together(2, log_in_two, str(tmp_path))
    losses = [event.value for event in scalars(tmp_path).Scalars("train/loss")]
    assert losses == [float(np.float32(line["loss"])) for line in metrics(tmp_path)]
