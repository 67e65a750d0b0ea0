"""Runs on one machine lend each other the teacher's answers: a forward is saved, and charged as if it had been made.

To compare what methods cost over hundreds of runs without paying for each, the runs of a queue share a store of answers
to images as they are. A run is charged for every answer that it had to ask for by itself, and a run with a store of its
own for filling that. So ledgers are those of runs that know nothing of each other; seconds are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.method.batch import Answers, Batch, MixedBatch, Outputs
from unixkd.teacher.store import AnswerStore
from unixkd.teacher.teacher import Teacher
from unixkd.training import build
from unixkd.training.answers import open_store
from unixkd.training.resolved import Resolved


@dataclass(frozen=True)
class LendingTeacher(Teacher):
    """A teacher whose forward on an image in a view is saved where `lender` knows the answer; all else is as ever."""

    lender: AnswerStore | None = None

    def answer(self, batch: Batch, mixed: MixedBatch) -> Answers:
        """Without a store of the run's own, pure rows are looked up too."""
        if self.store is None and batch.answers is None and mixed.num_pure and not self.mixes_answers:
            return self.recall(batch, mixed.position[: mixed.num_pure], mixed.images[mixed.num_pure :])
        return super().answer(batch, mixed)

    def recall(self, batch: Batch, position: Int[Tensor, " p"], others: Any = None) -> Answers:
        """The answers to a batch's images as they are `[p]`, and to other images after them."""
        if self.store is not None or batch.answers is not None:
            return super().recall(batch, position, others)
        assert batch.index is not None
        assert batch.view is not None
        index, view = batch.index[position].cpu(), batch.view[position].cpu()
        more = 0 if others is None else len(others)
        return Answers(Outputs(self.ask(batch.images[position], index, view, others)), len(position) + more)

    @torch.no_grad()
    def ask(
        self, images: Any, index: Int[Tensor, " p"], view: Int[Tensor, " p"], others: Any = None
    ) -> Float[Tensor, "_ classes"]:
        """Logits on images as they are, from the lender where it knows them, and on other images after them."""
        assert self.lender is not None
        known, there = self.lender.read(index, view)
        missing = (~there).nonzero().flatten()
        rows = missing.to(images.device)
        logits = known.to(images.device, torch.float32)
        if not len(rows) and (others is None or not len(others)):
            return logits
        asked = super().ask(images[rows], index[missing], view[missing], others)
        new = asked[: len(rows)]
        if len(rows):
            self.keep(self.lender, index[missing], view[missing], new)
            logits[rows] = self.lender.rounded(new).to(torch.float32)
        return torch.cat([logits, asked[len(rows) :]])


@contextmanager
def lending(folder: Path | None) -> Iterator[None]:
    """Inside, runs take answers to images as they are from the store in this folder, and add what it lacks.

    The trainer makes its distiller in one place, which is replaced here.
    """
    original = build.make_distiller

    def make_distiller(run: Resolved, student: Any, ledger: Any, note: Any, world: Any) -> Any:
        made = original(run, student, ledger, note, world)
        lender = open_store(run, str(folder), note)
        if lender is not None and made.teacher is not None:
            own = {field.name: getattr(made.teacher, field.name) for field in fields(Teacher)}
            made.teacher = LendingTeacher(**own, lender=lender)
        return made

    if folder is None:
        yield
        return
    build.make_distiller = make_distiller
    try:
        yield
    finally:
        build.make_distiller = original
