"""Two processes that train one student: what they compute, what they count, and that they go on exactly.

What starts processes is slow (each imports torch anew); `test_processes_by_hand.py` is the fast tier's pair.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from running import TEST_IMAGES, alone, call, distilled, everything, make_teacher, metrics, summary, weights
from several import together
from unixkd.config import AnswersConfig, MethodConfig, RunConfig
from unixkd.data import load_data
from unixkd.data.sampling import check_kept, num_steps, own_batch_size, split_among_processes
from unixkd.errors import UserError
from unixkd.method.network import has_statistics
from unixkd.method.step import StepResult
from unixkd.models import PixelModel, load_model
from unixkd.training import resolved
from unixkd.training.checks import check_synchronised
from unixkd.training.distributed.launch import LeaderError
from unixkd.training.distributed.world import World
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.evaluation import is_synchronised, synchronise
from unixkd.training.predictions import join_predictions, predict
from unixkd.training.run import run
from unixkd.training.stopping import Stopped


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@given(
    images=st.integers(1, 60),
    own=st.integers(2, 9),
    size=st.integers(1, 4),
    offset=st.integers(0, 5),
)
def test_every_image_has_one_process_and_every_process_as_many_steps(images, own, size, offset):
    order, batch = torch.arange(offset, offset + images), own * size
    shares = [split_among_processes(order, batch, World(rank, size)) for rank in range(size)]
    (steps,) = {share.steps for share in shares}
    assert steps == num_steps(images, batch, World(0, size))
    for step in range(steps):
        whole = order[step * batch : (step + 1) * batch]
        parts = [share.order[step * own : (step + 1) * own] for share in shares]
        assert torch.equal(torch.cat(parts), whole)
        if step == shares[0].full and size > 1:  # each image counts for as much
            assert [share.last for share in shares] == [len(part) * size / len(whole) for part in parts]
    left_out = images - sum(len(share.order) for share in shares)
    assert left_out == (0 if steps * batch >= images else images % batch)
    assert left_out < 2 * size


def test_batches_that_cannot_be_shared_out():
    assert own_batch_size(8, World(1, 4)) == 2
    assert own_batch_size(1, World()) == 1
    check_kept(0.5, 8, World(0, 2))
    check_kept(0.1, 8, World())
    with pytest.raises(UserError, match=r"keep 0\.3 of the 4 images that each of 2 processes has"):
        check_kept(0.3, 8, World(0, 2))
    for batch in (9, 4):
        with pytest.raises(UserError, match=f"batches of {batch} images cannot be shared out among 4"):
            own_batch_size(batch, World(0, 4))


def without_batchnorm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            without_batchnorm(child)
    return module


def run_without_batchnorm(config: RunConfig, folder: Path) -> None:
    original = resolved.build_student

    def made(*rest: Any) -> PixelModel:
        student = original(*rest)
        without_batchnorm(student)
        return student

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolved, "build_student", made)
        run(config, folder)


@pytest.mark.slow
def test_without_batchnorm_kd_is_that_of_one_process(teacher, tmp_path):
    """Batches of 32, 32, 32 and 9: of the last one process has five images, the other four."""
    config = distilled(teacher, "kd", clip_norm=1.0)
    config = replace(config, data=replace(config.data, limit=105))
    together(2, run_without_batchnorm, config, tmp_path / "two")
    run_without_batchnorm(config, tmp_path / "one")
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert summary(tmp_path / "two")["cost"] == summary(tmp_path / "one")["cost"]


CONFIGS = {
    "alone": lambda teacher, folder: alone(nesterov=True, clip_norm=1.0),
    "unix, averaged": lambda teacher, folder: distilled(teacher, optimizer="adamw", lr=1e-3, ema_decay=0.9),
    "unix": lambda teacher, folder: distilled(teacher),
    "step curve, stored": lambda teacher, folder: stored(
        distilled(teacher, MethodConfig("unix", curve="step", keep=0.7), epochs=3),
        folder / "answers",
    ),
    "scored in eval mode": lambda teacher, folder: distilled(
        teacher, MethodConfig("hard", scoring_mode="eval")
    ),
    "stale, stored": lambda teacher, folder: stored(
        distilled(teacher, MethodConfig("stale", keep=0.6), epochs=3), folder / "answers"
    ),
    "infobatch": lambda teacher, folder: distilled(
        teacher, MethodConfig("infobatch", full_last=0.0), epochs=3
    ),
}
STOPS = {"alone": (1, 4), "unix, averaged": (0, 2, 5), "scored in eval mode": (1,), "stale, stored": (1, 4)}


def stored(config: RunConfig, path: Path) -> RunConfig:
    return replace(config, answers=AnswersConfig(str(path)))


def whole_and_in_parts(teacher: Path, base: Path, names: list[str]) -> None:
    """Each configuration twice, once stopped by a signal to one process of the two."""
    rank = int(os.environ["RANK"])
    for name in names:
        for part in ("whole", "parts"):
            folder = base / name / part
            config = CONFIGS[name](teacher, folder)
            for number, step in enumerate(STOPS.get(name, (2, 5)) if part == "parts" else ()):
                with pytest.MonkeyPatch.context() as patch:
                    if rank == number % 2:
                        ask_to_stop(patch, step)
                    with pytest.raises(Stopped):
                        run(config, folder / "run", mode="resume")
            run(config, folder / "run", mode="resume")


def ask_to_stop(patch: pytest.MonkeyPatch, at: int) -> None:
    original, sent = Engine.step, []

    def step(engine: Engine, *rest: Any) -> StepResult:
        if engine.distiller.steps == at and not sent:
            sent.append(at)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(engine, *rest)

    patch.setattr(Engine, "step", step)


@pytest.fixture(scope="module")
def runs(teacher, tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("runs")
    together(2, whole_and_in_parts, teacher, base, list(CONFIGS))
    return base


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_by_either_they_go_on_exactly(name, runs):
    assert everything(runs / name / "parts" / "run") == everything(runs / name / "whole" / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_each_image_is_charged_once(name, teacher, runs, tmp_path):
    """The same numbers of images as in one process, but for what a share's rounding keeps."""
    config = CONFIGS[name](teacher, tmp_path)
    ours = summary(runs / name / "whole" / "run")["cost"]["images"]
    assert ours["evaluated"] == config.train.epochs * TEST_IMAGES
    assert summary(runs / name / "whole" / "run")["environment"]["processes"] == 2
    if name in ("alone", "unix, averaged", "unix"):
        run(config, tmp_path / "one")
        assert ours == summary(tmp_path / "one")["cost"]["images"]
    if name.endswith("stored"):
        assert ours["teacher_cached"] + ours["teacher_forwarded"] == ours["trained"]
    if name == "step curve, stored":
        assert ours["trained"] == 3 * (
            3 * 22 + 4
        )  # 0.7 · 16 in each of two processes; all of the short last batch
        assert ours["teacher_cached"] > 0
    if name == "stale, stored":
        distinct = [line["selection"]["distinct"] for line in metrics(runs / name / "whole" / "run")]
        assert distinct == [line["selection"]["visited"] for line in metrics(runs / name / "whole" / "run")]


def test_evaluation_of_parts_is_that_of_the_whole(teacher):
    """Of three processes the last finds no batch left."""
    model, test = load_model(teacher), load_data(alone().data).test
    assert test is not None
    whole = predict(model, test.eval_batches(200))
    parts = [predict(model, test.eval_batches(200, rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [200, TEST_IMAGES - 200, 0]
    joined = join_predictions(parts[::-1])
    assert torch.equal(joined.classes, whole.classes)
    assert torch.equal(joined.confidence, whole.confidence)
    assert joined.labels is not None
    assert torch.equal(joined.labels, whole.labels)


def forget_and_resume(config: RunConfig, folder: Path) -> None:
    """The negative control of the test above: one process's own state is not restored."""
    with pytest.MonkeyPatch.context() as patch:
        ask_to_stop(patch, 1)
        with pytest.raises(Stopped):
            run(config, folder, mode="resume")
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            patch.setattr(EpochStats, "load_state", lambda tally, tensors, numbers: None)
        run(config, folder, mode="resume")


@pytest.mark.slow
def test_the_comparison_finds_what_one_process_forgets(teacher, runs, tmp_path):
    config = CONFIGS["unix, averaged"](teacher, tmp_path)
    together(2, forget_and_resume, config, tmp_path / "run")
    assert everything(tmp_path / "run") != everything(runs / "unix, averaged" / "whole" / "run")


@pytest.mark.slow
def test_another_number_of_processes_is_refused(teacher, runs, tmp_path):
    config = replace(CONFIGS["alone"](teacher, tmp_path), label=None)
    with pytest.raises(UserError, match="2 processes trained it, now there are 1"):
        run(config, runs / "alone" / "whole" / "run", mode="resume")


def failing(config: RunConfig, folder: Path) -> list[str]:
    found = []
    for wrong, where in (
        (config, folder),
        (replace(config, train=replace(config.train, batch_size=33)), folder / "x"),
    ):
        with pytest.raises(UserError) as error:
            run(wrong, where)
        found.append(f"{type(error.value).__name__}: {error.value}")
    return found


@pytest.mark.slow
def test_an_error_of_the_leader_ends_all_and_is_told_once(runs):
    config = CONFIGS["alone"](Path(), Path())
    first, second = together(2, failing, config, runs / "alone" / "whole" / "run")
    assert first[0].startswith("UserError")
    assert second[0].startswith(LeaderError.__name__)
    assert "already holds a run" in second[0]
    assert all("cannot be shared out among 2" in found[1] for found in (first, second))


def test_commands_of_many_runs_want_one_process(monkeypatch, capsys, teacher, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code = call("compare", "--teacher", teacher, "--student", "resnet8", "--methods", "kd", "--out", tmp_path)
    assert code == 2
    assert "compare is for one process" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["two", "0", "-1", ""])
def test_a_number_of_processes_that_is_none(size, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert call("train", "--model", "resnet8", "--out", tmp_path / "run") == 1
    assert "WORLD_SIZE" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 1])
def test_batchnorm_across_processes_wants_a_gpu(size, tmp_path):
    config = alone(sync_batchnorm=True)
    told = (
        together(2, refused, config, tmp_path / "run") if size == 2 else [refused(config, tmp_path / "run")]
    )
    assert told[0] == (
        "UserError: train.sync_batchnorm needs CUDA: torch's SyncBatchNorm refuses cpu tensors; without it each "
        "process normalises by its own images"
    )
    assert not (tmp_path / "run").exists()


def refused(config: RunConfig, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        run(config, folder)
    return f"{type(error.value).__name__}: {error.value}"


def test_batchnorm_across_processes_and_parts_of_a_batch():
    config = alone(sync_batchnorm=True, micro_batch=8).train
    with pytest.raises(UserError, match="normalises by whole batches"):
        check_synchronised(config, torch.device("cuda"))
    check_synchronised(replace(config, micro_batch=None), torch.device("cuda"))


def test_a_network_with_batchnorm_across_processes_is_saved_as_any_other(teacher):
    plain = load_model(teacher)
    network, images = load_model(teacher), torch.rand(4, 1, 8, 8)
    synchronise(network, World())
    assert not is_synchronised(network)  # of one process
    synchronise(network, World(0, 2))
    assert is_synchronised(network)
    assert has_statistics(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(network.eval()(images), plain.eval()(images))
    plain.load_state_dict(network.state_dict())
