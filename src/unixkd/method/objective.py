"""An objective: the weighted losses of a step, and whether they fit the method and the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unixkd.errors import UserError
from unixkd.method.batch import MixedBatch, Outputs
from unixkd.method.losses import AttentionTransfer, FeatureLoss, Loss
from unixkd.method.method import Method
from unixkd.method.network import default_layers, resolve_layer, unwrap


@dataclass(frozen=True)
class Term:
    """One weighted loss of an objective, under the name that logs show."""

    name: str
    loss: Loss
    weight: float = 1.0


Objective = Sequence[Term]


def evaluate_objective(
    objective: Objective, outputs: Outputs, answers: Outputs | None, mixed: MixedBatch
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum of the terms and each term's own value, in full precision."""
    with torch.autocast(outputs.logits.device.type, enabled=False):
        values = {term.name: term.loss(outputs, answers, mixed) for term in objective}
        loss = torch.stack([term.weight * values[term.name] for term in objective]).sum()
    return loss, {name: value.detach() for name, value in values.items()}


def check_objective(method: Method, objective: Objective, *, has_teacher: bool) -> None:
    """Raise where method, losses and teacher do not fit together."""
    if not objective:
        raise UserError("the objective is empty: give at least one loss a weight")
    names = [term.name for term in objective]
    if len(set(names)) < len(names):
        raise UserError(f"two terms of the objective have the same name: {', '.join(names)}")
    needing = [term.name for term in objective if term.loss.needs_teacher]
    if needing and not method.teacher:
        raise UserError(f"{method.name} trains without a teacher, but the loss {needing[0]} needs one")
    if needing and not has_teacher:
        raise UserError(f"method {method.name} with the loss {needing[0]} needs a teacher")


def resolve_layers(objective: Objective, student: nn.Module, teacher: nn.Module | None) -> list[Term]:
    """Fill in the models' own stages where a feature loss names no layers."""
    resolved = []
    for term in objective:
        loss = term.loss
        if isinstance(loss, FeatureLoss) and teacher is not None:
            student_layers, teacher_layers = (
                tuple(resolve_layer(model, name) for name in names) or own_layers(loss, model)
                for model, names in ((student, loss.student_layers), (teacher, loss.teacher_layers))
            )
            if len(student_layers) != len(teacher_layers):
                raise UserError(
                    f"{term.name} compares layer by layer, but the student has {len(student_layers)} "
                    f"({', '.join(student_layers)}) and the teacher {len(teacher_layers)} "
                    f"({', '.join(teacher_layers)}): name them with student_layers and teacher_layers"
                )
            loss = replace(loss, student_layers=student_layers, teacher_layers=teacher_layers)
        resolved.append(replace(term, loss=loss))
    return resolved


def own_layers(loss: FeatureLoss, model: nn.Module) -> tuple[str, ...]:
    """Attention transfer compares the stages after the stem, similarity the last one."""
    stages = default_layers(unwrap(model))
    return stages[1:] if isinstance(loss, AttentionTransfer) else stages[-1:]
