"""The epoch's tally against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import torch

from slow import TinyNet, images_of, labels_of
from unixkd.config import MethodConfig
from unixkd.distiller import Distiller
from unixkd.method.batch import Batch, MixedBatch, Outputs
from unixkd.method.from_config import build_method
from unixkd.method.method import StepCounts
from unixkd.method.step import StepResult
from unixkd.method.unix import hard, kd, unix
from unixkd.training.distributed.world import World
from unixkd.training.epoch_stats import MIXED_UNIT, NUM_BINS, EpochStats, ScoreBins, score_bins


def logits_saying(*classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


def result_of(
    position: list[int],
    loss: float,
    *,
    scores: list[float] | None = None,
    scoring: torch.Tensor | None = None,
    said: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> StepResult:
    k = len(position)
    mixed = MixedBatch(
        images=torch.zeros(k, 1, 2, 2),
        label_a=labels,
        label_b=labels,
        weight=torch.zeros(k),
        sample_weight=torch.ones(k),
        position=torch.tensor(position),
    )
    return StepResult(
        loss=torch.tensor(loss),
        parts={"kd": torch.tensor(loss / 2), "ce": torch.tensor(2.0)},
        mixed=mixed,
        outputs=Outputs(torch.zeros(k, 3) if said is None else said),
        counts=StepCounts(
            seen=k if scores is None else len(scores),
            scored=0 if scores is None else len(scores),
            teacher_forwarded=0,
            trained=k,
        ),
        scoring_logits=scoring,
        scores=None if scores is None else torch.tensor(scores),
    )


def add(tally: EpochStats, batch: Batch, result: StepResult) -> None:
    tally.add(batch, result)
    tally.count(result.counts)


def batch_of(index: list[int], labels: list[int] | None = None) -> Batch:
    n = len(index)
    return Batch(
        torch.zeros(n, 1, 2, 2), None if labels is None else torch.tensor(labels), torch.tensor(index)
    )


def test_two_steps_by_hand():
    times_kept = torch.tensor([5, 3, 0, 0, 0, 0, 0, 0])  # of earlier epochs
    tally = EpochStats(times_kept)
    # Four images, two kept (positions 3 and 0, that is images 7 and 4); the student is wrong on 0 and 2.
    add(
        tally,
        batch_of([4, 5, 6, 7], [0, 1, 2, 0]),
        result_of([3, 0], 3.0, scores=[1.0, 0.25, 0.5, 2.0], scoring=logits_saying(1, 1, 0, 0)),
    )
    # Two images, both kept (images 0 and 4 again); wrong on image 0.
    add(
        tally,
        batch_of([0, 4], [2, 2]),
        result_of([0, 1], 1.0, scores=[0.5, 0.5], scoring=logits_saying(0, 2)),
    )
    assert tally.losses() == {"loss": 2.0, "loss_parts": {"kd": 1.0, "ce": 2.0}}
    assert times_kept.tolist() == [6, 3, 0, 0, 2, 0, 0, 1]
    assert asdict(tally.selection()) == {
        "visited": 6 / 8,
        "kept": 4 / 6,
        "distinct": 3 / 8,  # images 0, 4 and 7 in this epoch
        "score_kept": pytest.approx((2.0 + 1.0 + 0.5 + 0.5) / 4),
        "score_dropped": pytest.approx((0.25 + 0.5) / 2),
        "hard_kept": pytest.approx(2 / 4),  # image 4 in the first step, image 0 in the second
        "hard_dropped": pytest.approx(1 / 2),
        "histogram": None,
    }


def test_without_scores_the_training_pass_of_pure_images_tells_who_is_hard():
    tally = EpochStats(torch.zeros(4, dtype=torch.int64))
    labels = torch.tensor([0, 1, 2])
    add(
        tally,
        batch_of([0, 1, 2], [0, 1, 2]),
        result_of([0, 1, 2], 1.0, said=logits_saying(0, 0, 0), labels=labels),
    )
    selection = asdict(tally.selection())
    assert selection["hard_kept"] == pytest.approx(2 / 3)
    assert selection["distinct"] == 0.75
    assert selection["hard_dropped"] is None
    assert selection["score_kept"] is None


def test_without_labels_or_index():
    tally = EpochStats(torch.zeros(4, dtype=torch.int64))
    batch = Batch(torch.zeros(2, 1, 2, 2))
    add(tally, batch, result_of([1], 1.0, scores=[0.0, 1.0], scoring=logits_saying(0, 0)))
    selection = asdict(tally.selection())
    assert (selection["score_kept"], selection["score_dropped"]) == (1.0, 0.0)
    assert selection["hard_kept"] is None
    assert selection["distinct"] == 0.0


def test_scores_that_are_not_finite_are_in_no_mean():
    """In fp16 a scoring forward may overflow: a file of figures must not get a NaN."""
    tally, nan, inf = EpochStats(torch.zeros(4, dtype=torch.int32)), math.nan, math.inf
    add(tally, batch_of([0, 1, 2, 3]), result_of([0, 1], 1.0, scores=[nan, 1.0, 0.25, inf]))
    add(tally, batch_of([0, 1, 2]), result_of([1, 2], 1.0, scores=[nan, 2.0, inf]))
    selection = tally.selection()
    assert (selection.score_kept, selection.score_dropped) == (1.5, 0.25)
    assert (selection.kept, selection.distinct) == (4 / 7, 0.75)
    tally.start_epoch()
    add(tally, batch_of([0, 1]), result_of([0], 1.0, scores=[nan, nan]))
    assert (tally.selection().score_kept, tally.selection().score_dropped) == (None, None)


def test_an_epoch_counts_anew():
    times_kept = torch.zeros(2, dtype=torch.int64)
    tally = EpochStats(times_kept)
    for loss in (1.0, 3.0):
        tally.start_epoch()
        add(tally, batch_of([0, 1]), result_of([0], loss, scores=[1.0, 0.0], scoring=logits_saying(0, 0)))
        assert tally.losses()["loss"] == loss
        assert (tally.seen, tally.kept, asdict(tally.selection())["distinct"]) == (2, 1, 0.5)
    assert times_kept.tolist() == [2, 0]


def mixed_result(position: list[int], partner: list[int], weight: list[float]) -> StepResult:
    result = result_of(position, 1.0)
    mixed = replace(result.mixed, partner=torch.tensor(partner), weight=torch.tensor(weight))
    return replace(result, mixed=mixed)


def test_what_the_rows_of_an_image_gave_to_their_partners_by_hand():
    tally = EpochStats(torch.zeros(8, dtype=torch.int32))
    add(tally, batch_of([4, 5, 6, 7]), mixed_result([3, 0], [1, 3], [0.25, 0.0]))  # of images 7 and 4
    add(tally, batch_of([7, 4, 0, 1]), mixed_result([0, 2], [0, 1], [0.5, 1.0]))  # of images 7 and 0
    add(tally, batch_of([0, 1]), result_of([0], 1.0))  # unmixed
    tally.start_epoch()  # it is of the whole run
    assert (tally.mixed / MIXED_UNIT).tolist() == [1.0, 0, 0, 0, 0, 0, 0, 0.75]


def test_mixing_weights_add_up_to_the_same_in_any_order():
    """In 32-bit floats 1 + 1e-8 + 1e-8 is 1; whole numbers have no such order."""
    weights = torch.rand(999, generator=torch.Generator().manual_seed(0))
    sums = []
    for order in (torch.arange(999), torch.arange(999).flip(0)):
        tally = EpochStats(torch.zeros(1, dtype=torch.int32))
        for weight in weights[order].tolist():
            add(tally, batch_of([0]), mixed_result([0], [0], [weight]))
        sums.append(tally.mixed.item())
    assert sums[0] == sums[1]
    assert sums[0] / MIXED_UNIT == pytest.approx(weights.sum().item(), abs=999 / 2 / MIXED_UNIT)


def test_what_processes_have_counted_of_their_images_is_put_together():
    """Of two processes each visits other images in an epoch, and knows of the others as they were before it."""
    ours, theirs = (EpochStats(torch.full((4,), 5, dtype=torch.int32)) for _ in range(2))
    add(ours, batch_of([0, 2]), mixed_result([0, 1], [1, 0], [0.5, 0.25]))
    add(theirs, batch_of([1, 3]), mixed_result([1], [0], [1.0]))

    class Two(World):
        def reduce(self, tensors: list[torch.Tensor], how: str) -> None:
            assert how == "max"
            for mine, other in zip(tensors, theirs.of_images().values(), strict=True):
                mine.copy_(torch.maximum(mine, other))

    ours.share(Two(0, 2))
    assert ours.times_kept.tolist() == [6, 5, 6, 6]
    assert (ours.mixed / MIXED_UNIT).tolist() == [0.5, 0.0, 0.25, 1.0]


def test_a_loss_that_is_not_finite_is_remembered():
    for broken in (float("nan"), float("inf"), float("-inf")):
        tally = EpochStats(torch.zeros(2, dtype=torch.int64))
        for loss in (1.0, broken, 1.0):
            assert tally.finite() == (tally.steps < 2)
            add(tally, batch_of([0, 1]), result_of([0], loss))
        assert not tally.finite()
        tally.start_epoch()
        assert tally.finite()


@pytest.mark.parametrize("method", [kd(), hard(), unix()], ids=lambda m: m.name)
def test_tally_of_real_steps(method):
    """Sums over steps equal those collected one result at a time; mixed images say nothing about "hard"."""
    student = TinyNet(seed=1)
    distiller = Distiller(student, TinyNet(seed=2), method)
    times_kept = torch.zeros(20, dtype=torch.int64)
    tally, losses, kept = EpochStats(times_kept, score_bins(method, 5)), [], []
    slow = {"kept": [0] * NUM_BINS, "dropped": [0] * NUM_BINS}
    for start, n in ((0, 8), (8, 8), (16, 4)):
        batch = Batch(images_of(n, seed=start), labels_of(n, seed=start), torch.arange(start, start + n))
        result = distiller.step(batch.images, batch.labels, index=batch.index)
        add(tally, batch, result)
        losses.append(result.loss.item())
        kept += (start + result.mixed.position).tolist()
        for position, score in enumerate([] if result.scores is None else result.scores.tolist()):
            which = "kept" if position in result.mixed.position.tolist() else "dropped"
            slow[which][min(int(score / math.log(5) * NUM_BINS), NUM_BINS - 1)] += 1
    assert tally.losses()["loss"] == pytest.approx(sum(losses) / 3)
    assert times_kept.tolist() == [int(i in kept) for i in range(20)]
    selection = asdict(tally.selection())
    assert selection["kept"] == len(kept) / 20
    assert selection["distinct"] == len(set(kept)) / 20
    if method.scorer is not None:
        assert selection["score_kept"] > selection["score_dropped"]
        assert {name: list(selection["histogram"][name]) for name in slow} == slow
    assert all(not value.requires_grad for value in tally.sums.values())


# Histograms of the scores


TENTHS = ScoreBins("entropy", 0.0, 10.0)
"""Bin b holds scores from b up to b + 1."""


def counts(**bins: int) -> tuple[int, ...]:
    """Images in each bin: `counts(b3=2)` are two in the fourth."""
    return tuple(bins.get(f"b{number}", 0) for number in range(NUM_BINS))


def test_a_histogram_by_hand():
    tally = EpochStats(torch.zeros(8, dtype=torch.int64), TENTHS)
    # Scores on an edge belong to the bin above, those beyond the range to the outermost ones.
    add(
        tally,
        batch_of([4, 5, 6, 7], [0, 1, 2, 0]),
        result_of([3, 0], 3.0, scores=[7.0, 0.25, -5.0, 99.0], scoring=logits_saying(1, 1, 0, 0)),
    )  # wrong on the first and on the third
    add(
        tally,
        batch_of([0, 1], [2, 2]),
        result_of([1], 1.0, scores=[0.5, 7.5], scoring=logits_saying(0, 2)),
    )  # wrong on the first
    assert asdict(tally.selection())["histogram"] == {
        "score": "entropy",
        "low": 0.0,
        "high": 10.0,
        "remembered": False,
        "kept": counts(b7=2, b9=1),
        "kept_hard": counts(b7=1),
        "dropped": counts(b0=3),
        "dropped_hard": counts(b0=2),
    }
    tally.start_epoch()
    assert tally.histogram() is None


def test_without_labels_nobody_is_hard_in_a_histogram():
    tally = EpochStats(torch.zeros(4, dtype=torch.int64), TENTHS)
    batch = Batch(torch.zeros(2, 1, 2, 2))
    add(tally, batch, result_of([1], 1.0, scores=[0.0, 1.0], scoring=logits_saying(0, 0)))
    histogram = asdict(tally.histogram())
    assert (histogram["kept"], histogram["dropped"]) == (counts(b1=1), counts(b0=1))
    assert histogram["kept_hard"] is histogram["dropped_hard"] is None


def test_a_score_that_is_no_number_breaks_no_histogram():
    tally = EpochStats(torch.zeros(4, dtype=torch.int64), TENTHS)
    scores = [float("nan"), float("inf"), float("-inf"), 5.0]
    add(tally, batch_of([0, 1, 2, 3]), result_of([0, 1, 2], 1.0, scores=scores, scoring=torch.zeros(4, 3)))
    histogram = asdict(tally.histogram())
    assert sum(histogram["kept"]) == 3
    assert histogram["dropped"] == counts(b5=1)


def test_the_remembered_scores_of_visited_and_left_out_images():
    tally = EpochStats(
        torch.zeros(6, dtype=torch.int64), ScoreBins("loss / mean loss", 0.0, 2.0, of_mean=True)
    )
    inf = float("inf")
    tally.choose(torch.full((6,), inf), torch.tensor([0, 1]))
    assert tally.histogram() is None  # nothing is remembered yet
    # The mean of what is known is 2: in units of it 0.25, 1.75, 0.05 and 1.95, in bins of 0.2.
    tally.choose(torch.tensor([0.5, 3.5, 0.1, 3.9, inf, inf]), torch.tensor([3, 1, 4]))
    assert asdict(tally.histogram()) == {
        "score": "loss / mean loss",
        "low": 0.0,
        "high": 2.0,
        "remembered": True,
        "kept": counts(b8=1, b9=1),
        "kept_hard": None,
        "dropped": counts(b1=1, b0=1),
        "dropped_hard": None,
    }
    tally.start_epoch()
    assert tally.histogram() is None


@pytest.mark.parametrize(
    ("method", "name", "low", "high"),
    [
        (MethodConfig("unix"), "entropy", 0.0, math.log(4)),
        (MethodConfig("hard", scorer="margin"), "margin", -1.0, 0.0),
        (MethodConfig("hard", scorer="least_confidence"), "least confidence", 0.0, 0.75),
        (MethodConfig("selective-backprop"), "true loss", 0.0, 2 * math.log(4)),
        (MethodConfig("stale"), "entropy", 0.0, math.log(4)),
        (MethodConfig("stale", scorer="margin"), "margin", -1.0, 0.0),
        (MethodConfig("infobatch"), "loss / mean loss", 0.0, 2.0),
    ],
)
def test_every_scorer_has_its_range_and_keeps_to_it(method, name, low, high):
    bins = score_bins(build_method(method), 4)
    assert bins is not None
    assert (bins.name, bins.low, bins.high) == (name, low, pytest.approx(high))
    scorer = build_method(method).scorer
    if scorer is not None and name != "true loss":
        scores = scorer(torch.cat([torch.zeros(1, 4), 30 * torch.eye(4)]))
        assert scores.min() == pytest.approx(low, abs=1e-5)
        assert scores.max() == pytest.approx(high, abs=1e-5)


def test_what_is_not_scored_has_no_bins():
    for name in ("kd", "random", "random-epoch", "student-alone"):
        assert score_bins(build_method(MethodConfig(name)), 4) is None
