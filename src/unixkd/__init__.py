"""Distil a neural network with the least computation: UNIX, honest controls, and a ledger.

>>> import unixkd
>>> unixkd.unix().keep
0.75
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unixkd.cost import Ledger as Ledger
    from unixkd.distill import StepResult as StepResult
    from unixkd.distiller import Distiller as Distiller
    from unixkd.errors import UserError as UserError
    from unixkd.feature_losses import AttentionTransfer as AttentionTransfer
    from unixkd.feature_losses import SimilarityPreserving as SimilarityPreserving
    from unixkd.losses import DIST as DIST
    from unixkd.losses import DKD as DKD
    from unixkd.losses import KD as KD
    from unixkd.losses import CrossEntropy as CrossEntropy
    from unixkd.methods import Method as Method
    from unixkd.methods import hard as hard
    from unixkd.methods import kd as kd
    from unixkd.methods import mixup as mixup
    from unixkd.methods import random as random
    from unixkd.methods import remix as remix
    from unixkd.methods import student_alone as student_alone
    from unixkd.methods import unix as unix
    from unixkd.methods import unix_random as unix_random
    from unixkd.models import create_model as create_model
    from unixkd.models import load_student as load_student
    from unixkd.models import load_weights as load_weights
    from unixkd.objective import Term as Term
    from unixkd.scoring import entropy as entropy
    from unixkd.scoring import least_confidence as least_confidence
    from unixkd.scoring import margin as margin

_HOME = {
    "cost": ("Ledger",),
    "distill": ("StepResult",),
    "distiller": ("Distiller",),
    "errors": ("UserError",),
    "feature_losses": ("AttentionTransfer", "SimilarityPreserving"),
    "losses": ("DIST", "DKD", "KD", "CrossEntropy"),
    "methods": ("Method", "hard", "kd", "mixup", "random", "remix", "student_alone", "unix", "unix_random"),
    "models": ("create_model", "load_student", "load_weights"),
    "objective": ("Term",),
    "scoring": ("entropy", "least_confidence", "margin"),
}
_ROOM = {name: room for room, names in _HOME.items() for name in names}

__all__ = sorted(_ROOM)


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"module 'unixkd' has no attribute '{name}'")
    return getattr(importlib.import_module(f"unixkd.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return __all__
