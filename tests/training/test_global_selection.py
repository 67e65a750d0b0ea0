"""Two and four processes: each selects from its own rows, or all of them together; against one that does it by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import by_hand
from several import together
from slow import TinyNet, images_of, labels_of
from unixkd.data.sampling import check_kept, even_parts, share_out
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.epoch_choice import History, StaleChoice
from unixkd.method.method import Method, Scoring
from unixkd.method.mixing import StepCurve
from unixkd.method.scoring import sampling_keys
from unixkd.method.step import StepResult
from unixkd.method.unix import hard, kd, random, selective_backprop, unix
from unixkd.training.distributed.global_selection import holders
from unixkd.training.distributed.world import ALONE, World
from unixkd.training.distributed.world import together as world_of
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats, score_bins

BATCH, IMAGES, CLASSES, SEED = 24, 24 + 24 + 13, 5, 3
"""Two full batches, and one that 2 and 4 processes share out unevenly."""
ORDER = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(4))
IN_EVAL = Scoring("eval")
"""In train mode BatchNorm looks at each process's rows: scores are not those of one process."""
METHODS: dict[str, Method] = {
    "kd": kd(),
    "unix": unix(),
    "odd": unix(keep=0.6),  # 14 of 24 rows: not as many for each of 4
    "random": random(0.5),
    "selective-backprop": replace(selective_backprop(0.5), scoring=IN_EVAL),
    "half pure": replace(unix(keep=0.5), curve=StepCurve(0.25), scoring=IN_EVAL),
    "eval": replace(unix(), scoring=IN_EVAL),
    "hard": replace(hard(0.5), scoring=IN_EVAL),
    "remembers": Method("remembers", keep=0.5, choice=StaleChoice()),
}
PLAIN = ("kd", "unix", "odd")
"""Methods whose whole epoch is worked out by hand, on a network without BatchNorm."""


def net(seed: int, *, batchnorm: bool = False) -> nn.Module:
    """A small network; with BatchNorm one whose running statistics are not those of any batch."""
    torch.manual_seed(seed)
    if batchnorm:
        made: nn.Module = TinyNet(CLASSES, seed=seed)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        head: nn.Linear = made.head
    else:
        head = nn.Linear(4 * 36, CLASSES)
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), head)
    with torch.no_grad():
        head.weight.mul_(8)  # certain of some images: the last bits of a score decide nothing
    return made


def batch_of(rows: Tensor, *, answers: bool = False) -> Batch:
    """All that can be known of these images."""
    logits = torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(9))
    return Batch(
        images_of(IMAGES)[rows].contiguous(memory_format=torch.channels_last),
        labels_of(IMAGES, CLASSES)[rows],
        rows,
        10 * rows,
        logits[rows] if answers else None,
        1 + rows / 100,
    )


def make_engine(world: World, method: Method, *, batchnorm: bool, across: bool, **more: Any) -> Engine:
    student = net(1, batchnorm=batchnorm).to(memory_format=torch.channels_last)
    wrapped = world.wrapped(student, torch.device("cpu"))
    distiller = Distiller(wrapped, net(2), method, batch_size=BATCH // world.size, seed=SEED, rank=world.rank)
    bins = score_bins(method, CLASSES)
    tally = EpochStats(torch.zeros(IMAGES, dtype=torch.int32), bins)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return Engine(distiller, optimizer, tally, world=world, across=across and world.size > 1, **more)


def epoch(
    engine: Engine, *, weighted: bool = False, answers: bool = False, steps: int = 9
) -> list[StepResult]:
    """The first steps of an epoch, each charged and counted."""
    world, results = engine.world, []
    shares, own = share_out(ORDER, BATCH, world), BATCH // world.size
    for step in range(min(shares.steps, steps)):
        batch = batch_of(shares.order[step * own : (step + 1) * own], answers=answers)
        if not weighted:
            batch = replace(batch, weight=None)
        draws = make_draws(len(batch), seed=SEED, step=step, rank=world.rank)
        result = engine.step(batch, draws, 1.0 if step < shares.full else shares.last)
        engine.tally.count(result.counts)
        results.append(result)
    return results


def kept_by(result: StepResult, batch: Batch) -> list[int]:
    """The images that a process trains on, in their order."""
    held = batch if result.held is None else result.held.batch
    assert held.index is not None
    return held.index[result.mixed.position].tolist()


def own_batch(world: World, step: int) -> Batch:
    own = BATCH // world.size
    return batch_of(share_out(ORDER, BATCH, world).order[step * own : (step + 1) * own])


def labels_of_own(world: World, step: int) -> Tensor:
    labels = own_batch(world, step).labels
    assert labels is not None
    return labels


def rows_are_whole(result: StepResult) -> bool:
    """Whether all that is known of a row has come with it, and its images lie as the others do."""
    assert result.held is not None
    held = result.held.batch
    assert held.index is not None
    real = batch_of(held.index, answers=held.answers is not None)
    names = [
        name for name in ("images", "labels", "view", "answers", "weight") if getattr(held, name) is not None
    ]
    same = all(torch.equal(getattr(held, name), getattr(real, name)) for name in names)
    weight = torch.equal(result.mixed.sample_weight, real.weight[result.mixed.position])  # type: ignore[index]
    return same and weight and held.pixels.is_contiguous(memory_format=torch.channels_last)


def work() -> dict[tuple[str, bool], Any]:
    """All that a process finds out, as plain numbers, by method and whether rows are kept across processes."""
    with world_of() as world:
        return {
            (name, across): one(world, name, across=across) for name in METHODS for across in (False, True)
        }


def one(world: World, name: str, *, across: bool) -> dict[str, Any]:
    """An epoch of a method."""
    plain, method = name in PLAIN, METHODS[name]
    history = History(IMAGES) if method.remembers else None
    engine = make_engine(world, method, batchnorm=not plain, across=across, history=history)
    results = epoch(engine, weighted=not plain, answers=name == "half pure")
    found = {
        "kept": [kept_by(result, own_batch(world, step)) for step, result in enumerate(results)],
        "loss": [float(result.loss) for result in results],
        "scores": [None if r.scores is None else r.scores.tolist() for r in results],
        "wrong": [
            None
            if r.scoring_logits is None
            else (r.scoring_logits.argmax(1) != labels_of_own(world, step)).tolist()
            for step, r in enumerate(results)
        ],
        "pure": [result.mixed.num_pure for result in results],
        "counts": [(r.counts.seen, r.counts.trained, r.counts.teacher_cached) for r in results],
        "whole": [result.held is None or plain or rows_are_whole(result) for result in results],
        "held": [result.held is not None for result in results],
        "given": sum(0 if r.held is None else len(r.held.batch) - r.counts.seen for r in results),
        "weights": [weight.tolist() for weight in engine.student.parameters()],
    }
    if across and name == "unix":
        small = make_engine(world, method, batchnorm=False, across=True, micro_batch=2)
        epoch(small)
        found["in parts"] = [weight.tolist() for weight in small.student.parameters()]
    engine.tally.share(world)
    found["selection"] = engine.tally.joined(world).selection()
    found["times kept"] = engine.tally.times_kept.tolist()
    if history is not None:
        world.reduce([history.fresh], "min")
        found["remembered"] = history.fresh.isfinite().nonzero().flatten().tolist()
    return found


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest) -> list[dict[Any, Any]]:
    return together(request.param, work)


def by_one(size: int, name: str, *, across: bool) -> by_hand.Trained:
    method = METHODS[name]
    return by_hand.train(
        net(1),
        net(2),
        images_of(IMAGES),
        ORDER.tolist(),
        BATCH,
        size,
        lambda rows, step, rank: make_draws(rows, seed=SEED, step=step, rank=rank),
        keep=method.keep,
        across=across,
        mixes=method.curve is not None,
    )


def assert_weights(given: list[Any], student: nn.Module) -> None:
    for values, weight in zip(given, student.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(values), weight.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_they_compute_what_one_does_rank_by_rank(name, across, found):
    """Every step's rows and losses, the last and uneven one's too, and the weights at the end."""
    by_one_alone = by_one(len(found), name, across=across)
    for rank, each in enumerate(found):
        mine = each[name, across]
        assert mine["held"] == [across and name != "kd"] * 3
        if name != "kd":  # which does not rank
            assert mine["kept"] == [[image for image, _ in step[rank]] for step in by_one_alone.kept]
        torch.testing.assert_close(
            mine["loss"], [losses[rank] for losses in by_one_alone.losses], rtol=1e-4, atol=1e-6
        )
        assert_weights(mine["weights"], by_one_alone.student)
    first = sum(each[name, across]["loss"][0] for each in found) / len(found)
    assert first == pytest.approx(sum(by_one_alone.losses[0]) / len(found), rel=1e-4)


def test_kd_is_that_of_one_process(found):
    alone = by_one(1, "kd", across=False)
    for each in found:
        assert_weights(each["kd", False]["weights"], alone.student)


def test_in_parts_the_same_is_learnt(found):
    assert_weights(found[0]["unix", True]["in parts"], by_one(len(found), "unix", across=True).student)


@pytest.mark.parametrize("name", ["eval", "hard", "half pure"])
def test_they_keep_what_one_process_keeps(name, found):
    """Of the first step, as the weights are the same there."""
    engine = make_engine(ALONE, METHODS[name], batchnorm=True, across=True)
    (result,) = epoch(engine, steps=1)
    assert result.held is None
    assert sorted(kept_in(found, name, 0)) == sorted(kept_by(result, own_batch(ALONE, 0)))
    local = [image for each in found for image in each[name, False]["kept"][0]]
    assert sorted(local) != sorted(kept_in(found, name, 0)), "the test could not fail"


def kept_in(found: list[dict[Any, Any]], name: str, step: int) -> list[int]:
    return [image for each in found for image in each[name, True]["kept"][step]]


def draws_of(found: list[dict[Any, Any]], step: int) -> Tensor:
    """The noise of all rows of a step, as each process draws it for its own."""
    rows = even_parts(min(BATCH, IMAGES - step * BATCH), len(found))
    return torch.cat([make_draws(n, seed=SEED, step=step, rank=r).noise for r, n in enumerate(rows)])


@pytest.mark.parametrize("step", [0, 2])
def test_without_scores_noise_ranks_all(step, found):
    whole = ORDER[step * BATCH : (step + 1) * BATCH]
    best = whole[draws_of(found, step).topk(min(BATCH // 2, len(whole))).indices]
    assert sorted(kept_in(found, "random", step)) == sorted(best.tolist())


def test_a_draw_by_scores_is_one_from_all_rows(found):
    scores = torch.tensor(
        [score for each in found for score in each["selective-backprop", True]["scores"][0]]
    )
    keys = sampling_keys(scores, draws_of(found, 0), 1.0)
    best = ORDER[:BATCH][keys.topk(BATCH // 2).indices]
    assert sorted(kept_in(found, "selective-backprop", 0)) == sorted(best.tolist())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "kd"])
def test_equal_work_and_whole_rows(name, found):
    for step in range(3):
        rows = min(BATCH, IMAGES - step * BATCH)
        kept = min(round(METHODS[name].keep * BATCH), rows)
        counts = [each[name, True]["counts"][step] for each in found]
        assert [trained for _, trained, _ in counts] == even_parts(kept, len(found))
        assert [seen for seen, _, _ in counts] == even_parts(rows, len(found))
        assert len(set(kept_in(found, name, step))) == kept
    assert all(all(each[name, True]["whole"]) for each in found)
    assert any(each[name, True]["given"] for each in found), "no row had to move"


def test_rows_above_the_step_of_the_curve_are_pure_and_answered_from_the_store(found):
    """b = 6 of 24 rows together, wherever they are held; of the 13 of the last step too."""
    for step in range(3):
        pure = [each["half pure", True]["pure"][step] for each in found]
        assert sum(pure) == 6
        assert pure == [each["half pure", True]["counts"][step][2] for each in found]


@pytest.mark.parametrize("name", ["eval", "hard", "half pure"])
def test_what_is_summed_up_is_that_of_all(name, found):
    """Kept images counted once, with the scores that their own process gave them."""
    kept_scores, dropped_scores, kept_wrong = [], [], 0
    for step in range(3):
        parts = by_hand.parts_of(ORDER[step * BATCH : (step + 1) * BATCH].tolist(), len(found))
        chosen = set(kept_in(found, name, step))
        for each, part in zip(found, parts, strict=True):
            mine = each[name, True]
            for image, score, wrong in zip(part, mine["scores"][step], mine["wrong"][step], strict=True):
                (kept_scores if image in chosen else dropped_scores).append(score)
                kept_wrong += wrong and image in chosen
    for each in found:
        selection = each[name, True]["selection"]
        assert selection["score_kept"] == pytest.approx(sum(kept_scores) / len(kept_scores), rel=1e-5)
        assert selection["score_dropped"] == pytest.approx(
            sum(dropped_scores) / len(dropped_scores), rel=1e-5
        )
        assert selection["hard_kept"] == pytest.approx(kept_wrong / len(kept_scores))
        kept = [image for step in range(3) for image in kept_in(found, name, step)]
        assert each[name, True]["times kept"] == [kept.count(image) for image in range(IMAGES)]
        histogram = selection["histogram"]
        assert sum(histogram["kept"]) == len(kept)
        assert sum(histogram["kept_hard"]) == kept_wrong
        assert sum(histogram["dropped"]) == IMAGES - len(kept)


def test_what_is_remembered_is_of_the_rows_kept(found):
    kept = {image for step in range(3) for image in kept_in(found, "remembers", step)}
    assert all(set(each["remembers", True]["remembered"]) == kept for each in found)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_rows_stay_while_there_is_room(owners):
    owner = torch.tensor(owners)
    room = even_parts(len(owners), 4)
    holder = holders(owner, room)
    assert torch.bincount(holder, minlength=4).tolist() == room
    stayed = torch.bincount(owner[owner == holder], minlength=4).tolist()
    had = torch.bincount(owner, minlength=4).tolist()
    assert stayed == [min(h, r) for h, r in zip(had, room, strict=True)]
    for process in range(4):  # the most uncertain ones
        mine = (holder == owner)[owner == process].tolist()
        assert mine == sorted(mine, reverse=True)


def test_too_few_rows_for_each():
    check_kept(0.34, 12, World(0, 2), across=True)  # 4 of 12, of 6 each 2
    with pytest.raises(UserError, match="fewer than 2"):
        check_kept(0.25, 12, World(0, 2), across=True)
    with pytest.raises(UserError, match="fewer than 2"):
        check_kept(0.3, 12, World(0, 4), across=True)
