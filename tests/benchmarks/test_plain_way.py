"""The plain implementation that plain_way.py times computes what unixkd computes, to the last figure."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import plain_unix
import plain_way
from slow import TinyNet, images_of
from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.distiller import Distiller
from unixkd.method.batch import Batch, Draws
from unixkd.method.step import StepResult, distill_step
from unixkd.method.unix import unix


@st.composite
def cases(draw: st.DrawFn) -> tuple[plain_unix.Settings, int, float]:
    """N, k, b and w; the images of a batch, at times fewer than N or k; λ."""
    n = draw(st.integers(2, 12))
    hyper_parameters = plain_unix.Settings(
        batch_size=n,
        num_kept=draw(st.integers(1, n)),
        mix_from=draw(st.integers(0, n)),
        steepness=draw(st.sampled_from([1.0, 10.0, 1000.0])),
    )
    return hyper_parameters, draw(st.integers(1, n)), draw(st.floats(0, 1))


def networks() -> tuple[nn.Module, nn.Module]:
    """A student in train mode and a teacher in eval mode, in float64, the same at every call."""
    return TinyNet(seed=1).double(), TinyNet(width=6, seed=2).double().eval()


def our_step(
    images: Tensor, partner: Tensor, lam: float, s: plain_unix.Settings
) -> tuple[StepResult, Tensor, nn.Module]:
    """unixkd's step after its backward pass, the teacher's logits in it, and the student."""
    student, teacher = networks()
    n = s.batch_size
    distiller = Distiller(student, teacher, unix(s.num_kept / n, s.mix_from / n, s.steepness))
    answers: list[Tensor] = []
    teacher.register_forward_hook(lambda _module, _inputs, output: answers.append(output))
    draws = Draws(partner, torch.full((len(images),), lam), torch.zeros(len(images)))
    result = distill_step(
        distiller.student, distiller.teacher, Batch(images), draws, distiller.method, distiller.objective, n
    )
    result.loss.backward()
    (teacher_logits,) = answers
    return result, teacher_logits, student


@pytest.mark.usefixtures("double")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # float64 in every example
@given(case=cases(), seed=st.integers(0, 999))
def test_the_plain_step_computes_the_same_numbers(case, seed):
    s, n, lam = case
    images = images_of(n, seed)
    partner = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    ours, teacher_logits, our_student = our_step(images, partner, lam, s)
    student, teacher = networks()
    step = plain_unix.unix_step(student, teacher, images, partner, lam, s)
    step.loss.backward()
    assert len(step.kept) == min(s.num_kept, n)
    assert step.kept.tolist() == ours.mixed.position.tolist()
    for plain, unixkd in (
        (step.scores, ours.scores),
        (step.mixed, ours.mixed.images),
        (step.teacher_logits, teacher_logits),
        (step.loss, ours.loss),
    ):
        torch.testing.assert_close(plain, unixkd, rtol=1e-10, atol=1e-12)
    for name, value in student.named_parameters():
        torch.testing.assert_close(
            value.grad, our_student.get_parameter(name).grad, rtol=1e-8, atol=1e-12, msg=name
        )
    for name, value in student.named_buffers():  # BatchNorm's statistics after both forwards
        torch.testing.assert_close(value, our_student.get_buffer(name), msg=name)


@pytest.mark.usefixtures("double")
def test_the_plain_loop_is_sgd_on_its_step(monkeypatch):
    """Three batches of 4, 4 and 2 images, then the next epoch."""
    batches = [(images_of(n, seed), None) for seed, n in enumerate((4, 4, 2))]
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n).flip(0))
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.3)
    s = plain_unix.Settings(batch_size=4, num_kept=3, mix_from=2, lr=0.1)
    student, teacher = TinyNet(seed=1).eval(), TinyNet(seed=2)
    by_hand, frozen = copy.deepcopy(student).train(), copy.deepcopy(teacher).eval()
    losses = list(itertools.islice(plain_unix.train_steps(student, teacher, batches, s), 4))
    velocity = {name: torch.zeros_like(value) for name, value in by_hand.named_parameters()}
    for (images, _), loss in zip([*batches, batches[0]], losses, strict=True):
        step = plain_unix.unix_step(by_hand, frozen, images, torch.arange(len(images)).flip(0), 0.3, s)
        assert loss == pytest.approx(step.loss.item())
        by_hand.zero_grad()
        step.loss.backward()
        with torch.no_grad():
            for name, value in by_hand.named_parameters():
                velocity[name] = 0.9 * velocity[name] + value.grad + 5e-4 * value
                value -= 0.1 * velocity[name]
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, by_hand.state_dict()[name])


def test_both_sides_get_the_same_images(tmp_path):
    images, labels = plain_way.make_images(12, size=8, classes=3)
    plain_way.write_images(images, labels, tmp_path)
    data = load_data(DataConfig(f"folder:{tmp_path}"))
    by_class = labels.argsort(kind="stable")
    assert data.train.labels.tolist() == labels[by_class].tolist()
    assert data.train.images.tolist() == images[by_class].tolist()
    assert (data.train.padding, data.train.flip) == (4 * 8 // 32, True)


def test_the_plain_loader_crops_mirrors_and_normalises():
    torch.manual_seed(0)
    images, labels = plain_way.make_images(20, size=8, classes=3)
    seen = set()
    for i, (pixels, label) in enumerate(plain_unix.Images(images, labels)):
        padded = np.pad(images[i], ((4, 4), (4, 4), (0, 0)))
        views = [
            view / 255
            for top, left in itertools.product(range(9), repeat=2)
            for crop in [padded[top : top + 8, left : left + 8]]
            for view in (crop, crop[:, ::-1])
        ]
        found = pixels.permute(1, 2, 0).numpy() * plain_unix.STD + plain_unix.MEAN
        distances = [np.abs(view - found).max() for view in views]
        assert min(distances) < 1e-6
        assert label == labels[i]
        seen.add(int(np.argmin(distances)))
    assert len({view // 2 for view in seen}) > 10  # crops
    assert {view % 2 for view in seen} == {0, 1}  # mirrored or not
