"""Adapters: the step of `unixkd.Distiller` inside other people's training loops.

Each module needs the package it is named after; import the one you use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from unixkd.distiller import Distiller
from unixkd.method.ledger import Ledger


def build_distiller(*args: Any, **options: Any) -> Distiller:
    """The `Distiller` of these arguments, for a loop that chooses the batches itself.

    Raises:
        UserError: as `Distiller` does; the method chooses each epoch's images, or changes over a run
    """
    distiller = Distiller(*args, **options)
    distiller.check_method()
    return distiller


def train_through(distiller: Distiller, wrapper: nn.Module, rank: int = 0) -> None:
    """Let a distiller train its student through what a loop has wrapped it in: DDP, torch.compile.

    >>> student, teacher = nn.Linear(1, 2), nn.Linear(1, 2)
    >>> distiller = Distiller(student, teacher)
    >>> train_through(distiller, nn.DataParallel(student))
    >>> distiller.student.bare().module is student
    True
    """
    distiller.student = replace(distiller.student, module=wrapper)
    distiller.rank = rank


def costs(ledger: Ledger) -> dict[str, float]:
    """A ledger for a logger: images through each forward, and the cost relative to plain KD's.

    >>> costs(Ledger(student_flops=1, teacher_flops=8))["cost_backward_1x"]
    0.0
    """
    count, relative = ledger.images, ledger.relative_to_kd()
    images = {"seen": ledger.seen, "scored": count.scored, "trained": count.trained}
    return {
        **{f"cost_{convention}": cost for convention, cost in relative.items()},
        **{f"images_{name}": number for name, number in images.items()},
        "images_teacher_forwarded": count.teacher_forwarded,
    }
