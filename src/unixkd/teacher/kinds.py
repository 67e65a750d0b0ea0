"""What may teach: modules, TorchScript, programs of torch.export, functions, and lists of these, each as a module."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unixkd.errors import UserError
from unixkd.method.losses import FeatureLoss, Loss
from unixkd.method.network import logits_of
from unixkd.method.scoring import full_precision

Asked: TypeAlias = nn.Module | Callable[..., object]
TeacherLike: TypeAlias = Asked | Sequence[Asked]
"""A module, a function from inputs to logits, a program of torch.export, or a list of these, whose mean teaches."""


def as_module(teacher: object, losses: Sequence[Loss]) -> nn.Module:
    """The teacher as one module; a list is averaged in probability at the temperature of the losses that ask it.

    Raises:
        UserError: nothing that can be called; a list and losses of several temperatures, or on features
    """
    if isinstance(teacher, nn.ModuleList | list | tuple):
        if not len(teacher):
            raise UserError("the list of teachers is empty")
        return MeanTeacher([as_module(each, losses) for each in teacher], temperature_of(losses))
    if isinstance(teacher, nn.Module):
        return teacher
    if isinstance(teacher, torch.export.ExportedProgram):
        return teacher.module()
    if callable(teacher):
        return FunctionTeacher(teacher)
    raise UserError(
        f"the teacher is a {type(teacher).__name__}: give a module, a function or a list of these"
    )


def temperature_of(losses: Sequence[Loss]) -> float:
    """The one temperature of the losses that need a teacher, at which a list of teachers is averaged; none: 1."""
    asking = [loss for loss in losses if loss.needs_teacher]
    if any(isinstance(loss, FeatureLoss) for loss in asking):
        raise UserError("a list of teachers has no features in common: at and sp need one teacher")
    values = sorted({float(loss.temperature) for loss in asking if hasattr(loss, "temperature")})
    if len(values) > 1:
        raise UserError(
            f"a list of teachers is averaged at one temperature, and the losses have {', '.join(map(str, values))}: "
            "give them the same one"
        )
    return values[0] if values else 1.0


class FunctionTeacher(nn.Module):
    """A function from inputs to logits, called as it is; modules that it names are frozen with it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.named = nn.ModuleList(dict.fromkeys(modules_of(function)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, object]) -> FunctionTeacher:
        return self  # what a function refers to is not copied with it


def modules_of(function: Any) -> Iterator[nn.Module]:
    """The modules that a function is a method of, or has by name: from around it, or given beforehand (`partial`)."""
    values = [getattr(function, "__self__", None)]
    if isinstance(function, partial):
        yield from modules_of(function.func)
        values += [*function.args, *function.keywords.values()]
    elif inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        values += [*names.nonlocals.values(), *names.globals.values()]
    yield from (value for value in values if isinstance(value, nn.Module))


class MeanTeacher(nn.Module):
    """Several teachers as one: logits whose softmax at T is the mean of the members' softmax at T, in every class.

    >>> ones, twos = (lambda x, z=z: x.new_tensor(z).expand(len(x), 2) for z in ([0.0, 0.0], [-torch.inf, 0.0]))
    >>> MeanTeacher([FunctionTeacher(ones), FunctionTeacher(twos)], 1.0)(torch.zeros(1)).softmax(1)
    tensor([[0.2500, 0.7500]])
    """

    def __init__(self, members: Sequence[nn.Module], temperature: float) -> None:
        super().__init__()
        self.members, self.temperature = nn.ModuleList(members), temperature

    def forward(self, *args: Any, **kwargs: Any) -> Float[Tensor, "n classes"]:
        """T · log of the mean probabilities."""
        logits = []
        for member in self.members:  # on inputs of its own: it may work in place
            own = {name: copied(value) for name, value in kwargs.items()}
            logits.append(full_precision(logits_of(member(*map(copied, args), **own), member)))
        if len(classes := {each.shape[1] for each in logits}) > 1:
            raise UserError(f"the teachers of the list have different numbers of classes: {sorted(classes)}")
        log_p = torch.stack([torch.log_softmax(each / self.temperature, dim=1) for each in logits])
        return self.temperature * (torch.logsumexp(log_p, dim=0) - math.log(len(logits)))


def copied(value: Any) -> Any:
    """A tensor's copy; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) else value
