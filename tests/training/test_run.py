"""Training runs on the digits: files, figures, seeds, resume, and every option that training has."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from running import (
    BATCH,
    IMAGES,
    SMALL,
    TEST_IMAGES,
    alone,
    call,
    distilled,
    everything,
    make_teacher,
    metrics,
    model_bytes,
    summary,
    untimed,
    weights,
)
from unixkd.config import LossConfig, MethodConfig, RunConfig
from unixkd.data import load_data
from unixkd.errors import UserError
from unixkd.method.epoch_choice import History
from unixkd.method.flops import forward_flops
from unixkd.method.step import StepResult
from unixkd.models import create_model, load_model
from unixkd.training import resume
from unixkd.training.display import Event, Note
from unixkd.training.engine import Engine
from unixkd.training.predictions import predict
from unixkd.training.resolved import build_student
from unixkd.training.run import run
from unixkd.training.state import Run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def unix_run(teacher, tmp_path_factory) -> Path:
    """Two epochs of unix; batches of 32, 32, 32, 4 keep 24, 24, 24, 4."""
    folder = tmp_path_factory.mktemp("unix") / "run"
    run(distilled(teacher), folder)
    return folder


KEPT = 3 * 24 + 4
STUDENT, TEACHER = (
    forward_flops(create_model(name, num_classes=10, in_channels=1), (1, 8, 8))
    for name in ("resnet8", "resnet14")
)


def relative(scored: int, asked: int, trained: int, reference: int) -> dict[str, float]:
    """Cost over plain KD's by the definition, once with a backward of one forward and once of two."""
    own = [scored * STUDENT + asked * TEACHER + (1 + b) * trained * STUDENT for b in (1, 2)]
    kd = [reference * (TEACHER + (1 + b) * STUDENT) for b in (1, 2)]
    return dict(
        zip(("backward_1x", "backward_2x"), (a / b for a, b in zip(own, kd, strict=True)), strict=True)
    )


# What a run leaves behind


def test_the_files_of_a_run(unix_run, teacher):
    names = [
        ".lock",
        "checkpoints",
        "checksums.json",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "run.yaml",
        "summary.json",
    ]
    assert sorted(p.name for p in teacher.iterdir()) == names
    assert sorted(p.name for p in unix_run.iterdir()) == sorted(
        [*names, "disagreements.json", "plan.json", "selection.json"]
    )
    assert sorted(p.name for p in (unix_run / "checkpoints").iterdir()) == ["epoch-00001", "epoch-00002"]


def types(value: Any) -> Any:
    return {k: types(v) for k, v in value.items()} if isinstance(value, dict) else type(value)


def test_the_summary_has_exactly_the_documented_fields(unix_run):
    counts = dict.fromkeys(
        (
            *("scored", "refreshed", "trained", "evaluated"),
            *("teacher_forwarded", "teacher_cached", "teacher_filled"),
        ),
        int,
    )
    assert types(summary(unix_run)) == {
        **dict.fromkeys(("schema", "seed", "epochs", "parameters"), int),
        "method": str,
        "accuracy": dict.fromkeys(("last", "best", "teacher"), float),
        "agreement": float,
        "calibration_error": float,
        "cost": {
            "images": counts,
            "flops": dict.fromkeys(("scoring", "refresh", "teacher", "student_forward", "evaluation"), int),
            "reference": {"epochs": int, "images": int},
            "relative_to_kd": {"backward_1x": float, "backward_2x": float},
        },
        "time": dict.fromkeys(
            ("setup_seconds", "train_seconds", "evaluate_seconds", "teacher_seconds"), float
        ),
        "environment": {
            **dict.fromkeys(("torch", "device", "precision", "python", "processor"), str),
            "threads": int,
            "processes": int,
        },
    }


def test_the_figures_of_a_unix_run_by_hand(unix_run, teacher):
    result = summary(unix_run)
    assert (result["schema"], result["method"], result["seed"], result["epochs"]) == (1, "unix", 0, 2)
    assert result["parameters"] == 77754
    assert result["cost"]["images"] == {
        "scored": 2 * IMAGES,
        "refreshed": 0,
        "teacher_forwarded": 2 * KEPT,
        "teacher_cached": 0,
        "teacher_filled": 0,
        "trained": 2 * KEPT,
        "evaluated": 2 * TEST_IMAGES,
    }
    assert result["cost"]["flops"] == {
        "scoring": 2 * IMAGES * STUDENT,
        "refresh": 0,
        "teacher": 2 * KEPT * TEACHER,
        "student_forward": 2 * KEPT * STUDENT,
        "evaluation": 2 * TEST_IMAGES * STUDENT + TEST_IMAGES * TEACHER,
    }
    assert result["cost"]["reference"] == {"epochs": 2, "images": IMAGES}
    assert result["cost"]["relative_to_kd"] == pytest.approx(
        relative(2 * IMAGES, 2 * KEPT, 2 * KEPT, 2 * IMAGES)
    )
    accuracies = [line["accuracy"] for line in metrics(unix_run)]
    assert result["accuracy"]["last"] == accuracies[-1]
    assert result["accuracy"]["best"] == max(accuracies)
    assert result["accuracy"]["teacher"] == summary(teacher)["accuracy"]["last"]
    assert result["environment"]["precision"] == "fp32"
    assert all(seconds > 0 for seconds in result["time"].values())


def test_accuracy_and_agreement_are_those_of_the_saved_models(unix_run, teacher):
    test = load_data(distilled(teacher).data).test
    ours, theirs = (predict(load_model(folder), test.eval_batches(100)) for folder in (unix_run, teacher))
    result = summary(unix_run)
    assert result["accuracy"]["last"] == (ours.classes == test.labels).double().mean().item()
    assert result["agreement"] == (ours.classes == theirs.classes).double().mean().item()
    assert result["calibration_error"] == pytest.approx(ours.calibration_error, abs=1e-9)


def test_a_line_of_metrics_for_each_epoch(unix_run):
    first, second = metrics(unix_run)
    assert (first["epoch"], first["step"], second["epoch"], second["step"]) == (1, 4, 2, 8)
    # a cosine over 8 steps from 0.05, at the last step of each epoch: cos(3π/8), cos(7π/8)
    assert first["lr"] == pytest.approx(0.05 * (1 + 0.3826834) / 2)
    assert second["lr"] == pytest.approx(0.05 * (1 - 0.9238795) / 2)
    assert first["loss"] == pytest.approx(first["loss_parts"]["kd"])
    assert list(first["loss_parts"]) == ["kd"]
    assert first["images"]["trained"] == KEPT
    assert second["images"] == summary(unix_run)["cost"]["images"]
    assert first["cost"] == pytest.approx(relative(IMAGES, KEPT, KEPT, 2 * IMAGES))
    assert second["cost"] == summary(unix_run)["cost"]["relative_to_kd"]
    assert first["selection"]["kept"] == KEPT / IMAGES
    assert 0 < first["selection"]["distinct"] <= KEPT / IMAGES
    assert first["selection"]["score_kept"] > first["selection"]["score_dropped"]
    for line in (first, second):
        bins = line["selection"]["histogram"]
        assert (sum(bins["kept"]), sum(bins["dropped"])) == (KEPT, IMAGES - KEPT)
        assert sum(bins["kept_hard"]) == pytest.approx(line["selection"]["hard_kept"] * KEPT)
        assert sum(bins["dropped_hard"]) == pytest.approx(line["selection"]["hard_dropped"] * (IMAGES - KEPT))
    assert first["seconds"]["train"] <= second["seconds"]["train"]


def test_selection_counts_every_kept_row(unix_run):
    chosen = json.loads((unix_run / "selection.json").read_text())
    times, images = chosen["histogram"]["times_kept"], chosen["histogram"]["images"]
    assert chosen["epochs"] == 2
    assert times == [0, 1, 2]
    assert sum(images) == IMAGES
    assert sum(t * n for t, n in zip(times, images, strict=True)) == 2 * KEPT
    assert len(chosen["most_kept"]) == len(chosen["least_kept"]) == 16
    assert all(entry["times"] == 2 for entry in chosen["most_kept"])
    assert chosen["least_kept"][0]["times"] == min(t for t, n in zip(times, images, strict=True) if n)
    data = load_data(distilled(Path("unused")).data)
    mixed = [entry["mixed"] for entry in chosen["most_mixed"]]
    assert len(mixed) == 16
    assert mixed == sorted(mixed, reverse=True)
    assert all(0 < entry["mixed"] < entry["times"] for entry in chosen["most_mixed"])
    assert all(0 <= entry["mixed"] <= mixed[0] for entry in chosen["most_kept"] + chosen["least_kept"])
    entry = chosen["most_kept"][0]
    assert entry["label"] == str(int(data.train.labels[entry["index"]]))
    picture = Image.open(io.BytesIO(base64.b64decode(entry["png"])))
    assert picture.size == (8, 8)
    assert (np.asarray(picture) == data.train.image(entry["index"])[..., 0]).all()


def test_a_teachers_run_has_no_cost_relative_to_kd(teacher):
    result, (first, *_) = summary(teacher), metrics(teacher)
    assert result["method"] == "student-alone"
    assert result["cost"]["relative_to_kd"] is None
    assert result["accuracy"]["teacher"] is None
    assert result["agreement"] is None
    assert result["cost"]["flops"] == {
        "scoring": 0,
        "refresh": 0,
        "teacher": 0,
        "student_forward": 3 * IMAGES * TEACHER,
        "evaluation": 3 * TEST_IMAGES * TEACHER,
    }
    assert first["cost"] is first["selection"] is first["agreement"] is None


def test_plain_kd_costs_exactly_itself_and_half_of_a_twice_as_long_run(teacher, tmp_path):
    result = run(distilled(teacher, "kd"), tmp_path / "kd")
    assert result["cost"]["relative_to_kd"] == {"backward_1x": 1.0, "backward_2x": 1.0}
    assert not (tmp_path / "kd" / "selection.json").exists()
    longer = replace(distilled(teacher, "kd"), reference_epochs=4, label="short kd")
    result = run(longer, tmp_path / "short")
    assert result["method"] == "short kd"
    assert result["cost"]["reference"] == {"epochs": 4, "images": IMAGES}
    assert result["cost"]["relative_to_kd"] == {"backward_1x": 0.5, "backward_2x": 0.5}
    words = ("--config", tmp_path / "kd" / "run.yaml", "--reference_epochs", 4, "--label", "short kd")
    assert call("distill", *words, "--out", tmp_path / "command") == 0
    assert everything(tmp_path / "command") == everything(tmp_path / "short")


# Seeds


def test_the_same_configuration_gives_the_same_run_and_another_seed_another(unix_run, teacher, tmp_path):
    run(distilled(teacher), tmp_path / "again")
    assert everything(tmp_path / "again") == everything(unix_run)
    run(distilled(teacher, seed=1), tmp_path / "other")
    assert model_bytes(tmp_path / "other") != model_bytes(unix_run)
    assert metrics(tmp_path / "other")[0]["loss"] != metrics(unix_run)[0]["loss"]


def test_the_run_yaml_of_a_finished_run_reproduces_it(unix_run, teacher, tmp_path):
    for command, folder in (("distill", unix_run), ("train", teacher)):
        assert call(command, "--config", folder / "run.yaml", "--out", tmp_path / command) == 0
        assert everything(tmp_path / command) == everything(folder)
        assert (tmp_path / command / "run.yaml").read_text() == (folder / "run.yaml").read_text()


def test_what_happened_before_in_the_process_does_not_matter(teacher, unix_run, tmp_path):
    torch.manual_seed(12345)
    torch.rand(7)
    run(distilled(teacher), tmp_path / "run")
    assert model_bytes(tmp_path / "run") == model_bytes(unix_run)


# Resume


class Stop:
    """A Ctrl-C before a step of the whole run, counted from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        original = Engine.step

        def step(engine: Engine, *rest: Any) -> StepResult:
            if engine.distiller.steps == at:
                raise KeyboardInterrupt
            return original(engine, *rest)

        monkeypatch.setattr(Engine, "step", step)


def stop_and_resume(config: RunConfig, folder: Path, *steps: int) -> list[Event]:
    """Interrupt before each of the steps, then let it finish; the events of the last part."""
    mode = "new"
    for step in steps:
        with pytest.MonkeyPatch.context() as patch:
            Stop(patch, step)
            with pytest.raises(KeyboardInterrupt):
                run(config, folder, mode=mode)
        assert not (folder / "summary.json").exists()
        mode = "resume"
    events: list[Event] = []
    run(config, folder, mode="resume", display=events.append)
    return events


RESUMED: dict[str, Callable[[Path], RunConfig]] = {
    "sgd": lambda teacher: alone(epochs=3, schedule="onecycle", nesterov=True),
    "adamw, averaged": lambda teacher: distilled(
        teacher, "unix-random", epochs=3, optimizer="adamw", lr=1e-3, ema_decay=0.9
    ),
    "unix": lambda teacher: distilled(
        teacher, MethodConfig(per_sample_lambda=True), epochs=3, warmup_epochs=1.5
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(name, teacher, tmp_path):
    config = RESUMED[name](teacher)
    run(config, tmp_path / "whole")
    events = stop_and_resume(config, tmp_path / "parts", 5, 6, 11)  # twice in epoch 2, once in epoch 3
    assert [e.text for e in events if isinstance(e, Note) and "resumed" in e.text] == [
        "resumed after epoch 2"
    ]
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_a_resumed_run_goes_on_along_its_ramp(teacher, tmp_path):
    config = distilled(teacher, MethodConfig("unix", keep_end=0.25, full_last=0.25), epochs=4)
    run(config, tmp_path / "whole")
    stop_and_resume(config, tmp_path / "parts", 5, 9)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


CHOOSING = [MethodConfig("stale", keep=0.6), MethodConfig("infobatch", full_last=0.0)]


@pytest.mark.parametrize("method", CHOOSING, ids=lambda m: m.name)
def test_a_resumed_run_goes_on_choosing_by_what_the_student_said(method, teacher, tmp_path, monkeypatch):
    """The control forgets it."""
    config = distilled(teacher, method, epochs=4)
    run(config, tmp_path / "whole")
    stop_and_resume(config, tmp_path / "parts", 5)  # of 2 steps an epoch, or 3 to 4
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")
    monkeypatch.setattr(History, "state", lambda history: {})
    stop_and_resume(config, tmp_path / "forgetful", 5)
    assert everything(tmp_path / "forgetful") != everything(tmp_path / "whole")


@pytest.mark.parametrize(
    "forgotten",
    [
        "unpack_optimizer",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("times_kept", "mixed", "steps")),
    ],
)
def test_the_comparison_finds_what_a_resume_forgets(forgotten, teacher, tmp_path, monkeypatch):
    """The negative control of the test above."""
    config = distilled(teacher)
    run(config, tmp_path / "whole")
    original = resume.restore

    def restore(trainer: Run) -> None:
        original(trainer)
        if forgotten in ("times_kept", "mixed"):
            trainer.engine.tally.of_images()[forgotten].zero_()
        if forgotten == "steps":
            trainer.engine.distiller.steps = 0

    monkeypatch.setattr(resume, "restore", restore)
    if forgotten == "unpack_optimizer":
        monkeypatch.setattr(resume, "unpack_optimizer", lambda *arguments: None)
    stop_and_resume(config, tmp_path / "parts", 5)
    assert everything(tmp_path / "parts") != everything(tmp_path / "whole")


def test_stopped_before_the_first_checkpoint_it_starts_again(teacher, tmp_path):
    config = distilled(teacher)
    run(config, tmp_path / "whole")
    stop_and_resume(config, tmp_path / "parts", 2)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_with_rare_checkpoints_the_lost_epochs_are_run_again(tmp_path):
    config = alone(epochs=3, checkpoint_every=2)
    run(config, tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "whole" / "checkpoints").iterdir()) == [
        "epoch-00002",
        "epoch-00003",
    ]
    stop_and_resume(config, tmp_path / "parts", 5, 9)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(unix_run, teacher, tmp_path):
    shutil.copytree(unix_run, tmp_path / "run")
    run(distilled(teacher), tmp_path / "run", mode="resume")
    assert everything(tmp_path / "run") == everything(unix_run)


def test_a_damaged_newest_checkpoint_is_passed_over_and_said_so(unix_run, teacher, tmp_path):
    shutil.copytree(unix_run, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "epoch-00002" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    events: list[Event] = []
    run(distilled(teacher), tmp_path / "run", mode="resume", display=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("damaged" in text and "epoch-00002" in text and "checksum" in text for text in notes)
    assert "resumed after epoch 1" in notes
    assert everything(tmp_path / "run") == everything(unix_run)


def test_without_a_valid_checkpoint_there_is_no_silent_fresh_start(unix_run, teacher, tmp_path):
    shutil.copytree(unix_run, tmp_path / "run")
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        state.write_text("{")
    with pytest.raises(UserError, match="no valid checkpoint"):
        run(distilled(teacher), tmp_path / "run", mode="resume")
    assert model_bytes(tmp_path / "run") == model_bytes(unix_run)


def test_resume_on_other_data_is_refused(unix_run, teacher, tmp_path, monkeypatch):
    from unixkd import data as _data
    from unixkd.training import resolved

    original = _data.load_data
    other = {"fingerprint": "another", "fingerprint_before": "another"}
    monkeypatch.setattr(resolved, "load_data", lambda *given: replace(original(*given), **other))
    shutil.copytree(unix_run, tmp_path / "run")
    with pytest.raises(UserError, match="the training data has changed"):
        run(distilled(teacher), tmp_path / "run", mode="resume")


def test_resume_with_another_configuration_names_the_differences(unix_run, teacher, tmp_path):
    shutil.copytree(unix_run, tmp_path / "run")
    changed = replace(distilled(teacher, MethodConfig("unix", keep=0.5), seed=3), label="mine")
    with pytest.raises(UserError) as caught:
        run(changed, tmp_path / "run", mode="resume")
    for difference in (
        "method.keep: None then, 0.5 now",
        "train.seed: 0 then, 3 now",
        "label: None then, mine now",
    ):
        assert difference in str(caught.value)
    assert "lr" not in str(caught.value)
    assert everything(tmp_path / "run") == everything(unix_run)


def test_lost_metrics_are_a_clear_error(unix_run, teacher, tmp_path):
    shutil.copytree(unix_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has 0 lines, but the checkpoint has 2 epochs"):
        run(distilled(teacher), tmp_path / "run", mode="resume")


# An existing folder


def test_a_folder_with_a_run_is_refused_or_overwritten(unix_run, teacher, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unix_run, folder)
    with pytest.raises(UserError, match="already holds a run: give --resume, --overwrite or another --out"):
        run(distilled(teacher), folder)
    assert everything(folder) == everything(unix_run)
    run(alone(epochs=1), folder, mode="overwrite")
    run(alone(epochs=1), tmp_path / "fresh")
    assert everything(folder) == everything(tmp_path / "fresh")
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["epoch-00001"]


@pytest.mark.parametrize(
    "faulty",
    [
        lambda teacher: replace(distilled(teacher), loss=LossConfig(at=1.0, student_layers=["nowhere"])),
        lambda teacher: replace(
            distilled(teacher),
            loss=LossConfig(at=1.0, student_layers=["layer1"], teacher_layers=["layer1", "layer2"]),
        ),
        lambda teacher: distilled(teacher, lr=-1.0),
        lambda teacher: replace(distilled(teacher), teacher=None),
    ],
)
def test_a_fault_found_before_training_spares_the_run_that_is_there(faulty, unix_run, teacher, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unix_run, folder)
    with pytest.raises(UserError):
        run(faulty(teacher), folder, mode="overwrite")
    assert everything(folder) == everything(unix_run)
    with pytest.raises(UserError):
        run(faulty(teacher), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Options of training


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    run(alone(epochs=1), folder)
    return folder


@pytest.mark.parametrize(
    ("words", "decides_weights"),
    [
        ("--train.optimizer adamw", True),
        ("--train.nesterov true", True),
        ("--train.momentum 0", True),
        ("--train.weight_decay 0.1", True),
        ("--train.schedule multistep --train.milestones [0.5] --train.gamma 0.5", True),
        ("--train.schedule onecycle", True),
        ("--train.schedule constant", True),
        ("--train.warmup_epochs 0.5", True),
        ("--train.clip_norm 0.1", True),
        ("--train.ema_decay 0.5", True),
        ("--train.label_smoothing 0.1", True),
        ("--train.precision bf16", True),
        ("--data.flip true", True),
        ("--data.crop_padding 2", True),
        ("--data.view_seed 1", True),
        ("--data.split_seed 1", True),
        ("--data.size 12", True),
        ("--data.holdout 0.25", True),
        ("--train.eval_batch_size 7", False),
        ("--train.checkpoint_every 5", False),
        ("--device cpu --train.threads 1", False),
    ],
)
def test_every_training_option_runs_for_an_epoch(words, decides_weights, plain_run, tmp_path, capsys):
    assert call("train", "--model", "resnet8", *SMALL, *words.split(), "--out", tmp_path / "run") == 0
    assert "final accuracy" in capsys.readouterr().out
    assert 0 <= summary(tmp_path / "run")["accuracy"]["last"] <= 1
    assert (model_bytes(tmp_path / "run") != model_bytes(plain_run)) == decides_weights


METHODS = {
    "kd": (),
    "unix": (),
    "unix-random": (),
    "random": ("--method.keep", "0.5"),
    "hard": ("--method.scorer", "margin"),
    "mixup": ("--method.per_sample_lambda", "true"),
    "student-alone": (),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_for_an_epoch(name, teacher, tmp_path):
    words = ("--teacher", teacher, "--student", "resnet8", "--method", name, *METHODS[name])
    assert call("distill", *words, *SMALL, "--out", tmp_path / "run") == 0
    result = summary(tmp_path / "run")
    assert result["method"] == name
    kept = {"kd": IMAGES, "mixup": IMAGES, "student-alone": IMAGES, "random": 3 * 16 + 4}.get(name, KEPT)
    scored = IMAGES if name in ("unix", "unix-random", "hard") else 0
    asked = 0 if name == "student-alone" else kept
    images = result["cost"]["images"]
    assert (images["trained"], images["scored"], images["teacher_forwarded"]) == (kept, scored, asked)
    refreshed = IMAGES if name == "mixup" else 0  # a forward of the student each, like scoring
    assert images["refreshed"] == refreshed
    assert result["cost"]["relative_to_kd"] == pytest.approx(
        relative(scored + refreshed, asked, kept, IMAGES)
    )


@pytest.mark.parametrize(
    "method",
    [
        MethodConfig(scorer="least_confidence", scoring_mode="eval"),
        MethodConfig(scorer="random"),
        MethodConfig(curve="step", mix_from=0.25),
        MethodConfig(curve="none"),
        MethodConfig(steepness=1000.0, keep=1.0),
        MethodConfig("random", curve="sigmoid", per_sample_lambda=True),
    ],
)
def test_every_field_of_a_method_runs_for_an_epoch(method, teacher, tmp_path):
    result = run(distilled(teacher, method, epochs=1), tmp_path / "run")
    assert result["cost"]["images"]["scored"] == (0 if "random" in (method.scorer, method.name) else IMAGES)
    assert (tmp_path / "run" / "selection.json").exists() == (method.keep != 1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", ["kd", "ce", "dkd", "dist", "at", "sp"])
def test_every_loss_runs_for_an_epoch(loss, precision, teacher, tmp_path):
    config = replace(
        distilled(teacher, epochs=1, precision=precision), loss=LossConfig(**{"kd": 0.0, loss: 2.0})
    )
    run(config, tmp_path / "run")
    (line,) = metrics(tmp_path / "run")
    assert list(line["loss_parts"]) == [loss]
    assert line["loss"] == pytest.approx(2 * line["loss_parts"][loss], rel=1e-5)


def test_all_losses_together_add_up_with_their_weights(teacher, tmp_path):
    chosen = {"kd": 1.0, "ce": 0.5, "dkd": 0.25, "dist": 2.0, "at": 1000.0, "sp": 3000.0}
    run(replace(distilled(teacher, epochs=1), loss=LossConfig(**chosen)), tmp_path / "run")
    (line,) = metrics(tmp_path / "run")
    total = sum(weight * line["loss_parts"][name] for name, weight in chosen.items())
    assert line["loss"] == pytest.approx(total, rel=1e-5)


def test_the_average_of_the_weights_is_what_is_evaluated_and_saved(tmp_path, monkeypatch):
    """After each step average = d · average + (1 − d) · weights; it starts as the weights after the first."""
    seen: list[dict[str, torch.Tensor]] = []
    original = Engine.step

    def step(engine: Engine, *rest: Any) -> StepResult:
        result = original(engine, *rest)
        seen.append({name: value.clone() for name, value in engine.student.net.state_dict().items()})
        return result

    monkeypatch.setattr(Engine, "step", step)
    run(alone(ema_decay=0.75), tmp_path / "run")
    assert len(seen) == 8
    saved = weights(tmp_path / "run")
    for name in saved:
        if saved[name].is_floating_point():
            average = seen[0][name].double()
            for values in seen[1:]:
                average = 0.75 * average + 0.25 * values[name].double()
            torch.testing.assert_close(saved[name].double(), average, rtol=1e-5, atol=1e-6)
    assert not torch.equal(saved["fc.weight"], seen[-1]["fc.weight"])
    test = load_data(alone().data).test
    answers = predict(load_model(tmp_path / "run"), test.eval_batches(100))
    assert summary(tmp_path / "run")["accuracy"]["last"] == answers.accuracy


def test_evaluation_every_second_epoch_and_at_the_end(tmp_path):
    run(alone(epochs=3, eval_every=2), tmp_path / "run")
    accuracies = [line["accuracy"] for line in metrics(tmp_path / "run")]
    assert [value is None for value in accuracies] == [True, False, False]
    result = summary(tmp_path / "run")
    assert result["cost"]["images"]["evaluated"] == 2 * TEST_IMAGES
    assert result["accuracy"]["best"] == max(accuracies[1:])
    run(alone(epochs=3), tmp_path / "often")
    assert model_bytes(tmp_path / "often") == model_bytes(tmp_path / "run")


def test_held_out_training_images_are_evaluated_on(tmp_path):
    config = alone(epochs=1)
    result = run(replace(config, data=replace(config.data, limit=None, holdout=0.9)), tmp_path / "run")
    data = load_data(replace(config.data, limit=None, holdout=0.9))
    assert result["cost"]["images"]["evaluated"] == len(data.test)
    assert result["cost"]["images"]["trained"] == len(data.train) == 1438 - len(data.test)


def test_gradients_clipped_to_nothing_leave_the_initial_weights(tmp_path):
    config = alone(epochs=1, clip_norm=1e-12, weight_decay=0.0)
    run(config, tmp_path / "run")
    initial = build_student(config, load_data(config.data), None).net.state_dict()
    saved = weights(tmp_path / "run")
    for name in (n for n in saved if n.endswith(("weight", "bias"))):
        torch.testing.assert_close(saved[name], initial[name], rtol=0, atol=1e-9)
    run(alone(epochs=1, clip_norm=1e12), tmp_path / "loose")
    run(alone(epochs=1), tmp_path / "free")
    assert model_bytes(tmp_path / "loose") == model_bytes(tmp_path / "free")


def test_reduced_precision_keeps_the_weights_in_full_and_charges_full_flops(teacher, unix_run, tmp_path):
    result = run(distilled(teacher, precision="bf16", teacher_precision="bf16"), tmp_path / "run")
    assert {v.dtype for v in weights(tmp_path / "run").values()} == {torch.float32, torch.int64}
    assert result["cost"] == summary(unix_run)["cost"]
    assert result["environment"]["precision"] == "bf16"


def test_a_run_that_blows_up_is_stopped_and_never_saved(tmp_path):
    with pytest.raises(UserError, match=r"epoch 1: .*no longer finite; lower --lr"):
        run(alone(lr=1e30), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_teacher_is_said_to_be_bad_where_it_is(tmp_path):
    run(alone("resnet14", epochs=1), tmp_path / "teacher")
    blind = {
        name: 0 * value if name.startswith("fc.") else value
        for name, value in weights(tmp_path / "teacher").items()
    }
    (tmp_path / "teacher" / "checksums.json").unlink()
    save_file(blind, tmp_path / "teacher" / "model.safetensors")  # always class 0: right one time in ten
    events: list[Event] = []
    run(distilled(tmp_path / "teacher", "kd", epochs=1), tmp_path / "run", display=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(text.startswith("teacher resnet14: accuracy ") for text in notes)
    assert any("WARNING" in text and "chance" in text for text in notes)


def test_a_student_can_go_on_from_a_run_of_its_own(unix_run, teacher, tmp_path):
    config = distilled(teacher, "kd", epochs=1, lr=0.0)
    run(replace(config, student=replace(config.student, name=str(unix_run))), tmp_path / "run")
    before, after = weights(unix_run), weights(tmp_path / "run")
    assert all(torch.equal(before[n], after[n]) for n in before if n.endswith(("weight", "bias")))


def test_a_last_batch_of_one_image(teacher, tmp_path):
    """33 images: the last batch has one. It is kept whole, counted, and trained on."""
    config = distilled(teacher, epochs=1)
    result = run(replace(config, data=replace(config.data, limit=BATCH + 1)), tmp_path / "run")
    images = result["cost"]["images"]
    assert (images["scored"], images["trained"]) == (33, 25)
    assert untimed(metrics(tmp_path / "run")[0])["step"] == 2
