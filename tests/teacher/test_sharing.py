"""Student and teacher that share a part: refused by its name, and the student stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from slow import TinyNet, images_of
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.losses import CrossEntropy
from unixkd.method.objective import Term


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.scale = net, nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images) * self.scale


def teacher_with(student: nn.Module, *parts: str) -> nn.Module:
    teacher = TinyNet(seed=2)
    for part in parts:
        setattr(teacher, part, getattr(student, part))
    return teacher


def tied(student: nn.Module, how: str) -> nn.Module:
    teacher = TinyNet(seed=2)
    weight = student.head.weight
    if how == "parameter":
        teacher.head.weight = weight
    elif how == "view":
        teacher.head.weight = nn.Parameter(weight.data.T.T)
    elif how == "rows":
        teacher.head = nn.Linear(8, 3)
        teacher.head.weight = nn.Parameter(weight.data[2:])
    else:
        teacher.load_state_dict(student.state_dict(), assign=True)
    return teacher


SHARED = {
    "early exit": (lambda s: teacher_with(s, "stem", "body"), "shares stem, body with the student"),
    "teacher's head": (lambda s: teacher_with(s, "head"), "shares head with the student"),
    "wrapper": (Wrapper, "shares all its modules with the student"),
    "wrapper of a wrapper": (lambda s: nn.DataParallel(Wrapper(s)), "shares all its modules"),
    "function": (lambda s: lambda images: s(images), "shares all its modules"),
    "method": (lambda s: s.forward, "shares all its modules"),
    "member of a list": (lambda s: [TinyNet(seed=2), Wrapper(s)], "shares all its modules"),
    "tied": (lambda s: tied(s, "parameter"), r"shares head\.weight with"),
    "same storage": (lambda s: tied(s, "view"), r"shares head\.weight with"),
    "part of a storage": (lambda s: tied(s, "rows"), r"shares head\.weight with"),
    "assigned": (lambda s: tied(s, "assign"), r"shares stem\.0\.weight, .* and 6 more with"),
}


@pytest.mark.parametrize("case", SHARED)
def test_a_shared_part_is_named_and_nothing_is_frozen(case):
    student = TinyNet(seed=1).train()
    make, message = SHARED[case]
    with pytest.raises(UserError, match=message) as error:
        Distiller(student, make(student))
    assert "\n" not in str(error.value)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(module.training for module in student.modules())


def test_a_teacher_that_was_wrapped_around_the_student_may_be_copied():
    student = TinyNet(seed=1)
    assert Distiller(student, copy.deepcopy(Wrapper(student))).step(images_of(4)).loss.isfinite()


def with_part(part: nn.Module, seed: int) -> nn.Sequential:
    return nn.Sequential(part, TinyNet(seed=seed))


class Normalise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images - self.mean


@pytest.mark.parametrize(
    ("part", "refused"),
    [(nn.ReLU(), False), (Normalise(), False), (nn.Dropout(), True), (nn.BatchNorm2d(3, affine=False), True)],
    ids=lambda value: type(value).__name__,
)
def test_what_holds_no_weights_may_be_shared_unless_it_has_two_modes(part, refused):
    student, teacher = with_part(part, 1), with_part(part, 2)
    if refused:
        with pytest.raises(UserError, match="shares 0 with the student"):
            Distiller(student, teacher)
    else:
        assert Distiller(student, teacher).step(images_of(4)).loss.isfinite()


def test_a_teacher_that_no_loss_asks_is_left_alone():
    student = TinyNet(seed=1)
    Distiller(student, Wrapper(student), objective=[Term("ce", CrossEntropy())])
    assert all(parameter.requires_grad for parameter in student.parameters())
