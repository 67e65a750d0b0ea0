"""The contract with someone's own loop: plain torch networks, a DataLoader, a few added lines."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from slow import images_of
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.losses import KD, AttentionTransfer, CrossEntropy, SimilarityPreserving
from unixkd.method.method import Method
from unixkd.method.mixing import StepCurve
from unixkd.method.objective import Term
from unixkd.method.unix import kd, student_alone, unix

IMAGES, CLASSES, N = 80, 4, 32  # 80 = 32 + 32 + 16


def plain(width: int, seed: int, classes: int = CLASSES) -> nn.Sequential:
    """A network as a user would write it; layers are named 0, 1, …"""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


def task() -> tuple[Tensor, Tensor]:
    """Normalised images whose class is the quarter that is bright."""
    labels = torch.arange(IMAGES) % CLASSES
    images = images_of(IMAGES)
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = divmod(label, 2)
        image[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 1.0
    return (images - images.mean()) / images.std(), labels


def accuracy(model: nn.Module) -> float:
    images, labels = task()
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).double().mean().item()
    model.train()
    return right


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A network that has learnt the task."""
    model = plain(8, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images, labels = task()
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert accuracy(model) == 1.0
    return model


def test_own_loop_with_labels(teacher):
    loader = DataLoader(
        TensorDataset(*task()), batch_size=N, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    student = plain(4, seed=2)
    before = accuracy(student)
    optimizer = torch.optim.SGD(student.parameters(), 0.02, momentum=0.9)
    distiller = Distiller(
        student,
        teacher,
        method=unix(scoring_mode="eval"),
        objective=[Term("kd", KD(4.0)), Term("ce", CrossEntropy(), 0.5)],
    )
    for _ in range(6):
        for images, labels in loader:
            result = distiller.step(images, labels)
            result.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert before < 0.6
    assert accuracy(student) > 0.9
    images = distiller.ledger.images
    assert images.scored == 6 * 80
    assert images.teacher_forwarded == images.trained == 6 * (24 + 24 + 16)  # the short batch is kept whole
    assert "480 images seen" in str(distiller.ledger)


def test_own_loop_without_labels(teacher):
    loader = DataLoader(task()[0], batch_size=N)
    student = plain(4, seed=2)
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9)
    distiller = Distiller(student, teacher, method=unix())
    for _ in range(6):
        for images in loader:
            distiller.step(images).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert accuracy(student) > 0.9
    assert distiller.ledger.images.trained == 6 * 64


def test_own_loop_is_reproducible(teacher):
    def run(seed: int) -> Tensor:
        student = plain(4, seed=2)
        optimizer = torch.optim.SGD(student.parameters(), 0.05)
        distiller = Distiller(student, teacher, seed=seed)
        for images in DataLoader(task()[0], batch_size=N):
            distiller.step(images).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return student[-1].weight.detach()

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_feature_losses_through_named_layers(teacher):
    """Layers of different width and size, by the names `named_modules` gives them."""
    images, _ = task()
    student = plain(4, seed=2)
    objective = [
        Term("at", AttentionTransfer(("2", "5"), ("2", "5")), 1000.0),
        Term("sp", SimilarityPreserving(("6",), ("6",)), 3000.0),
    ]
    distiller = Distiller(student, teacher, unix(), objective)
    result = distiller.step(images[:N])
    result.loss.backward()
    assert set(result.parts) == {"at", "sp"}
    assert result.outputs.features["2"].shape == (24, 4, 8, 8)
    assert all(part > 0 for part in result.parts.values())
    assert student[0].weight.grad.abs().sum() > 0
    assert student[4].weight.grad.abs().sum() > 0
    assert student[8].weight.grad is None  # the head is above every named layer
    for module in (*student.modules(), *teacher.modules()):
        assert not module._forward_hooks  # nothing is left behind in the user's networks


def test_a_method_of_ones_own(teacher):
    """A scorer and a curve are any callables of the stated signature."""

    def energy(logits: Tensor) -> Tensor:
        return -logits.logsumexp(dim=1)

    method = Method("energy", keep=0.5, scorer=energy, curve=lambda ranks, n: (ranks / n).float())
    result = Distiller(plain(4, 2), teacher, method).step(*(x[:N] for x in task()))
    result.loss.backward()
    assert len(result.mixed) == 16
    assert result.mixed.weight[0] == 0
    torch.testing.assert_close(result.scores, energy(result.scoring_logits))


def test_a_loss_of_ones_own(teacher):
    class LogitDistance:
        needs_labels = False
        needs_teacher = True

        def __call__(self, student, teacher, mixed):
            rows = (student.logits - teacher.logits).square().mean(dim=1)
            return (mixed.sample_weight * rows).mean()

    student = plain(4, seed=2)
    distiller = Distiller(student, teacher, kd(), [Term("distance", LogitDistance())])
    result = distiller.step(task()[0][:N])
    result.loss.backward()
    with torch.no_grad():
        expected = (result.outputs.logits - teacher(task()[0][:N])).square().mean()
    torch.testing.assert_close(result.loss.detach(), expected)


def test_a_batch_size_given_beforehand_sets_what_shares_mean(teacher):
    """A first batch that is short must not define N."""
    images, _ = task()
    distiller = Distiller(plain(4, 2), teacher, Method("own", 0.75, None, StepCurve(0.5)), batch_size=N)
    assert len(distiller.step(images[:16]).mixed) == 16
    weight = distiller.step(images[:N]).mixed.weight
    assert (weight[:16] == 0).all()
    assert (weight[16:] > 0).all()
    assert len(weight) == 24


def test_a_saved_distiller_goes_on_drawing_and_counting(teacher):
    images, _ = task()

    def steps(distiller: Distiller, count: int) -> list[float]:
        return [distiller.step(images[:N]).loss.item() for _ in range(count)]

    whole = Distiller(plain(4, 2).eval(), teacher, seed=3)
    expected = steps(whole, 4)
    first = Distiller(plain(4, 2).eval(), teacher, seed=3, batch_size=N)
    assert steps(first, 2) == expected[:2]
    state = json.loads(json.dumps(first.state_dict()))  # plain numbers
    second = Distiller(plain(4, 2).eval(), teacher, seed=3)
    second.load_state_dict(state)
    assert str(second.ledger) == str(first.ledger)  # before any step
    assert second.state_dict() == state
    assert second.batch_size == N
    assert steps(second, 2) == expected[2:]
    assert second.ledger == whole.ledger

    with pytest.raises(UserError, match="drew from seed 3, this one draws from 0"):
        Distiller(plain(4, 2), teacher).load_state_dict(state)
    other = Distiller(plain(4, 2), plain(16, 1), seed=3)
    other.load_state_dict(state)
    with pytest.raises(UserError, match=r"ledger: teacher_flops was \d+ and is now \d+: another teacher"):
        other.step(images[:N])
    other = Distiller(plain(8, 2), teacher, seed=3)
    other.load_state_dict(state)
    with pytest.warns(match="if the student has not grown, this is another one"):
        other.step(images[:N])
    held = Distiller(plain(4, 2), teacher, seed=3).measure((3, 8, 8))
    Distiller(plain(4, 2), teacher, seed=3, ledger=held).load_state_dict(state)
    assert held == first.ledger
    untried = Distiller(plain(4, 2), teacher, seed=3)
    untried.load_state_dict(Distiller(plain(4, 2), teacher, seed=3).state_dict())
    assert untried.ledger.seen == 0


def test_mistakes_are_named(teacher):
    images, labels = task()
    with pytest.raises(UserError, match="method unix with the loss kd needs a teacher"):
        Distiller(plain(4, 2))
    with pytest.raises(UserError, match="the student has 6 classes, the teacher 4"):
        Distiller(plain(4, 2, classes=6), teacher).step(images[:N])
    with pytest.raises(UserError, match="the batch is empty"):
        Distiller(plain(4, 2), teacher).step(images[:0], labels[:0])
    with pytest.raises(
        UserError, match=r"keep \(k/N\) is a share of the batch and must lie in \(0, 1\], got 0"
    ):
        unix(keep=0.0)
    with pytest.raises(
        UserError, match=r"keep 0\.01 of a batch of 32 keeps no image; raise keep or the batch"
    ):
        Distiller(plain(4, 2), teacher, unix(keep=0.01)).step(images[:N])
    with pytest.raises(UserError, match="needs labels"):
        Distiller(plain(4, 2), method=student_alone()).step(images[:N])
    with pytest.raises(UserError, match="does not say which layers its stages are"):
        Distiller(plain(4, 2), teacher, objective=[Term("sp", SimilarityPreserving())])
