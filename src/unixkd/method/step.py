"""The page: one step of distillation as the paper has it. Score, rank, mix, ask the teacher, learn.

`distill_step` is a pure function of (networks, batch, draws). Source: arXiv 2012.09413.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.batch import Answers, Batch, Draws, MixedBatch, Outputs
from unixkd.method.method import Method, Scoring, StepCounts
from unixkd.method.mixing import mix, num_kept, pure
from unixkd.method.named_inputs import NamedInputs
from unixkd.method.network import Network, evaluating
from unixkd.method.objective import Objective, evaluate_objective
from unixkd.method.resizing import shrink, size_at
from unixkd.method.scoring import rank_by, score_logits

Learnt = tuple[Outputs, Float[Tensor, ""], dict[str, Float[Tensor, ""]]]
"""The student's outputs on the kept rows, the loss, and each of its terms unweighted."""
Learn = Callable[[Network, Outputs | None, MixedBatch, Method, Objective], Learnt]
"""(student, teacher's outputs, kept rows, method, losses) -> `Learnt`."""


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
        scores: uncertainty of all N images, where the step scored them `[N]`
        answers: the teacher's outputs on the k rows, and which of them are finite; None without a teacher
    """

    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    mixed: MixedBatch
    outputs: Outputs
    counts: StepCounts
    scoring_logits: Float[Tensor, "n classes"] | None = None
    scores: Float[Tensor, " n"] | None = None
    answers: Answers | None = None


def learn_at_once(
    student: Network,
    teacher_outputs: Outputs | None,
    mixed: MixedBatch,
    method: Method,
    objective: Objective,
) -> Learnt:
    """One forward of the student on all kept rows, and the losses."""
    outputs = student(shrink(mixed.images, method.size))
    return outputs, *evaluate_objective(objective, outputs, teacher_outputs, mixed)


def distill_step(
    student: Network,
    teacher: Callable[[Batch, MixedBatch], Answers] | None,
    batch: Batch,
    draws: Draws,
    method: Method,
    objective: Objective,
    batch_size: int,
    learn: Learn = learn_at_once,
) -> StepResult:
    """One step on one batch; every random choice is in `draws`.

    Args:
        student: gets gradients through the k kept rows only
        teacher: answers the kept rows, from its store where it can; None where no loss needs it
        batch: N images
        draws: partners, λ, noise `[N]`
        method: whom to score, how many to keep, how to mix
        objective: weighted losses
        batch_size: the configured N that fractions of the method refer to
        learn: the student's forward and its losses; the trainer hands in one that takes the rows in parts
    """
    # 1. Score: one forward of the student on all N images, without gradient.
    logits = scores = None
    if method.scorer is not None:
        logits = score(student, batch.images, method.scoring)
        scores = score_logits(method.scorer, logits, batch.labels)
        check_finite(scores)
    # 2. Rank: the most uncertain first, at random where nothing is scored; None: the batch stays as it is.
    ranking = rank_by(scores, draws.noise, method.sampling) if method.ranks else None
    # 3. Keep the first k ranks and mix each with a partner from the whole batch: (1 − m) x + m x′.
    k = num_kept(method.keep, batch_size, len(batch))
    if method.curve is None or ranking is None:
        mixed = pure(batch, None if ranking is None else ranking[:k])
    else:
        mixed = mix(batch, ranking, k, method.curve, draws, batch_size)
    # 4. Ask: the teacher answers the k rows; a row without a finite answer weighs nothing.
    answers = None if teacher is None else teacher(batch, mixed)
    if answers is not None and answers.finite is not None:
        mixed = replace(mixed, sample_weight=mixed.sample_weight * answers.finite)
    # 5. Learn: one forward of the student on the k rows; the caller goes backward.
    outputs, loss, parts = learn(
        student, None if answers is None else answers.outputs, mixed, method, objective
    )
    counts = count(batch, mixed, answers, method, scored=logits is not None)
    return StepResult(loss, parts, mixed, outputs, counts, logits, scores, answers)


def count(
    batch: Batch, mixed: MixedBatch, answers: Answers | None, method: Method, *, scored: bool
) -> StepCounts:
    """Images that went through each forward of a step: what the ledger charges."""
    return StepCounts(
        seen=len(batch),
        scored=len(batch) if scored else 0,
        teacher_forwarded=answers.forwarded if answers else 0,
        trained=len(mixed),
        teacher_cached=answers.cached if answers else 0,
        teacher_filled=answers.filled if answers else 0,
        scored_size=size_at(batch.images, method.scoring.size),
        trained_size=size_at(batch.images, method.size),
    )


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

    Elsewhere the loss is not finite either: the training loop finds it at the end of the epoch, or in fp16 skips the
    step.
    """
    if scores is None or scores.device.type != "cpu" or bool(scores.isfinite().all()):
        return
    positions = (~scores.isfinite()).nonzero().flatten().tolist()
    shown = ", ".join(map(str, positions[:8]))
    raise UserError(
        f"the scores of {len(positions)} of {len(scores)} images are not finite (batch positions {shown}): "
        "the student's logits have overflowed; lower the learning rate, clip gradients, "
        "or take fp32 where it is fp16"
    )
