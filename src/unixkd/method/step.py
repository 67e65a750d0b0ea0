"""The whole step, readable in one screen: score, rank, mix, ask the teacher, train.

`distill_step` is a pure function of (networks, batch, draws). Source: arXiv 2012.09413.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.batch import Answers, Batch, Draws, Held, MixedBatch, Outputs
from unixkd.method.method import Method, Scoring, StepCounts
from unixkd.method.mixing import mix, num_kept, pure
from unixkd.method.named_inputs import NamedInputs
from unixkd.method.network import Network, evaluating
from unixkd.method.objective import Objective, evaluate_objective
from unixkd.method.resizing import shrink, size_at
from unixkd.method.scoring import rank_by, score_logits


@runtime_checkable
class GlobalSelection(Protocol):
    """Ranks and shares out the rows of all processes together; `training.distributed` has one."""

    def hold(
        self,
        batch: Batch,
        scores: Float[Tensor, " n"] | None,
        noise: Float[Tensor, " n"],
        keep: float,
        sampling: float | None = None,
    ) -> Held:
        """The kept rows that this process trains on."""


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind; all tensors stay on the device, nothing is synchronised.

    Args:
        loss: scalar to call `backward` on
        parts: each term's unweighted value, detached
        mixed: the k rows that were trained on
        outputs: the student's outputs on them
        counts: images that went through each forward
        scoring_logits: the student's logits on all N images, where the step scored them `[N, C]`
        scores: uncertainty of all N images, where the step scored them or knew their scores `[N]`
        row_scores: what is to be remembered of each of the k rows, where the method's choice wants it `[k]`
        answered: which rows the teacher had a finite answer to, where that was looked at; the others weigh 0 `[k]`
        held: the batch that positions of `mixed` refer to, where it is not the one that came in
    """

    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    mixed: MixedBatch
    outputs: Outputs
    counts: StepCounts
    scoring_logits: Float[Tensor, "n classes"] | None = None
    scores: Float[Tensor, " n"] | None = None
    row_scores: Float[Tensor, " k"] | None = None
    answered: Bool[Tensor, " k"] | None = None
    held: Held | None = None


@dataclass(frozen=True)
class Parts:
    """How the kept rows are trained on in parts, for want of memory.

    Args:
        rows: of a part at most; parts are as even as it goes
        backward: called with each part's share of the loss
        agree: how many parts there are to be, of as many as are needed here: a forward of a sharded student is one of
            all processes
    """

    rows: int
    backward: Callable[[Tensor], None]
    agree: Callable[[int], int] = int

    def bounds(self, k: int) -> list[tuple[int, int]]:
        """First row of each part, and the first after it.

        >>> Parts(4, torch.Tensor.backward).bounds(10)
        [(0, 4), (4, 7), (7, 10)]
        """
        sizes = [len(part) for part in torch.arange(k).tensor_split(self.agree(-(-k // self.rows)))]
        stops = list(itertools.accumulate(sizes))
        return list(zip([0, *stops], stops, strict=False))


def distill_step(
    student: Network,
    teacher: Callable[[Batch, MixedBatch], Answers] | None,
    batch: Batch,
    draws: Draws,
    method: Method,
    objective: Objective,
    batch_size: int,
    parts: Parts | None = None,
    exchange: GlobalSelection | None = None,
) -> StepResult:
    """One step on one batch; every random choice is in `draws`.

    Args:
        student: gets gradients through the k kept rows only
        teacher: asked once for each kept row it has no stored answer to; None where no loss needs it
        batch: N images
        draws: partners, λ, noise `[N]`
        method: whom to score, how many to keep, how to mix
        objective: weighted losses
        batch_size: the configured N that fractions of the method refer to
        parts: train on the kept rows in parts, whose gradients are added up here; None: on all at once
        exchange: ranks and shares out the rows of all processes together; None: this batch is ranked alone
    """
    logits, scores = None, batch.scores
    if method.scorer is not None and scores is None:
        logits = score(student, batch.images, method.scoring)
        scores = score_logits(method.scorer, logits, batch.labels)
        check_finite(scores)
    held = None
    if exchange is not None and method.ranks:
        held = exchange.hold(batch, scores, draws.noise, method.keep, method.sampling)
    mixed = select(batch, scores, draws, method, batch_size, held)
    answers = teacher(batch if held is None else held.batch, mixed) if teacher else None
    if answers is not None and answers.finite is not None:
        mixed = replace(mixed, sample_weight=mixed.sample_weight * answers.finite)
    told = answers.outputs if answers else None
    if parts is None:
        outputs = student(shrink(mixed.images, method.size))
        loss, values = evaluate_objective(objective, outputs, told, mixed)
    else:
        outputs, loss, values = learn_in_parts(student, told, mixed, method, objective, parts)
    remembered = remember(method, outputs, told, mixed)
    counts = StepCounts(
        seen=len(batch),
        scored=0 if logits is None else len(batch),
        teacher_forwarded=answers.forwarded if answers else 0,
        trained=len(mixed),
        teacher_cached=answers.cached if answers else 0,
        teacher_filled=answers.filled if answers else 0,
        scored_size=size_at(batch.images, method.scoring.size),
        trained_size=size_at(batch.images, method.size),
    )
    answered = None if answers is None else answers.finite
    return StepResult(loss, values, mixed, outputs, counts, logits, scores, remembered, answered, held)


def learn_in_parts(
    student: Network,
    told: Outputs | None,
    mixed: MixedBatch,
    method: Method,
    objective: Objective,
    parts: Parts,
) -> tuple[Outputs, Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The student's outputs and its losses on all rows, detached; a part's activations go before the next one's come.

    Losses are means over rows, so the gradient is that of all rows at once, but for what looks across rows: BatchNorm,
    DIST and similarity see one part at a time.
    """
    said, losses, values = [], [], []
    for start, stop in parts.bounds(len(mixed)):
        rows, share = mixed.part(start, stop), (stop - start) / len(mixed)
        wait = getattr(student.module, "no_sync", None) if stop < len(mixed) else None  # of DDP
        with contextlib.nullcontext() if wait is None else wait():
            outputs = student(shrink(rows.images, method.size))
            loss, each = evaluate_objective(
                objective, outputs, None if told is None else told.part(start, stop), rows
            )
            parts.backward(loss * share)
        said.append(outputs.logits.detach())
        losses.append(loss.detach() * share)
        values.append({name: value * share for name, value in each.items()})
    total = {name: torch.stack([each[name] for each in values]).sum() for name in values[0]}
    return Outputs(torch.cat(said)), torch.stack(losses).sum(), total


@torch.no_grad()
def remember(
    method: Method, student: Outputs, teacher: Outputs | None, mixed: MixedBatch
) -> Float[Tensor, " k"] | None:
    """What the method's choice of later epochs wants to know of each row; no forward is spent on it."""
    wanted = None if method.choice is None else method.choice.row_score
    return None if wanted is None else wanted(student, teacher, mixed)


def score(
    student: Network, images: Shaped[Tensor, "n ..."] | NamedInputs, scoring: Scoring
) -> Float[Tensor, "n classes"]:
    """The student's logits on all images, without gradient, in the scoring's BatchNorm mode, size and precision."""
    bare = student.bare()  # inside DDP: a scoring pass has no gradients to reduce
    if scoring.dtype is not None:
        bare = replace(bare, dtype=scoring.dtype)
    mode = evaluating(bare.module) if scoring.mode == "eval" else contextlib.nullcontext()
    with torch.no_grad(), mode:
        logits = bare(shrink(images, scoring.size)).logits
    # Casts cached under no_grad would cut the training forward off from the weights (pytorch issue
    # 112583); cleared always, as a caller or the student itself may have switched autocast on.
    torch.clear_autocast_cache()
    return logits


def check_finite(scores: Float[Tensor, " n"] | None) -> None:
    """Raise for scores that rank nothing; on a CPU only, where looking at them does not stop the device.

    Elsewhere the loss is not finite either, and the training loop finds it at the end of the epoch.
    """
    if scores is None or scores.device.type != "cpu" or bool(scores.isfinite().all()):
        return
    positions = (~scores.isfinite()).nonzero().flatten().tolist()
    shown = ", ".join(map(str, positions[:8]))
    raise UserError(
        f"the scores of {len(positions)} of {len(scores)} images are not finite (batch positions {shown}): "
        "the student's logits have overflowed; lower the learning rate or clip gradients"
    )


def select(
    batch: Batch,
    scores: Float[Tensor, " n"] | None,
    draws: Draws,
    method: Method,
    batch_size: int,
    held: Held | None = None,
) -> MixedBatch:
    """Rank the batch, keep the first k rows, mix them with partners from the whole batch.

    Rows that were ranked among those of all processes are mixed as strongly as their rank there wants.
    """
    if held is not None:
        if method.curve is None:
            return pure(held.batch, held.position)
        k = len(held.position)
        return mix(held.batch, held.position, k, method.curve, draws, held.batch_size, held.rank)
    k = num_kept(method.keep, batch_size, len(batch))
    ranking = rank_by(scores, draws.noise, method.sampling) if method.ranks else None
    if method.curve is None or ranking is None:
        return pure(batch, None if ranking is None else ranking[:k])
    return mix(batch, ranking, k, method.curve, draws, batch_size)
