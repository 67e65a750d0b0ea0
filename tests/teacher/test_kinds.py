"""What may teach: the same loss as the plain module gives, frozen, nothing copied; a list's mean by hand."""

from __future__ import annotations

import copy
import functools
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from slow import TinyNet, images_of
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.losses import DIST, KD, AttentionTransfer
from unixkd.method.objective import Term
from unixkd.method.unix import kd, unix
from unixkd.teacher.kinds import FunctionTeacher, MeanTeacher, as_module


def with_dropout(seed: int = 2) -> nn.Sequential:
    """In train mode, as users leave a network."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 5))


def scripted(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and people have it
        return torch.jit.script(net)


def frozen(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(torch.jit.script(net.eval()))


def traced(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net.eval(), images_of(8))


def program(net: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(
        net.eval(), (images_of(8),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
    )


class Around(nn.Module):
    """A user's wrapper around something that has no modes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout()

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.inner(images))


KINDS = {
    "module": lambda net: net,
    "scripted": scripted,
    "frozen": frozen,
    "traced": traced,
    "program": program,
    "module of a program": lambda net: program(net).module(),
    "around a program": lambda net: Around(program(net).module()),
    "function": lambda net: lambda images: net(images),
    "method": lambda net: net.forward,
    "partial": lambda net: functools.partial(net.forward),
    "list of one": lambda net: [net],
    "list of equal ones": lambda net: nn.ModuleList([net, copy.deepcopy(net)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_teaches_as_the_plain_module_does(kind):
    expected = Distiller(TinyNet(seed=1), with_dropout()).step(images_of(8)).loss.item()
    net = with_dropout()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    distiller = Distiller(TinyNet(seed=1), KINDS[kind](net))
    module = distiller.teacher.network.module
    assert isinstance(module, nn.Module)
    for _ in range(2):
        distiller.teacher.network.module.training = True  # as a caller's model.train() might
        distiller.steps = 0
        distiller.student.module.load_state_dict(TinyNet(seed=1).state_dict())
        result = distiller.step(images_of(8))
        assert result.loss.item() == pytest.approx(expected, rel=1e-4)
        result.loss.backward()
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_list_teaches_the_mean_probability_at_the_losses_temperature():
    """At T = 2: (0.2, 0.8) and (0.6, 0.4) are (0.4, 0.6)."""
    logits = [2 * torch.tensor(p).log() for p in ([0.2, 0.8], [0.6, 0.4])]
    teachers = [lambda images, z=z: z.expand(len(images), 2) for z in logits]
    distiller = Distiller(TinyNet(2, seed=1), teachers, kd(), [Term("kd", KD(2.0))])
    result = distiller.step(images_of(4))
    torch.testing.assert_close((result.answers.outputs.logits / 2).softmax(1), torch.tensor([[0.4, 0.6]] * 4))
    log_p = (result.outputs.logits / 2).log_softmax(1)
    by_hand = 4 * (0.4 * (math.log(0.4) - log_p[:, 0]) + 0.6 * (math.log(0.6) - log_p[:, 1])).mean()
    torch.testing.assert_close(result.loss, by_hand)


def test_each_network_of_a_list_is_charged():
    one, two = TinyNet(width=6, seed=2), TinyNet(width=8, seed=3)
    each = []
    for teacher in (one, two, [one, two]):
        distiller = Distiller(TinyNet(seed=1), teacher)
        distiller.step(images_of(4))
        each.append(distiller.ledger.teacher_flops)
    assert each[0] + each[1] == each[2]


def test_members_that_work_in_place_do_not_disturb_each_other():
    def in_place(images: Tensor) -> Tensor:
        return images.sub_(0.5).flatten(1)[:, :5]

    mean = MeanTeacher([FunctionTeacher(in_place), FunctionTeacher(in_place)], 1.0)
    given = mean(images_of(4))
    torch.testing.assert_close(given.softmax(1), in_place(images_of(4)).softmax(1))


def test_what_cannot_teach_is_refused():
    with pytest.raises(UserError, match="the teacher is a int: give a module, a function or several"):
        as_module(5, [KD()])
    with pytest.raises(UserError, match="the teacher is a list: give a module"):
        as_module([], [KD()])
    with pytest.raises(UserError, match=r"different numbers of classes: \[5, 6\]"):
        Distiller(TinyNet(seed=1), [TinyNet(seed=2), TinyNet(6)]).step(images_of(4))
    pair = [TinyNet(seed=2), TinyNet(seed=3)]
    for objective, message in (
        (
            [Term("kd", KD(4.0)), Term("dist", DIST(1.0))],
            r"at one temperature: .* \(temperatures: 1\.0, 4\.0\)",
        ),
        ([Term("at", AttentionTransfer(("stem",), ("stem",)))], "and no at or sp, which compare features"),
    ):
        with pytest.raises(UserError, match=message):
            Distiller(TinyNet(seed=1), pair, unix(), objective)
