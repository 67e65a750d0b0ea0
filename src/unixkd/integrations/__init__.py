"""Adapters: the step of `unixkd.Distiller` inside other people's training loops.

Each module needs the package it is named after; import the one you use.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from unixkd.distiller import Distiller
from unixkd.method.ledger import Ledger


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
    """A ledger for a logger: images through each forward, and the cost relative to plain KD's where it is known.

    >>> costs(Ledger(student_flops=1, teacher_flops=8))["cost_backward_1x"]
    0.0
    """
    return {
        **{f"cost_{convention}": cost for convention, cost in (ledger.relative_to_kd() or {}).items()},
        "images_seen": ledger.seen,
        "images_scored": ledger.images.scored,
        "images_trained": ledger.images.trained,
        "images_teacher_forwarded": ledger.images.teacher_forwarded,
    }
