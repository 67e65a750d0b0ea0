"""Whether a run is still worth going on with: its losses and weights are finite, and so are its teacher's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unixkd import runstate
from unixkd.errors import UserError
from unixkd.sharding import own_part

if TYPE_CHECKING:
    from unixkd.train import Trainer

NAMED = 8
"""Images that an error names."""


def check(run: Trainer) -> None:
    """Raise where an epoch has broken the weights, or the teacher has failed, before anything is saved.

    Every process has to call it.
    """
    runstate.share(run)
    check_answers(run)
    parts = [own_part(p.detach()) for p in run.parts.student.parameters()]
    weights = torch.stack([part.isfinite().all() for part in parts]).all()
    if not all(run.world.gather(bool(run.engine.tally.finite() and weights))):
        raise not_finite(run)


def look(run: Trainer) -> None:
    """Raise where this process's steps so far went wrong; waits for the device."""
    check_answers(run)
    if not run.engine.tally.finite():
        raise not_finite(run)


def check_answers(run: Trainer) -> None:
    """Raise where the teacher's answers to more images than allowed were not finite; waits for the device."""
    faulty, allowed = run.engine.tally.unanswered > 0, run.config.answers.max_faulty
    if int(faulty.sum()) > allowed:
        named = ", ".join(map(str, faulty.nonzero().flatten()[:NAMED].tolist()))
        raise UserError(
            f"epoch {run.epoch + 1}: the teacher's logits are not finite for {int(faulty.sum())} images "
            f"({named}{', …' if int(faulty.sum()) > NAMED else ''}); are its mean, std and precision right? Up to "
            f"--answers.max_faulty ({allowed}) are left out of the losses"
        )


def not_finite(run: Trainer) -> UserError:
    """The error for a run that has diverged."""
    return UserError(
        f"epoch {run.epoch + 1}: the loss or the weights are no longer finite; lower --lr or give "
        "--train.clip_norm (nothing of this epoch was saved)"
    )
