"""Scores that cost less: every n-th epoch, on small images, in low precision, several batches at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from running import IMAGES, distilled, make_teacher, metrics
from slow import TinyNet, images_of
from unixkd.config import MethodConfig
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.flops import forward_flops
from unixkd.method.method import Method, Scoring
from unixkd.method.network import Network
from unixkd.method.step import score
from unixkd.method.unix import hard
from unixkd.training.run import run, start
from unixkd.training.run_folder import RunFolder
from unixkd.training.state import Run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def trainer_of(config, folder: Path) -> Run:
    return start(config, RunFolder(folder), "new", lambda event: None)


def test_scores_of_small_images_are_those_of_small_images():
    student, images = TinyNet(seed=1).eval(), images_of(6)
    small = torch.nn.functional.interpolate(images, size=(4, 4), mode="bilinear", antialias=True)
    logits = score(Network(student), images, Scoring("eval", size=0.5))
    torch.testing.assert_close(logits, student(small))
    low = score(Network(student), images, Scoring("eval", dtype=torch.bfloat16))
    assert low.dtype == torch.bfloat16
    assert score(Network(student), images, Scoring("eval")).dtype == torch.float32


def test_a_small_look_is_charged_as_a_small_look():
    student = TinyNet(seed=1)
    distiller = Distiller(student, TinyNet(seed=2), replace(hard(), scoring=Scoring(size=0.5)))
    distiller.step(images_of(8))
    small, whole = forward_flops(student, (3, 4, 4)), forward_flops(student, (3, 8, 8))
    assert small < whole / 3
    assert distiller.ledger.flops()["scoring"] == 8 * small
    assert distiller.ledger.flops()["student_forward"] == 6 * whole


def test_a_run_with_all_of_it(teacher, tmp_path):
    method = MethodConfig(scoring_mode="eval", scoring_size=0.5, scoring_precision="bf16")
    result = run(distilled(teacher, method, epochs=3), tmp_path / "run")
    assert result["cost"]["images"]["scored"] == 3 * IMAGES
    for line in metrics(tmp_path / "run"):
        chosen = line["selection"]
        assert sum(chosen["histogram"]["kept"]) + sum(chosen["histogram"]["dropped"]) == IMAGES
        assert chosen["score_kept"] > chosen["score_dropped"] > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0.0}, r"scoring_size is a share of the image's side and must lie in \(0, 1\], got 0"),
    ],
)
def test_nonsense_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        Scoring(**values)


def test_scoring_needs_a_scorer():
    with pytest.raises(UserError, match="method own does not score"):
        Method("own", scoring=Scoring("eval"))
