"""Scores that cost less: every n-th epoch, on small images, in low precision, several batches at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from running import BATCH, IMAGES, distilled, make_teacher, metrics, summary
from slow import TinyNet, images_of
from unixkd.config import MethodConfig
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.ledger import Ledger, forward_flops
from unixkd.method.method import Method, Scoring
from unixkd.method.network import Network
from unixkd.method.scoring import entropy, rank
from unixkd.method.step import score
from unixkd.method.unix import hard, unix
from unixkd.planning.expected import expected_cost
from unixkd.training.run import Trainer, run
from unixkd.training.run_folder import RunFolder
from unixkd.training.stepper import scored_in_groups


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def trainer_of(config, folder: Path) -> Trainer:
    return Trainer(config, RunFolder(folder), "new", lambda event: None)


# Every n-th epoch


def test_the_epochs_between_are_ranked_by_the_last_scores(teacher, tmp_path):
    """In epoch 1 nothing is scored: what is kept of each batch are those with the highest scores of epoch 0."""
    trainer = trainer_of(
        distilled(teacher, MethodConfig("hard", scoring_every=2), epochs=2), tmp_path / "run"
    )
    steps = trainer.fit()
    for _ in range(4):
        next(steps)
    next(steps)  # the first of epoch 1
    history = trainer.engine.history
    assert history.age.unique().tolist() == [0]
    scores = history.score.clone()
    plan = trainer.stepper.plan(1)
    assert torch.equal(plan.scores, scores[plan.order])
    batch = next(iter(trainer.stepper.split.train_batches(1, plan.order, BATCH)))
    batch = replace(batch, scores=plan.scores[:BATCH])
    result = trainer.engine.distiller.run(batch, plan.draws.part(0, BATCH))
    assert torch.equal(result.mixed.position, rank(scores[plan.order[:BATCH]])[:24])
    assert result.counts.scored == 0


def test_only_the_scoring_epochs_are_charged(teacher, tmp_path):
    method = MethodConfig("hard", scoring_every=3)
    result = run(distilled(teacher, method, epochs=5), tmp_path / "run")
    assert result["cost"]["images"]["scored"] == 2 * IMAGES  # epochs 0 and 3
    assert [line["images"]["scored"] // IMAGES for line in metrics(tmp_path / "run")] == [1, 1, 1, 2, 2]


def test_a_resumed_run_remembers_its_scores(teacher, tmp_path):
    config = distilled(teacher, MethodConfig("hard", scoring_every=3), epochs=3)
    whole = run(config, tmp_path / "whole")
    interrupted = trainer_of(config, tmp_path / "run")
    steps = interrupted.fit()
    for _ in range(4 + 2):  # into epoch 1
        next(steps)
    run(config, tmp_path / "run", mode="resume")
    again = summary(tmp_path / "run")
    assert again["accuracy"] == whole["accuracy"]
    assert again["cost"] == whole["cost"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_the_expected_cost_counts_the_scoring_epochs():
    """F_t/F_s = 3, backward = 2: KD costs 6, scoring 1 in two epochs of four, training 3/4 of 6."""
    method = replace(hard(), scoring=Scoring(every=2))
    assert expected_cost(method, Ledger(1, 3), [64], epochs=4)["backward_2x"] == pytest.approx(
        (0.5 + 4.5) / 6
    )


# Smaller, in lower precision, several batches at once


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


def test_batches_scored_at_once_are_scored_by_the_weights_before_the_first_of_them(teacher, tmp_path):
    method = MethodConfig("hard", scoring_mode="eval", scoring_batches=2)
    trainer = trainer_of(distilled(teacher, method, epochs=1), tmp_path / "run")
    stepper, found = trainer.stepper, []
    trainer.parts.student.train()
    plan = stepper.plan(0)
    batches = scored_in_groups(trainer.engine, 0, stepper.split.train_batches(0, plan.order, BATCH))
    for batch in batches:
        found.append(batch.scores)
        if len(found) in (1, 3):  # the weights may change once the scores are there
            expected = direct_scores(trainer, batch.images)
            torch.testing.assert_close(batch.scores, expected)
        trainer.engine.step(batch, plan.draws.part(0, len(batch)))
        if len(found) == 2:  # scored before the step between, so not by the weights of now
            assert not torch.allclose(batch.scores, direct_scores(trainer, batch.images))
    assert [len(scores) for scores in found] == [32, 32, 32, 4]
    assert trainer.ledger.images.scored == IMAGES == trainer.engine.tally.scored
    assert trainer.parts.student.training


def direct_scores(trainer: Trainer, images: Tensor) -> Tensor:
    student = trainer.parts.student
    student.eval()
    with torch.no_grad():
        scores = entropy(student(images))
    student.train()
    return scores


def test_a_run_with_all_of_it(teacher, tmp_path):
    method = MethodConfig(
        scoring_mode="eval", scoring_batches=8, scoring_every=2, scoring_size=0.5, scoring_precision="bf16"
    )
    result = run(distilled(teacher, method, epochs=3), tmp_path / "run")
    assert result["cost"]["images"]["scored"] == 2 * IMAGES
    for line in metrics(tmp_path / "run"):  # the scores are known, whether a student was right ahead is not
        chosen = line["selection"]
        assert sum(chosen["histogram"]["kept"]) + sum(chosen["histogram"]["dropped"]) == IMAGES
        assert chosen["score_kept"] > chosen["score_dropped"] > 0
        assert chosen["histogram"]["kept_hard"] is chosen["hard_kept"] is None


def test_what_is_hard_is_known_in_the_epochs_that_score(teacher, tmp_path):
    run(distilled(teacher, MethodConfig(scoring_every=2), epochs=3), tmp_path / "run")
    known = [line["selection"]["hard_kept"] is not None for line in metrics(tmp_path / "run")]
    assert known == [True, False, True]


def test_an_own_loop_is_told_that_it_cannot_score_ahead():
    for scoring in (Scoring(every=2), Scoring("eval", batches=2)):
        distiller = Distiller(TinyNet(seed=1), TinyNet(seed=2), replace(unix(), scoring=scoring))
        with pytest.raises(UserError, match="scores ahead of its steps"):
            distiller.step(images_of(8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0.0}, r"scoring_size is a share of the image's side and must lie in \(0, 1\], got 0"),
        ({"every": 0}, "must be at least 1, got 0, 1"),
        ({"batches": 4}, "give scoring_mode eval"),
    ],
)
def test_nonsense_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        Scoring(**values)


def test_scoring_needs_a_scorer():
    with pytest.raises(UserError, match="method own does not score"):
        Method("own", scoring=Scoring("eval"))
