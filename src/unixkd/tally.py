"""What was trained on, epoch by epoch: losses, and which samples a method kept, easy or hard.

Everything is summed on the device and read once an epoch, so that no step waits for it. "Hard" means
that the student got the image wrong at that moment, on its own pure forward.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from unixkd.batch import Batch
from unixkd.distill import StepResult
from unixkd.methods import StepCounts


class Tally:
    """Sums over the steps of an epoch; the tensors are the same in every epoch, as a CUDA graph wants.

    Args:
        times_kept: how often each training image was kept so far, `[n]`, updated in place
    """

    def __init__(self, times_kept: Tensor) -> None:
        self.times_kept = times_kept
        self.before = times_kept.clone()
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=times_kept.device))
        self.seen = self.kept = self.steps = self.scored = 0

    def start_epoch(self) -> None:
        """Begin again."""
        self.before.copy_(self.times_kept)
        for value in self.sums.values():
            value.zero_()
        self.seen = self.kept = self.steps = self.scored = 0

    def count(self, counts: StepCounts) -> None:
        """Count one step's images."""
        self.steps, self.kept, self.seen = self.steps + 1, self.kept + counts.trained, self.seen + counts.seen
        self.scored += counts.scored

    def add(self, batch: Batch, result: StepResult) -> None:
        """Add one step's tensors."""
        self.sums["loss"] += result.loss.detach()
        for name, value in result.parts.items():
            self.sums[f"part.{name}"] += value
        if batch.index is not None:
            kept_index = batch.index[result.mixed.position]
            self.times_kept.index_add_(
                0, kept_index, torch.ones_like(kept_index, dtype=self.times_kept.dtype)
            )
        if result.scores is not None and result.scoring_logits is not None:
            self._split("score", result.scores, result)
            if batch.labels is not None:
                self._split("hard", result.scoring_logits.argmax(1) != batch.labels, result)
        elif result.mixed.label_a is not None and result.mixed.label_a is result.mixed.label_b:
            wrong = result.outputs.logits.detach().argmax(1) != result.mixed.label_a
            self.sums["hard_kept"] += wrong.sum()

    def finite(self) -> bool:
        """Whether every loss so far was finite: one that was not stays in the sum. Waits for the device."""
        return bool(self.sums["loss"].isfinite())

    def _split(self, name: str, values: Tensor, result: StepResult) -> None:
        kept = values[result.mixed.position].sum(dtype=torch.float32)
        self.sums[f"{name}_kept"] += kept
        self.sums[f"{name}_dropped"] += values.sum(dtype=torch.float32) - kept

    def losses(self) -> dict[str, Any]:
        """Mean loss and mean of each part."""
        parts = {k[5:]: v.item() / self.steps for k, v in self.sums.items() if k.startswith("part.")}
        return {"loss": self.sums["loss"].item() / self.steps, "loss_parts": parts}

    def selection(self) -> dict[str, float | None]:
        """Means over the kept and the dropped images; None where nothing was measured or dropped."""
        dropped = self.seen - self.kept
        record: dict[str, float | None] = {
            "visited": self.seen / len(self.before),
            "kept": self.kept / self.seen,
            "distinct": (self.times_kept > self.before).sum().item() / len(self.before),
        }
        for name, count in (("kept", self.kept), ("dropped", dropped)):
            for what in ("score", "hard"):
                key = f"{what}_{name}"
                measured = key in self.sums and (what == "hard" or self.scored)
                record[key] = self.sums[key].item() / count if measured and count else None
        return record
