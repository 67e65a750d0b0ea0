"""The frozen teacher: run on every kept row that has no stored answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.batch import Answers, Batch, MixedBatch, Outputs, answered
from unixkd.method.losses import FeatureLoss, Loss
from unixkd.method.named_inputs import NamedInputs, concat
from unixkd.method.network import Network
from unixkd.teacher.store import AnswerStore


def check_store(store: AnswerStore, losses: Sequence[Loss]) -> None:
    """Raise where losses cannot use a store's answers; the largest logits alone hold for one temperature."""
    contents = store.contents
    for loss in losses:
        if isinstance(loss, FeatureLoss):
            raise UserError("stored answers hold logits only: at and sp compare features, use no store")
        temperature = getattr(loss, "temperature", contents.temperature)
        if contents.top_k is not None and temperature != contents.temperature:
            raise UserError(
                f"{store.path} holds the largest logits for temperature {contents.temperature:g}, a loss has "
                f"{temperature:g}: open another store, with temperature={temperature:g}"
            )


@dataclass(frozen=True)
class Teacher:
    """The teacher and, where it has one, the store of its answers.

    The answers to unmixed rows (`MixedBatch.num_pure`) are the batch's `answers`, fetched ahead of the epoch, or else
    the store's; the network is run on rows that the store lacks, and its answers are stored. It is run on all mixed
    rows, or else their answers are mixed too.

    Args:
        network: the frozen network
        store: its stored answers, filled as they are needed
        mixes_answers: mixed rows are not forwarded: their answer is the mix of the stored ones to both images
        marks_faulty: rows that are no answer (NaN, +inf, all −inf) are marked for a caller who leaves them
            out, and are not stored
    """

    network: Network
    store: AnswerStore | None = None
    mixes_answers: bool = False
    marks_faulty: bool = False

    @torch.no_grad()
    def __call__(self, batch: Batch, mixed: MixedBatch) -> Answers:
        answers = self.answer(batch, mixed)
        return answers.marked() if self.marks_faulty else answers

    def answer(self, batch: Batch, mixed: MixedBatch) -> Answers:
        """The answers as they come."""
        pure = len(mixed) if self.mixes_answers and mixed.partner is not None else mixed.num_pure
        known = batch.answers is not None or self.store is not None
        if self.mixes_answers and not known:
            raise UserError("this method mixes stored answers: give the Distiller a store")
        if not pure or not known:
            return Answers(self.network(mixed.images), forwarded=len(mixed))
        if pure > mixed.num_pure:
            return self.mixed_answers(batch, mixed)
        return self.recall(batch, mixed.position[:pure], mixed.images[pure:])

    def mixed_answers(self, batch: Batch, mixed: MixedBatch) -> Answers:
        """The mix of the logits on each row's two images, in the images' own shares."""
        assert mixed.partner is not None
        both = torch.cat([mixed.position, mixed.partner])
        if batch.answers is not None:  # no unique: its size would have to be read back
            answers, place = self.recall(batch, both), torch.arange(len(both), device=both.device)
        else:
            distinct, place = both.unique(return_inverse=True)
            answers = self.recall(batch, distinct)
        ranked, partner = answers.outputs.logits[place].chunk(2)
        return replace(answers, outputs=Outputs(mixed_logits(ranked, partner, mixed.weight[:, None])))

    def recall(
        self,
        batch: Batch,
        position: Int[Tensor, " p"],
        others: Shaped[Tensor, "q ..."] | NamedInputs | None = None,
    ) -> Answers:
        """The answers to a batch's images as they are `[p]`, and to other images after them `[q]`.

        Where the batch brings its answers nothing is synchronised.
        """
        number, more = len(position), 0 if others is None else len(others)
        if batch.answers is not None:
            logits = batch.answers[position].float()
            if others is not None and more:
                logits = torch.cat([logits, self.network(others).logits.float()])
            return Answers(Outputs(logits), forwarded=more, cached=number)
        if batch.index is None or batch.view is None:
            raise UserError("stored answers are kept by image and view: give index= and view=")
        index, view = batch.index[position].cpu(), batch.view[position].cpu()
        assert self.store is not None
        stored, known = self.store.read(index, view)
        lent, missing = self.store.borrow(index, view, known), (~known).nonzero().flatten()
        rows = missing.to(position.device)
        computed = self.ask(batch.images[position[rows]], index[missing], view[missing], others)
        logits, new = stored.to(computed.device, torch.float32), computed[: len(rows)]
        if len(rows):
            self.keep(self.store, index[missing], view[missing], new)
            # As a later read gives it: whether an answer was stored already cannot change a run.
            logits[rows] = self.store.rounded(new).to(torch.float32)
        logits = torch.cat([logits, computed[len(rows) :]])
        filled = len(rows) + lent
        return Answers(Outputs(logits), len(computed) + lent, number - filled, filled)

    @torch.no_grad()
    def ask(
        self,
        images: Shaped[Tensor, "p ..."] | NamedInputs,
        index: Int[Tensor, " p"],
        view: Int[Tensor, " p"],
        others: Shaped[Tensor, "q ..."] | NamedInputs | None = None,
    ) -> Float[Tensor, "_ classes"]:
        """The network's logits on images as they are, and on others.

        Args:
            images: pixels, on the network's device
            index: position of each image in its data set `[p]`, on the CPU
            view: number of each image's view `[p]`, on the CPU
            others: pixels of images that are not in the store, in the same forward
        """
        if others is not None:
            images = concat([images, others])
        if not len(images):  # the network is not run on none
            classes = 0 if self.store is None else self.store.contents.classes
            return torch.zeros(0, classes, device=images.device)
        return self.network(images).logits.float()

    def keep(
        self,
        store: AnswerStore,
        index: Int[Tensor, " p"],
        view: Int[Tensor, " p"],
        logits: Float[Tensor, "p classes"],
    ) -> None:
        """Store answers, but for rows that are none (`answered`) where these are marked."""
        if self.marks_faulty:
            finite = answered(logits)
            index, view, logits = index[finite.cpu()], view[finite.cpu()], logits[finite]
        store.write(index, view, logits)


def mixed_logits(
    ranked: Float[Tensor, "k classes"], partner: Float[Tensor, "k classes"], weight: Float[Tensor, "k 1"]
) -> Float[Tensor, "k classes"]:
    """(1 − m) · ranked + m · partner; −inf where one with a share is −inf."""
    a, b = (logits == -torch.inf for logits in (ranked, partner))
    logits = ranked.masked_fill(a, 0.0).lerp(partner.masked_fill(b, 0.0), weight.to(ranked.dtype))
    return logits.masked_fill((a & (weight < 1)) | (b & (weight > 0)), -torch.inf)
