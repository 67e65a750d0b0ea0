"""The choice of an epoch's images: by hand, against a slow version, and what must hold for any history."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from running import DATA, IMAGES, call, distilled, make_teacher, metrics, summary
from slow import images_of
from unixkd.config import MethodConfig, ModelConfig, TrainConfig
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import MixedBatch, Outputs
from unixkd.method.epoch_choice import (
    History,
    InfoBatch,
    RandomChoice,
    RowLoss,
    StaleChoice,
    Uncertainty,
    noise,
)
from unixkd.method.ledger import Ledger
from unixkd.method.losses import KD, CrossEntropy
from unixkd.method.method import Method
from unixkd.method.scoring import TrueLoss, entropy, rank, sampling_keys
from unixkd.method.unix import infobatch, kd, random_epoch, selective_backprop, stale
from unixkd.training.compare import matched_epochs
from unixkd.training.engine import Engine
from unixkd.training.run import run

INF = math.inf


def history_of(scores: list[float], ages: list[int] | None = None) -> History:
    """Images with these last scores (inf: never scored), so many epochs old."""
    history = History(len(scores))
    history.score.copy_(torch.tensor(scores))
    if ages is not None:
        history.age.copy_(torch.tensor(ages))
    return history


# History


def test_a_history_by_hand():
    history = History(4)
    history.record(torch.tensor([3, 0]), torch.tensor([0.5, 2.0]))
    assert history.score.tolist() == [INF] * 4  # not before the epoch's end
    history.end_epoch()
    history.record(torch.tensor([0]), torch.tensor([1.0]))
    history.end_epoch()
    assert history.score.tolist() == [1.0, INF, INF, 0.5]
    assert history.age.tolist() == [0, 2, 2, 1]
    assert history.fresh.isinf().all()


# Stale scores


def test_the_least_certain_are_chosen():
    history = history_of([0.1, 0.9, 0.2, 0.8, 0.5, 0.6])
    chosen = StaleChoice(keep=0.5, random_share=0.0).choose(history, 1, 10, 0)
    assert chosen.mask.tolist() == [False, True, False, True, False, True]
    assert chosen.weight is None


def test_what_was_never_seen_comes_before_what_is_overdue_and_that_before_what_is_uncertain():
    history = history_of([0.1, 0.2, 9.0, INF, 0.3], ages=[5, 7, 0, 0, 0])
    choice = StaleChoice(random_share=0.0, max_age=5)
    for keep, expected in ((0.2, {3}), (0.4, {3, 1}), (0.6, {3, 1, 0}), (0.8, {3, 1, 0, 2})):
        mask = replace(choice, keep=keep).choose(history, 1, 10, 0).mask
        assert set(mask.nonzero().flatten().tolist()) == expected


def slow_stale(choice: StaleChoice, history: History, epoch: int, seed: int) -> set[int]:
    """With lists, one image at a time."""
    n = len(history)
    drawn = noise(history, epoch, seed).tolist()
    score, age = history.score.tolist(), history.age.tolist()
    left = max(1, round(choice.keep * n))
    first = sorted(
        (i for i in range(n) if score[i] == INF or age[i] >= choice.max_age),
        key=lambda i: (score[i] != INF, -age[i] if score[i] != INF else 0, drawn[i]),
    )
    chosen = first[:left]
    left -= len(chosen)
    others = sorted((i for i in range(n) if i not in chosen), key=lambda i: drawn[i])
    picks = others[: round(choice.random_share * left)]
    others = sorted((i for i in others if i not in picks), key=lambda i: -score[i])
    return {*chosen, *picks, *others[: left - len(picks)]}


@given(
    data=st.data(),
    n=st.integers(1, 25),
    keep=st.floats(0.05, 1),
    random_share=st.floats(0, 1),
    max_age=st.integers(1, 4),
)
def test_the_choice_is_that_of_a_slow_version(data, n, keep, random_share, max_age):
    # Distinct scores: among equal ones any is as good.
    scores = data.draw(st.permutations([i / 4 for i in range(n)]))
    unseen = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    ages = data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    history = history_of([INF if new else s for s, new in zip(scores, unseen, strict=True)], ages)
    choice = StaleChoice(keep, random_share, max_age)
    mask = choice.choose(history, 3, 10, 7).mask
    assert set(mask.nonzero().flatten().tolist()) == slow_stale(choice, history, 3, 7)
    assert mask.sum() == max(1, round(keep * n))


def test_every_image_is_visited_within_the_bound_on_age():
    """40 images, 30 a time: each is seen again after at most `max_age` epochs and one in which it waits."""
    history, choice = History(40), StaleChoice(keep=0.75, random_share=0.0, max_age=3)
    certain = torch.arange(40) / 40  # always the same order
    oldest = 0
    for epoch in range(30):
        index = choice.choose(history, epoch, 30, 0).mask.nonzero().flatten()
        history.record(index, certain[index])
        history.end_epoch()
        oldest = max(oldest, int(history.age.max()))
    assert oldest == 3


def test_random_picks_reach_images_that_scores_never_would():
    history = history_of([float(i) for i in range(100)])
    seen = torch.zeros(100, dtype=torch.bool)
    for epoch in range(60):
        seen |= StaleChoice(keep=0.5, random_share=0.2, max_age=99).choose(history, epoch, 99, 0).mask
    assert seen.all()
    alone = StaleChoice(keep=0.5, random_share=0.0, max_age=99).choose(history, 1, 99, 0).mask
    assert alone.tolist() == [False] * 50 + [True] * 50


# Random, InfoBatch


def test_random_choices_differ_by_epoch_and_seed_and_by_nothing_else():
    choice, history = RandomChoice(0.5), History(40)
    keys = [(0, 0), (1, 0), (0, 1), (0, 0)]
    masks = [tuple(choice.choose(history, epoch, 9, seed).mask.tolist()) for epoch, seed in keys]
    assert len(set(masks)) == 3
    assert masks[0] == masks[3]
    assert {sum(mask) for mask in masks} == {20}
    other = history_of([float(i) for i in range(40)])
    assert tuple(choice.choose(other, 0, 9, 0).mask.tolist()) == masks[0]


@pytest.mark.parametrize("choice", [RandomChoice(0.5, 0.25), StaleChoice(0.5, full_last=0.25)])
def test_the_last_part_of_a_run_visits_all(choice):
    history = history_of([float(i) for i in range(8)])
    visited = [choice.choose(history, epoch, 8, 0).mask.sum().item() for epoch in range(8)]
    assert visited == [4] * 6 + [8] * 2
    assert [choice.expected_fraction(epoch / 8) for epoch in range(8)] == [0.5] * 6 + [1.0] * 2


def test_infobatch_by_hand():
    history = history_of([1.0, 1.0, 1.0, 5.0, INF])  # mean of the known 2.0
    choice = InfoBatch(prune=0.75, full_last=0.25)
    chosen = choice.choose(history, 1, 8, 0)
    drawn = noise(history, 1, 0)
    assert chosen.mask.tolist() == [bool(u >= 0.75) for u in drawn[:3]] + [True, True]
    assert chosen.weight.tolist() == [4.0, 4.0, 4.0, 1.0, 1.0]
    for epoch, known in ((6, history), (0, History(5))):  # at the end, and where nothing is known
        everything = choice.choose(known, epoch, 8, 0)
        assert everything.mask.all()
        assert everything.weight.tolist() == [1.0] * 5


def test_infobatch_keeps_the_expected_sum_of_any_gradient():
    history = history_of([i / 50 for i in range(50)])
    gradient, totals = torch.linspace(-1, 3, 50), []
    for epoch in range(1, 2001):
        chosen = InfoBatch(0.5, 0.0).choose(history, epoch, 10**6, 0)
        totals.append((chosen.weight * gradient)[chosen.mask].sum().item())
    spread = 2 * (gradient[:25].square().sum() * 0.25 / len(totals)).sqrt().item()  # weight 2, variance 1/4
    assert sum(totals) / len(totals) == pytest.approx(gradient.sum().item(), abs=4 * spread)


# What is expected of a run


def test_the_expected_share_of_a_run_by_hand():
    assert RandomChoice(0.5, full_last=0.25).expected_fraction(0.7) == 0.5
    method = Method("own", choice=InfoBatch(prune=0.5, full_last=0.25))
    assert method.mean_share(8) == (1 + 5 * 0.75 + 2) / 8
    assert stale(0.6).mean_share(7) == pytest.approx(0.6)
    assert kd().mean_share(7) == 1


def test_half_of_the_images_cost_half_as_many_epochs():
    epochs = matched_epochs(Ledger(1, 3), random_epoch(0.5), TrainConfig(epochs=40), 640, "backward_2x")
    assert epochs == 20


# What is remembered of a row


def rows_of(k: int) -> MixedBatch:
    zeros = torch.zeros(k)
    label = torch.arange(k) % 3
    return MixedBatch(torch.zeros(k, 1, 2, 2), label, label, zeros, zeros + 1, torch.arange(k), k)


def test_what_is_remembered_is_the_loss_or_the_uncertainty_of_each_row():
    torch.manual_seed(0)
    student, teacher, mixed = Outputs(torch.randn(5, 3)), Outputs(torch.randn(5, 3)), rows_of(5)
    losses = RowLoss()(student, teacher, mixed)
    assert losses.mean() == pytest.approx(KD(4.0)(student, teacher, mixed).item(), rel=1e-5)
    assert RowLoss()(student, None, mixed).mean() == pytest.approx(
        CrossEntropy()(student, None, mixed).item(), rel=1e-5
    )
    assert torch.equal(Uncertainty()(student, teacher, mixed), entropy(student.logits))


# Selective backprop


def test_the_true_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    expected = [math.log(4), math.log(4 / 3)]
    assert TrueLoss()(logits, torch.tensor([0, 1])).tolist() == pytest.approx(expected)


def test_chances_of_selective_backprop_are_percentiles_to_the_power_of_beta():
    """The first of four images is drawn with chance p^β / Σ p^β, p = 1/4 … 1."""
    scores, generator = torch.tensor([3.0, 1.0, 4.0, 2.0]), torch.Generator().manual_seed(0)
    draws = [
        rank(sampling_keys(scores, torch.rand(4, generator=generator), beta=2.0))[0] for _ in range(8000)
    ]
    chances = torch.stack(draws).bincount(minlength=4) / 8000
    assert chances.tolist() == pytest.approx([9 / 30, 1 / 30, 16 / 30, 4 / 30], abs=0.02)


def test_selective_backprop_draws_k_rows_and_wants_labels():
    teacher, student = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)) for _ in range(2))
    distiller = Distiller(student, teacher, selective_backprop(0.5))
    kept = [tuple(distiller.step(images_of(8), torch.arange(8) % 4).mixed.position.tolist()) for _ in "1234"]
    assert len(set(kept)) > 1  # drawn, not ranked
    assert all(len(set(rows)) == 4 for rows in kept)
    assert distiller.ledger.images.scored == 32
    with pytest.raises(UserError, match="scoring by the true loss needs labels"):
        distiller.step(images_of(8))


# Runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def test_a_stale_run_visits_and_charges_what_it_keeps(teacher, tmp_path, monkeypatch):
    visited = []
    original = Engine.step

    def step(engine, batch, draws, weight=1.0):
        visited.append(batch.index.tolist())
        return original(engine, batch, draws, weight)

    monkeypatch.setattr(Engine, "step", step)
    run(distilled(teacher, MethodConfig("stale", keep=0.6), epochs=3), tmp_path / "run")
    kept = round(0.6 * IMAGES)
    epochs = [[*visited[2 * i], *visited[2 * i + 1]] for i in range(3)]  # 32 + 28 images
    assert [len(epoch) for epoch in epochs] == [kept] * 3
    assert all(len(set(epoch)) == kept for epoch in epochs)
    assert set(epochs[0]) | set(epochs[1]) == set(range(IMAGES))  # those not yet seen come first
    images = summary(tmp_path / "run")["cost"]["images"]
    assert (images["scored"], images["teacher_forwarded"], images["trained"]) == (0, 3 * kept, 3 * kept)
    assert summary(tmp_path / "run")["cost"]["relative_to_kd"]["backward_2x"] == pytest.approx(0.6)
    selections = [line["selection"] for line in metrics(tmp_path / "run")]
    assert [s["visited"] for s in selections] == [0.6] * 3
    assert [s["distinct"] for s in selections] == [0.6] * 3
    assert selections[0]["histogram"] is None  # nothing was remembered yet
    for number, selection in enumerate(selections[1:], start=2):
        bins = selection["histogram"]
        assert bins["remembered"]
        if number == 3:  # by now every image was seen
            assert (sum(bins["kept"]), sum(bins["dropped"])) == (kept, IMAGES - kept)


def test_a_run_chooses_by_what_the_student_said(teacher, tmp_path, monkeypatch):
    """The third epoch's images follow from the logits of the first two, collected on the way."""
    said, order = {}, []
    original = Engine.step

    def step(engine, batch, draws, weight=1.0):
        result = original(engine, batch, draws, weight)
        values = entropy(result.outputs.logits.detach()).tolist()
        said.update(zip(batch.index[result.mixed.position].tolist(), values, strict=True))
        order.append(set(batch.index.tolist()))
        return result

    monkeypatch.setattr(Engine, "step", step)
    config = distilled(teacher, MethodConfig("stale", keep=0.75, random_share=0.0), epochs=3)
    folder = tmp_path / "run"
    frozen = {}
    real = StaleChoice.choose

    def choose(self, history, epoch, epochs, seed):
        frozen[epoch] = dict(said)
        return real(self, history, epoch, epochs, seed)

    monkeypatch.setattr(StaleChoice, "choose", choose)
    run(config, folder)
    third = set().union(*order[-3:])  # 75 = 32 + 32 + 11
    left_out = [0] * 10
    for image in set(frozen[2]) - third:
        left_out[min(int(frozen[2][image] / math.log(10) * 10), 9)] += 1
    assert metrics(folder)[2]["selection"]["histogram"]["dropped"] == left_out
    known = frozen[2]
    assert set(known) == set(range(IMAGES))
    assert third == set(sorted(known, key=lambda i: -known[i])[:75])


def test_infobatch_weighs_up_what_stands_for_others(teacher, tmp_path, monkeypatch):
    weights = []
    original = Engine.step

    def step(engine, batch, draws, weight=1.0):
        result = original(engine, batch, draws, weight)
        weights.append(set(result.mixed.sample_weight.tolist()))
        return result

    monkeypatch.setattr(Engine, "step", step)
    config = distilled(teacher, MethodConfig("infobatch", full_last=0.25), epochs=4)
    run(config, tmp_path / "run")
    shares = [line["selection"]["visited"] for line in metrics(tmp_path / "run")]
    assert shares[0] == shares[3] == 1
    assert all(0.6 < share < 0.95 for share in shares[1:3])
    assert set().union(*weights) == {1.0, 2.0}
    assert set().union(*weights[:4], *weights[-4:]) == {1.0}


def test_a_schedule_is_passed_through_whole_in_fewer_steps(teacher, tmp_path, monkeypatch):
    rates = []
    original = Engine.set_learning_rate
    monkeypatch.setattr(Engine, "set_learning_rate", lambda e, r: (rates.append(r), original(e, r)))
    config = distilled(
        teacher, MethodConfig("random-epoch", keep=0.32), epochs=4, schedule="multistep", lr=1.0
    )
    run(replace(config, train=replace(config.train, milestones=[0.5])), tmp_path / "run")
    assert rates == [1.0, 1.0, 0.1, 0.1]  # 32 images are one step


def test_an_epoch_of_one_image_is_refused_before_training_and_a_last_batch_of_one_is_left_out(
    teacher, tmp_path
):
    for keep, images in ((0.01, 0), (0.33, 32)):
        config = distilled(teacher, MethodConfig("random-epoch", keep=keep), epochs=1)
        config = replace(config, student=ModelConfig("vgg8"))  # 33 images are a batch and one
        if images:
            run(config, tmp_path / "run")
            assert summary(tmp_path / "run")["cost"]["images"]["trained"] == images
        else:
            with pytest.raises(UserError, match="would train on 1 image"):
                run(config, tmp_path / "run")


def test_an_own_loop_cannot_choose_epochs():
    teacher, student = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)) for _ in range(2))
    for method in (stale(), infobatch()):
        with pytest.raises(UserError, match=f"method {method.name} chooses each epoch's images before"):
            Distiller(student, teacher, method).step(images_of(8))


def test_the_true_loss_of_unlabelled_images_is_refused_before_training(teacher, tmp_path):
    config = distilled(teacher, "selective-backprop")
    with pytest.raises(UserError, match="no labels, which scoring by the true loss needs"):
        run(replace(config, data=replace(DATA, labels=False)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_knows_them(teacher, tmp_path, capsys):
    words = ("distill", "--teacher", teacher, "--student", "resnet8", "--data.limit", IMAGES, "--epochs", 1)
    method = ("--method", "stale", "--method.keep", 0.5, "--method.max_age", 3)
    assert call(*words, *method, "--out", tmp_path / "run") == 0
    assert "50.0" in capsys.readouterr().out
    assert call(*words, "--method", "stal", "--out", tmp_path / "other") == 2
    assert "did you mean 'stale'" in capsys.readouterr().err
