"""BatchNorm's running statistics on clean images: what they are then, and when they are estimated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from running import BATCH, IMAGES, distilled, make_teacher, metrics
from slow import TinyNet, images_of
from unixkd.config import MethodConfig
from unixkd.method.batch import Batch
from unixkd.method.method import Scoring, sees_clean_images
from unixkd.method.network import has_statistics
from unixkd.method.unix import hard, kd, mixup, random, unix, unix_random
from unixkd.models import load_student
from unixkd.training.display import silent
from unixkd.training.evaluation import clean_statistics
from unixkd.training.run import fit, run, start
from unixkd.training.run_folder import RunFolder


def test_inside_they_are_the_mean_over_the_batches_and_afterwards_what_they_were():
    net = TinyNet(seed=1).train()
    norm, before = net.stem[1], {name: value.clone() for name, value in net.state_dict().items()}
    batches = [Batch(images_of(6)), Batch(images_of(4, seed=1))]
    means = [net.stem[0](batch.images).mean(dim=(0, 2, 3)) for batch in batches]
    with clean_statistics(net, batches, None, keep=False):
        torch.testing.assert_close(norm.running_mean, (means[0] + means[1]) / 2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert norm.momentum == 0.1
    assert net.training
    with clean_statistics(net, batches, None, keep=True):
        pass
    torch.testing.assert_close(norm.running_mean, (means[0] + means[1]) / 2)


@pytest.mark.parametrize(
    ("method", "clean"),
    [
        (kd(), True),
        (random(), True),
        (hard(), True),
        (unix(), True),  # its scoring forward is on clean images
        (unix(scoring_mode="eval"), False),
        (unix_random(), True),
        (unix(scorer=None), False),
        (mixup(), False),
        (replace(kd(), size=0.5), False),
        (replace(unix(), scoring=Scoring(size=0.5)), False),
    ],
)
def test_which_methods_show_clean_images(method, clean):
    assert sees_clean_images(method) == clean


def test_a_network_without_batchnorm_has_none():
    assert has_statistics(TinyNet(seed=1))
    assert not has_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)))
    assert not has_statistics(nn.BatchNorm2d(3, track_running_stats=False))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def test_what_is_saved_has_seen_clean_images_alone(teacher, tmp_path):
    config = distilled(teacher, "mixup", epochs=1, bn_images=64)
    trainer = start(config, RunFolder(tmp_path / "run"), "new", silent)
    fit(trainer)
    split, norm = trainer.resolved.data.train, trainer.resolved.student.net.bn1
    order = trainer.stepper.inputs(0).rows.order[:64]
    (batch,) = split.train_batches(0, order, config.train.eval_batch_size)
    net = trainer.resolved.student
    shown = net.net.conv1((batch.images - net.mean) / net.std)
    torch.testing.assert_close(norm.running_mean, shown.mean(dim=(0, 2, 3)))
    assert trainer.ledger.images.refreshed == 64
    assert trainer.ledger.flops()["refresh"] == 64 * trainer.ledger.student_flops


def test_evaluating_more_often_changes_no_weight_and_no_cost(teacher, tmp_path):
    runs = []
    for every in (1, 3):
        config = distilled(teacher, "mixup", epochs=3, eval_every=every)
        runs.append(run(config, tmp_path / f"every-{every}"))
    often, seldom = (load_student(tmp_path / f"every-{every}").state_dict() for every in (1, 3))
    assert all(torch.equal(value, seldom[name]) for name, value in often.items())
    assert runs[0]["cost"]["relative_to_kd"] == runs[1]["cost"]["relative_to_kd"]
    assert runs[0]["cost"]["images"]["refreshed"] == IMAGES  # fewer than bn_images
    evaluated = [r["cost"]["images"]["evaluated"] for r in runs]
    assert evaluated[0] > evaluated[1]


@pytest.mark.parametrize(("method", "images"), [("kd", 0), ("unix", 0), ("mixup", IMAGES)])
def test_who_is_charged(method, images, teacher, tmp_path):
    assert (
        run(distilled(teacher, method, epochs=1), tmp_path / "run")["cost"]["images"]["refreshed"] == images
    )


def test_at_0_images_nothing_is_estimated(teacher, tmp_path):
    result = run(distilled(teacher, MethodConfig("mixup"), epochs=1, bn_images=0), tmp_path / "run")
    assert result["cost"]["images"]["refreshed"] == 0
    assert metrics(tmp_path / "run")[0]["images"]["trained"] == IMAGES > BATCH
