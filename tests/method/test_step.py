"""The step: equal to plain KD where it must be, k teacher rows, gradients where they belong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from slow import RowCounter, TinyNet, images_of, labels_of, mixed_of
from unixkd.distiller import Distiller
from unixkd.errors import UsageError, UserError
from unixkd.method.batch import Outputs
from unixkd.method.losses import KD, AttentionTransfer, CrossEntropy, SimilarityPreserving
from unixkd.method.method import Method, Scoring
from unixkd.method.mixing import StepCurve
from unixkd.method.objective import Term, evaluate_objective
from unixkd.method.scoring import entropy
from unixkd.method.unix import METHODS, hard, kd, mixup, random, student_alone, unix, unix_random

N, STEPS = 8, 5


def identity(logits: Tensor) -> Tensor:
    """Scores that leave the batch in its order."""
    return -torch.arange(len(logits), dtype=torch.float32)


def train(method: Method, *, dtype: torch.dtype = torch.float32, seed: int = 0, n: int = N):
    """Five SGD steps with momentum; the student, its distiller and the rows of its forwards."""
    student, teacher = TinyNet(seed=1).to(dtype), TinyNet(width=6, seed=2).to(dtype)
    distiller = Distiller(student, teacher, method, seed=seed)
    distiller.measure((3, 8, 8))  # before the hook: measuring runs a copy of the student, hooks included
    counter = RowCounter(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(STEPS):
        result = distiller.step(images_of(n, seed=step).to(dtype))
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student, distiller, counter.rows


# Equal to plain KD


@pytest.mark.parametrize("curve", [None, StepCurve(mix_from=1.0)], ids=["no curve", "step from N"])
def test_identity_ranking_without_mixing_is_kd_bit_for_bit(curve):
    plain, _, plain_rows = train(kd())
    student, _, rows = train(Method("unix", 1.0, identity, curve, Scoring("eval")))
    assert plain_rows == [N] * STEPS
    assert rows == [N, N] * STEPS  # the scoring forwards were really done
    for name, value in plain.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name


def test_a_real_ranking_without_mixing_is_kd_up_to_the_order_of_sums():
    plain, _, _ = train(kd(), dtype=torch.float64)
    student, _, rows = train(Method("unix", 1.0, entropy, None, Scoring("eval")), dtype=torch.float64)
    assert rows == [N, N] * STEPS
    for name, value in plain.named_parameters():
        torch.testing.assert_close(student.get_parameter(name), value, rtol=0, atol=1e-10)


def test_these_comparisons_can_fail():
    plain, _, _ = train(kd())
    mixed, _, _ = train(Method("unix", 1.0, identity, StepCurve(mix_from=0.5), Scoring("eval")))
    assert not torch.equal(plain.head.weight, mixed.head.weight)


# BatchNorm in the scoring forward


class BatchNormFirst(nn.Sequential):
    """Its BatchNorm sees the images themselves, so that statistics can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(3, momentum=0.1), nn.Flatten(), nn.Linear(3 * 64, 5))


def updated(mean: Tensor, variance: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """PyTorch's update: 0.9 · old + 0.1 · batch, with the unbiased variance."""
    values = images.transpose(0, 1).flatten(1)
    return 0.9 * mean + 0.1 * values.mean(1), 0.9 * variance + 0.1 * values.var(1, unbiased=True)


@pytest.mark.parametrize("n", [8, 3])
def test_train_mode_scoring_updates_running_statistics_twice(n):
    student = BatchNormFirst()
    distiller = Distiller(student, BatchNormFirst(), unix(scoring_mode="train"), batch_size=8)
    images = images_of(n)
    result = distiller.step(images)
    mean, variance = updated(torch.zeros(3), torch.ones(3), images)  # all N, clean
    mean, variance = updated(mean, variance, result.mixed.images)  # then the k mixed ones
    torch.testing.assert_close(student[0].running_mean, mean)
    torch.testing.assert_close(student[0].running_var, variance)
    assert student[0].num_batches_tracked == 2


def test_eval_mode_scoring_updates_them_once():
    student = BatchNormFirst()
    result = Distiller(student, BatchNormFirst(), unix(scoring_mode="eval")).step(images_of(8))
    mean, variance = updated(torch.zeros(3), torch.ones(3), result.mixed.images)
    torch.testing.assert_close(student[0].running_mean, mean)
    torch.testing.assert_close(student[0].running_var, variance)


def test_scoring_modes_score_what_they_say():
    images = images_of(8)
    for mode in ("train", "eval"):
        student, like = TinyNet(seed=1), TinyNet(seed=1)
        like.train(mode == "train")
        result = Distiller(student, TinyNet(seed=2), unix(scoring_mode=mode)).step(images)
        torch.testing.assert_close(result.scoring_logits, like(images).detach())
        torch.testing.assert_close(result.scores, entropy(result.scoring_logits))


# Who is kept, who is asked


@pytest.mark.parametrize(("n", "k"), [(8, 6), (7, 6), (6, 6), (3, 3), (1, 1)])
@pytest.mark.parametrize("make", [unix, unix_random, random, hard])
def test_the_teacher_answers_exactly_k_rows(make, n, k):
    student, teacher = TinyNet(seed=1), TinyNet(seed=2)
    distiller = Distiller(student, teacher, make(), batch_size=8)
    distiller.measure((3, 8, 8))
    asked, trained = RowCounter(teacher), RowCounter(student)
    result = distiller.step(images_of(n))
    assert asked.rows == [k]
    assert trained.rows == ([n, k] if distiller.method.scorer else [k])
    assert len(result.mixed) == k
    assert distiller.ledger.images.teacher_forwarded == k


def test_the_most_uncertain_rows_are_kept_in_order():
    images = images_of(8)
    result = Distiller(TinyNet(seed=1), TinyNet(seed=2), hard(0.5)).step(images, labels_of(8))
    expected = sorted(range(8), key=lambda i: -result.scores[i].item())[:4]
    assert result.mixed.position.tolist() == expected
    assert torch.equal(result.mixed.images, images[expected])
    assert torch.equal(result.mixed.label_a, labels_of(8)[expected])


def test_partners_come_from_the_whole_batch():
    """Dropped rows are mixed into kept ones: over some steps every image is somebody's partner."""
    distiller = Distiller(TinyNet(seed=1), TinyNet(seed=2), unix(keep=0.25))
    partners, kept = set(), set()
    for _ in range(20):
        result = distiller.step(images_of(8), torch.arange(8) % 5)
        partners |= set(result.mixed.label_b.tolist())
        kept |= set(result.mixed.position.tolist())
    assert partners == set(range(5))


def test_a_teacher_that_no_loss_needs_is_not_asked():
    teacher = TinyNet(seed=2)
    asked = RowCounter(teacher)
    distiller = Distiller(TinyNet(seed=1), teacher, unix(), [Term("ce", CrossEntropy())])
    distiller.step(images_of(8), labels_of(8))
    assert asked.rows == []
    assert distiller.ledger.images.teacher_forwarded == 0
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())


def test_same_seed_same_choices():
    images, labels = images_of(N), labels_of(N)

    def choices(seed: int) -> list[tuple[list[int], list[float]]]:
        distiller = Distiller(TinyNet(seed=1), TinyNet(seed=2), unix_random(), seed=seed)
        results = [distiller.step(images, labels) for _ in range(4)]
        return [(r.mixed.position.tolist(), r.mixed.weight.tolist()) for r in results]

    first = choices(0)
    assert first == choices(0)
    assert first != choices(1)
    assert len({str(choice) for choice in first}) == 4  # the steps differ among themselves


def test_choices_depend_on_the_step_number_only():
    """Resuming at step 3 goes on as if nothing had happened, whatever torch's own generator did."""
    distillers = [Distiller(TinyNet(seed=1), TinyNet(seed=2), unix_random(), seed=5) for _ in range(2)]
    for _ in range(3):
        distillers[0].step(images_of(N))
    torch.manual_seed(1234)
    distillers[1].steps = 3
    a, b = (d.step(images_of(N)).mixed for d in distillers)
    assert torch.equal(a.position, b.position)
    assert torch.equal(a.images, b.images)


def test_lambda_per_batch_or_per_row():
    images, labels = images_of(N), labels_of(N)
    for per_sample in (False, True):
        method = Method(
            "own", 1.0, None, lambda ranks, _n: torch.ones(len(ranks)), per_sample_lambda=per_sample
        )
        weight = Distiller(TinyNet(), TinyNet(), method).step(images, labels).mixed.weight
        assert len(set(weight.tolist())) == (N if per_sample else 1)
    assert weight.min() > 0
    assert weight.max() < 1


# Gradients


def test_no_gradient_reaches_the_teacher_or_passes_through_scoring():
    student, teacher = TinyNet(seed=1), TinyNet(seed=2)
    result = Distiller(student, teacher, unix(scoring_mode="eval")).step(images_of(N))
    result.loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not result.scoring_logits.requires_grad
    assert not result.scores.requires_grad
    # The same gradient as the loss on the mixed images alone, without any scoring:
    alone = TinyNet(seed=1)
    with torch.no_grad():
        answers = teacher(result.mixed.images)
    kl = nn.KLDivLoss(reduction="batchmean", log_target=True)
    loss = 16 * kl((alone(result.mixed.images) / 4).log_softmax(1), (answers / 4).log_softmax(1))
    loss.backward()
    torch.testing.assert_close(result.loss, loss)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, alone.get_parameter(name).grad)


def test_the_teacher_stays_frozen_and_in_eval_mode():
    student, teacher = TinyNet(seed=1), TinyNet(seed=2)
    distiller = Distiller(student, teacher)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    nn.ModuleList([student, teacher]).train().requires_grad_()  # as a trainer that owns both would do
    result = distiller.step(images_of(N))
    result.loss.backward()
    assert not any(m.training for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


class CastingInside(nn.Module):
    """Autocasts in its own forward, as a precision plugin's wrapper does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(images)


def missing_gradients(student: nn.Module, distiller: Distiller, *, outer: bool | None) -> list[str]:
    """Parameters without a gradient after one step inside an outer autocast region (None: no region)."""
    if outer is None:
        result = distiller.step(images_of(N))
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
            result = distiller.step(images_of(N))
    assert result.loss.dtype == torch.float32
    result.loss.backward()
    return [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("outer", [None, False, True], ids=["no region", "disabled region", "region"])
@pytest.mark.parametrize("inside", [False, True], ids=["plain student", "student autocasts"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_parameter_gets_a_gradient_under_autocast(mode, inside, outer):
    net = TinyNet(seed=1)
    student = CastingInside(net) if inside else net
    distiller = Distiller(student, TinyNet(seed=2), unix(scoring_mode=mode))
    assert missing_gradients(student, distiller, outer=outer) == []
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_losses_are_worked_out_in_full_precision_under_autocast():
    outputs, answers = (
        Outputs(torch.randn(6, 5, generator=g), {"map": torch.randn(6, 4, 3, 3, generator=g)})
        for g in (torch.Generator().manual_seed(seed) for seed in (0, 1))
    )
    objective = [Term("kd", KD()), Term("sp", SimilarityPreserving(("map",), ("map",)))]
    outside = evaluate_objective(objective, outputs, answers, mixed_of(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate_objective(objective, outputs, answers, mixed_of(6))
    assert inside == outside


def test_a_missing_gradient_would_be_seen():
    """What the cast cached under no_grad did before torch fixed issue 112583: a weight cut off."""

    class CutOff(TinyNet):
        def forward(self, images: Tensor) -> Tensor:
            features = self.body(self.stem(images)).mean(dim=(2, 3))
            return nn.functional.linear(features, self.head.weight.detach(), self.head.bias)

    student = CutOff(seed=1)
    assert missing_gradients(student, Distiller(student, TinyNet(seed=2)), outer=True) == ["head.weight"]


def test_the_autocast_cache_is_cleared_between_scoring_and_training(monkeypatch):
    """On versions of torch with issue 112583 this alone keeps the gradients."""
    student, events = TinyNet(seed=1), []
    distiller = Distiller(student, TinyNet(seed=2))
    distiller.measure((3, 8, 8))
    student.register_forward_hook(lambda *_: events.append("forward"))
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: events.append("clear"))
    distiller.step(images_of(N))
    assert events[:3] == ["forward", "clear", "forward"]  # torch itself clears once more afterwards


# What is left alone


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", METHODS)
def test_train_and_eval_flags_of_the_student_stay_as_they_were(name, mode):
    student = TinyNet(seed=1).train()
    student.stem.eval()  # BatchNorm frozen by the user
    student.body[1].weight.requires_grad_(False)
    flags = {n: m.training for n, m in student.named_modules()}
    statistics = student.stem[1].running_mean.clone()
    method = (
        unix(scoring_mode=mode)
        if name == "unix"
        else replace(METHODS[name](), choice=None, mixes_answers=False)
    )
    distiller = Distiller(student, TinyNet(seed=2), method)
    distiller.step(images_of(N), labels_of(N)).loss.backward()
    assert {n: m.training for n, m in student.named_modules()} == flags
    assert torch.equal(student.stem[1].running_mean, statistics)
    assert not student.body[1].weight.requires_grad


def test_flags_are_restored_when_the_student_fails():
    student = TinyNet(seed=1).train()
    student.stem.eval()
    student.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    distiller = Distiller(student, TinyNet(seed=2), unix(scoring_mode="eval"))
    with pytest.raises(RuntimeError, match="out of memory"):
        distiller.step(images_of(N))
    assert student.training
    assert student.body.training
    assert not student.stem.training
    assert distiller.steps == 0


class Wrapper(nn.Module):
    """Stands in for DistributedDataParallel: the network is at `.module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)


def test_a_wrapped_student_is_scored_on_the_inner_module():
    inner = TinyNet(seed=1)
    wrapped = Wrapper(inner)
    distiller = Distiller(wrapped, TinyNet(seed=2))
    distiller.measure((3, 8, 8))
    outside, inside = RowCounter(wrapped), RowCounter(inner)
    distiller.step(images_of(N)).loss.backward()
    assert outside.rows == [6]  # only the pass with gradients goes through the wrapper
    assert inside.rows == [8, 6]
    assert all(p.grad is not None for p in inner.parameters())


def test_a_network_that_merely_has_a_part_called_module_is_not_unwrapped():
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = TinyNet(num_classes=7, seed=1)
            self.head = nn.Linear(7, 5)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.module(images))

    result = Distiller(Headed(), TinyNet(seed=2)).step(images_of(N))
    assert result.scoring_logits.shape == (N, 5)


def test_features_of_wrapped_networks():
    layers = [Term("sp", SimilarityPreserving(("body",), ("body",)))]
    plain, wrapped = (
        Distiller(student, TinyNet(seed=2), kd(), layers).step(images_of(N)).loss
        for student in (TinyNet(seed=1), Wrapper(TinyNet(seed=1)))
    )
    assert torch.equal(plain, wrapped)


# What a step reports, what is refused


def test_parts_are_unweighted_and_the_loss_is_their_weighted_sum():
    objective = [Term("kd", KD(), 0.5), Term("ce", CrossEntropy(), 2.0)]
    result = Distiller(TinyNet(seed=1), TinyNet(seed=2), unix(), objective).step(images_of(N), labels_of(N))
    torch.testing.assert_close(result.loss.detach(), 0.5 * result.parts["kd"] + 2.0 * result.parts["ce"])
    assert not any(part.requires_grad for part in result.parts.values())


def test_the_default_objective():
    with_teacher, alone = Distiller(TinyNet(), TinyNet()), Distiller(TinyNet(), method=student_alone())
    assert with_teacher.objective == [Term("kd", KD(4.0))]
    assert alone.objective == [Term("ce", CrossEntropy())]
    result = alone.step(images_of(N), labels_of(N))
    expected = nn.functional.cross_entropy(result.outputs.logits, labels_of(N))
    torch.testing.assert_close(result.loss, expected)


def test_mixup_keeps_every_row():
    result = Distiller(TinyNet(seed=1), TinyNet(seed=2), mixup()).step(images_of(N), labels_of(N))
    assert sorted(result.mixed.position.tolist()) == list(range(N))
    assert len(set(result.mixed.weight.tolist())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "method unix with the loss kd needs a teacher"),
        (
            {"method": student_alone(), "objective": [Term("kd", KD())]},
            "student-alone trains without a teacher",
        ),
        ({"objective": []}, "objective is empty"),
        ({"teacher": True, "objective": [Term("kd", KD()), Term("kd", KD(1.0))]}, "the same name: kd, kd"),
        ({"teacher": True, "objective": [Term("at", AttentionTransfer())]}, "does not say which layers"),
        (
            {"teacher": True, "objective": [Term("at", AttentionTransfer(("stem", "body"), ("body",)))]},
            "student has 2 .* and the teacher 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(arguments, message):
    arguments = {**arguments, "teacher": TinyNet() if "teacher" in arguments else None}
    with pytest.raises(UserError, match=message):
        Distiller(TinyNet(), **arguments)


def test_a_misspelt_layer_is_refused_before_the_first_step():
    loss = SimilarityPreserving(("bdy",), ("body",))
    with pytest.raises(UsageError, match="unknown layer 'bdy'; did you mean 'body'"):
        Distiller(TinyNet(), TinyNet(), objective=[Term("sp", loss)])


def test_an_empty_batch():
    with pytest.raises(UserError, match="the batch is empty"):
        Distiller(TinyNet(), TinyNet()).step(torch.zeros(0, 3, 8, 8))


def test_missing_labels():
    with pytest.raises(UserError, match="needs labels"):
        Distiller(TinyNet(), method=student_alone()).step(images_of(N))


def test_a_keep_that_leaves_nothing_of_this_batch_size():
    with pytest.raises(UserError, match=r"keep 0\.05 of a batch of 8 keeps no image"):
        Distiller(TinyNet(), TinyNet(), unix(keep=0.05)).step(images_of(N))


def test_different_class_counts():
    with pytest.raises(UserError, match="the student has 5 classes, the teacher 7"):
        Distiller(TinyNet(5), TinyNet(7)).step(images_of(N))
