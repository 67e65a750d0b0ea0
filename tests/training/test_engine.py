"""The training step on tensors: it changes what it says it changes. That it waits for no GPU: `test_fake_cuda`."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from slow import TinyNet, images_of, labels_of
from unixkd.distiller import Distiller
from unixkd.method.batch import Batch, Draws
from unixkd.method.draws import epoch_draws, make_draws
from unixkd.method.losses import DIST, DKD, KD, AttentionTransfer, CrossEntropy, Loss, SimilarityPreserving
from unixkd.method.method import Method
from unixkd.method.mixing import StepCurve, num_kept, num_pure
from unixkd.method.objective import Term
from unixkd.method.scoring import least_confidence, margin
from unixkd.method.unix import METHODS, kd, mixup, unix
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats

N, CLASSES = 8, 5
LAYERS = ("stem", "body")
LOSSES: dict[str, Loss] = {
    "kd": KD(),
    "ce": CrossEntropy(0.1),
    "dkd": DKD(),
    "dist": DIST(),
    "at": AttentionTransfer(LAYERS, LAYERS),
    "sp": SimilarityPreserving(LAYERS, LAYERS),
}
CASES: dict[str, Method] = {
    **{name: make() for name, make in METHODS.items()},
    "unix, step curve": replace(unix(), curve=StepCurve(0.5)),
    "unix, eval scoring": unix(scoring_mode="eval", scorer=margin),
    "unix, lambda per sample": replace(unix(scorer=least_confidence), per_sample_lambda=True),
    "remix": mixup(),  # with what it stores: below
    "unix, half pure": replace(unix(keep=0.5), curve=StepCurve(0.5)),
}


def make_engine(
    method: Method,
    losses: list[str],
    **options: Any,
) -> Engine:
    """An engine over two small networks; the teacher is the wider one."""
    student, teacher = TinyNet(seed=1), TinyNet(width=6, seed=2)
    objective = [Term(name, LOSSES[name], 0.5) for name in losses]
    distiller = Distiller(student, teacher, method, objective, batch_size=N)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return Engine(distiller, optimizer, EpochStats(torch.zeros(3 * N, dtype=torch.int32)), **options)


def batch_of(n: int = N, *, answers: bool = False, seed: int = 0) -> Batch:
    logits = torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(seed))
    return Batch(
        images_of(n, seed).contiguous(memory_format=torch.channels_last),
        labels_of(n, seed=seed),
        torch.arange(n),
        torch.zeros(n, dtype=torch.int64),
        logits if answers else None,
    )


def draws_of(method: Method, n: int = N, step: int = 0) -> Draws:
    return make_draws(n, seed=0, step=step, per_sample_lambda=method.per_sample_lambda)


@pytest.mark.parametrize("name", [name for name in CASES if name != "student-alone"])
def test_stored_answers_serve_the_rows_that_stay_pure(name):
    method = CASES[name]
    counts = make_engine(method, ["kd"]).step(batch_of(answers=True), draws_of(method)).counts
    k = num_kept(method.keep, N, N)
    pure = num_pure(method.curve, k, N)
    assert (counts.teacher_cached, counts.teacher_forwarded) == (pure, k - pure)


# What a step does


def plain_step(engine: Engine, batch: Batch, draws: Draws) -> None:
    """The same in an own loop."""
    result = engine.distiller.run(batch, draws)
    engine.optimizer.zero_grad()
    result.loss.backward()
    engine.optimizer.step()


def same(a: Engine, b: Engine) -> bool:
    mine, theirs = a.student.state_dict(), b.student.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("name", ["kd", "unix", "random", "mixup"])
def test_a_step_is_run_backward_and_optimiser(name):
    method = CASES[name]
    engine, by_hand = (make_engine(method, ["kd", "ce"]) for _ in range(2))
    for step in range(3):
        batch, draws = batch_of(seed=step), draws_of(method, step=step)
        engine.step(batch, draws)
        plain_step(by_hand, batch, draws)
    assert same(engine, by_hand)
    assert not same(engine, make_engine(method, ["kd", "ce"]))
    assert engine.tally.times_kept.sum() == 3 * num_kept(method.keep, N, N)


def test_gradients_are_clipped_as_one_vector():
    plain, clipped = (make_engine(kd(), ["kd"], clip_norm=norm) for norm in (None, 1e-3))
    for engine in (plain, clipped):
        engine.step(batch_of(), draws_of(kd()))
    whole, cut = (torch.cat([p.grad.flatten() for p in e.student.parameters()]) for e in (plain, clipped))
    assert whole.norm() > 1e-3
    torch.testing.assert_close(cut, whole * (1e-3 / whole.norm()), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_reach_the_student_in_the_configured_layout(channels_last):
    engine = make_engine(unix(), ["kd"], channels_last=channels_last)
    layouts: list[bool] = []
    engine.student.register_forward_hook(lambda _m, inputs, _o: layouts.append(inputs[0].is_contiguous()))
    engine.step(batch_of(), draws_of(unix()))
    assert layouts == [not channels_last] * 2  # scored, trained


@pytest.mark.parametrize("told", [0.25, torch.tensor(0.25)], ids=["number", "tensor"])
@pytest.mark.parametrize("tensor", [False, True], ids=["kept as a number", "kept as a tensor"])
def test_the_learning_rate_is_set_in_place_where_it_is_a_tensor(tensor, told):
    engine = make_engine(kd(), ["kd"])
    rate = torch.tensor(0.1) if tensor else 0.1
    engine.optimizer = torch.optim.SGD(engine.student.parameters(), lr=rate, fused=True)
    engine.set_learning_rate(told)
    (group,) = engine.optimizer.param_groups
    assert group["lr"] == 0.25
    assert isinstance(group["lr"], Tensor) == tensor
    if tensor:
        assert group["lr"] is rate
        assert rate == 0.25
    before = engine.student.head.weight.detach().clone()
    engine.step(batch_of(), draws_of(kd()))
    expected = before - 0.25 * engine.student.head.weight.grad
    torch.testing.assert_close(engine.student.head.weight, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_state_is_every_tensor_that_a_step_changes(optimizer):
    """Held against all tensors that the process has."""
    engine = make_engine(unix(), ["kd"])
    engine.optimizer = optimizer(engine.student.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    batches = [batch_of(seed=seed) for seed in (0, 1)]
    engine.step(batches[0], draws_of(unix()))  # makes the optimiser's state
    alive = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and not t.is_meta]
    before = [t.detach().clone() for t in alive]
    engine.step(batches[1], draws_of(unix(), step=1))
    changed = {id(now) for now, then in zip(alive, before, strict=True) if not unchanged(now.detach(), then)}
    assert changed <= {id(tensor) for tensor in engine.state().values()}
    assert {id(engine.student.head.weight), id(engine.tally.times_kept)} <= changed


def unchanged(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN (which another test may have left) being equal to NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def test_the_average_follows_the_weights():
    engine = make_engine(kd(), ["kd"])
    engine.average = AveragedModel(engine.student)  # the mean of all steps
    seen = []
    for step in range(3):
        engine.step(batch_of(seed=step), draws_of(kd(), step=step))
        seen.append(engine.student.head.weight.detach().clone())
    torch.testing.assert_close(engine.average.module.head.weight, torch.stack(seen).mean(0))


def test_an_epochs_draws_are_those_of_its_steps_one_after_the_other():
    """A step of a captured epoch is told what an eager one would draw."""
    whole = epoch_draws(2 * N + 3, N, seed=3, first_step=5, per_sample_lambda=True)
    for number, (start, stop) in enumerate(((0, N), (N, 2 * N), (2 * N, 2 * N + 3))):
        single = make_draws(stop - start, seed=3, step=5 + number, per_sample_lambda=True)
        rows = whole.rows(start, stop)
        assert all(torch.equal(getattr(rows, f), getattr(single, f)) for f in ("partner", "lam", "noise"))
