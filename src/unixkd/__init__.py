"""Distil a neural network with the least computation: UNIX, honest controls, and a ledger.

>>> import unixkd
>>> unixkd.unix().keep
0.75
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unixkd.distiller import Distiller as Distiller
    from unixkd.errors import UserError as UserError
    from unixkd.method.ledger import Ledger as Ledger
    from unixkd.method.losses import DIST as DIST
    from unixkd.method.losses import DKD as DKD
    from unixkd.method.losses import KD as KD
    from unixkd.method.losses import AttentionTransfer as AttentionTransfer
    from unixkd.method.losses import CrossEntropy as CrossEntropy
    from unixkd.method.losses import SimilarityPreserving as SimilarityPreserving
    from unixkd.method.method import Method as Method
    from unixkd.method.objective import Term as Term
    from unixkd.method.scoring import entropy as entropy
    from unixkd.method.scoring import least_confidence as least_confidence
    from unixkd.method.scoring import margin as margin
    from unixkd.method.step import StepResult as StepResult
    from unixkd.method.unix import hard as hard
    from unixkd.method.unix import kd as kd
    from unixkd.method.unix import mixup as mixup
    from unixkd.method.unix import random as random
    from unixkd.method.unix import remix as remix
    from unixkd.method.unix import student_alone as student_alone
    from unixkd.method.unix import unix as unix
    from unixkd.method.unix import unix_random as unix_random
    from unixkd.models import create_model as create_model
    from unixkd.models import load_student as load_student
    from unixkd.models import load_weights as load_weights

_HOME = {
    "distiller": ("Distiller",),
    "errors": ("UserError",),
    "method.ledger": ("Ledger",),
    "method.losses": ("AttentionTransfer", "CrossEntropy", "DIST", "DKD", "KD", "SimilarityPreserving"),
    "method.method": ("Method",),
    "method.objective": ("Term",),
    "method.scoring": ("entropy", "least_confidence", "margin"),
    "method.step": ("StepResult",),
    "method.unix": ("hard", "kd", "mixup", "random", "remix", "student_alone", "unix", "unix_random"),
    "models": ("create_model", "load_student", "load_weights"),
}
_ROOM = {name: room for room, names in _HOME.items() for name in names}

__all__ = sorted(_ROOM)


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"module 'unixkd' has no attribute '{name}'")
    return getattr(importlib.import_module(f"unixkd.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return __all__
