"""What may teach: modules, TorchScript, programs of torch.export, functions, and lists of these, each as a module."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
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
    if isinstance(teacher, nn.ModuleList | list | tuple) and len(teacher):
        return MeanTeacher([as_module(each, losses) for each in teacher], temperature_of(losses))
    if isinstance(teacher, nn.Module):
        return teacher
    if isinstance(teacher, torch.export.ExportedProgram):
        return teacher.module()
    if callable(teacher):
        return FunctionTeacher(teacher)
    raise UserError(
        f"the teacher is a {type(teacher).__name__}: give a module, a function or several in a list"
    )


def temperature_of(losses: Sequence[Loss]) -> float:
    """The one temperature of the losses that need a teacher, at which a list of teachers is averaged; none: 1."""
    asking = [loss for loss in losses if loss.needs_teacher]
    values = {float(loss.temperature) for loss in asking if hasattr(loss, "temperature")}
    if len(values) > 1 or any(isinstance(loss, FeatureLoss) for loss in asking):
        raise UserError(
            "a list of teachers is averaged in probability at one temperature: give the losses the same one, and no at "
            f"or sp, which compare features (temperatures: {', '.join(map(str, sorted(values)))})"
        )
    return values.pop() if values else 1.0


class FunctionTeacher(nn.Module):
    """A function from inputs to logits, called as it is; modules that its code names are frozen with it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        inner = function.func if isinstance(function, partial) else function
        known = [getattr(inner, "__self__", None)]
        if inspect.isfunction(inner):
            names = inspect.getclosurevars(inner)
            known = [*names.nonlocals.values(), *names.globals.values()]
        self.named = nn.ModuleList(each for each in known if isinstance(each, nn.Module))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, object]) -> FunctionTeacher:
        return self  # what a function refers to is not copied with it


class MeanTeacher(nn.Module):
    """Several teachers as one: logits whose softmax at T is the mean of the members' softmax at T, in every class."""

    def __init__(self, members: Sequence[nn.Module], temperature: float) -> None:
        super().__init__()
        self.members, self.temperature = nn.ModuleList(members), temperature

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Float[Tensor, "n classes"]:
        """T · log of the mean probabilities."""
        log_p = []
        for member in self.members:  # on inputs of its own: it may work in place
            output = member(*(x.clone() for x in args), **{name: x.clone() for name, x in kwargs.items()})
            log_p.append(
                torch.log_softmax(full_precision(logits_of(output, member)) / self.temperature, dim=1)
            )
        if len(classes := {each.shape[1] for each in log_p}) > 1:
            raise UserError(f"the teachers of the list have different numbers of classes: {sorted(classes)}")
        return self.temperature * (torch.logsumexp(torch.stack(log_p), dim=0) - math.log(len(log_p)))
