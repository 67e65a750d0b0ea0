"""The frozen teacher: asked about every kept row that has no stored answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unixkd.batch import Batch, MixedBatch, Outputs
from unixkd.errors import UserError
from unixkd.network import Network
from unixkd.teacher.store import AnswerStore


@dataclass(frozen=True)
class Answers:
    """What the teacher says about the kept rows, and how many images it took.

    Args:
        outputs: logits (and features) of the k rows
        forwarded: images that went through the teacher
        cached: rows that were answered from the store
        filled: of the forwarded, those whose answers were stored
    """

    outputs: Outputs
    forwarded: int
    cached: int = 0
    filled: int = 0


@dataclass(frozen=True)
class Teacher:
    """The teacher and, where it has one, the store of its answers.

    Rows that are images as they are (`MixedBatch.num_pure`) are answered from the batch's own `answers`,
    fetched ahead of the epoch, or else from the store; what the store does not hold is asked and stored.
    Mixed rows are always asked.

    Args:
        network: the frozen network
        store: its stored answers, filled as they are needed
    """

    network: Network
    store: AnswerStore | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, mixed: MixedBatch) -> Answers:
        if batch.answers is not None:
            return self.from_batch(batch.answers, mixed)
        if self.store is not None and mixed.num_pure:
            return self.from_store(self.store, batch, mixed)
        return Answers(self.network(mixed.images), forwarded=len(mixed))

    def from_batch(self, answers: Float[Tensor, "n classes"], mixed: MixedBatch) -> Answers:
        """Pure rows from what was fetched ahead; shapes are static, nothing is synchronised."""
        pure = mixed.num_pure
        known = answers[mixed.position[:pure]].float()
        if pure == len(mixed):
            return Answers(Outputs(known), forwarded=0, cached=pure)
        asked = self.network(mixed.images[pure:]).logits.float()
        return Answers(Outputs(torch.cat([known, asked])), forwarded=len(mixed) - pure, cached=pure)

    def from_store(self, store: AnswerStore, batch: Batch, mixed: MixedBatch) -> Answers:
        """Pure rows from the store; those it lacks are asked, in one forward with the mixed rows."""
        if batch.index is None or batch.view is None:
            raise UserError("stored answers are kept by image and view: give index= and view=")
        pure, device = mixed.num_pure, mixed.images.device
        position = mixed.position[:pure]
        index, view = batch.index[position].cpu(), batch.view[position].cpu()
        known, there = store.read(index, view)
        missing = (~there).nonzero().flatten()
        logits = known.to(device, torch.float32)
        rows = torch.cat([missing, torch.arange(pure, len(mixed))]).to(device)
        if len(rows):
            asked = self.network(mixed.images[rows]).logits.float()
            new = asked[: len(missing)]
            store.write(index[missing], view[missing], new)
            # As a later read gives it: whether an answer was stored already cannot change a run.
            logits[missing.to(device)] = store.rounded(new).to(device, torch.float32)
            logits = torch.cat([logits, asked[len(missing) :]])
        return Answers(Outputs(logits), len(rows), pure - len(missing), len(missing))
