"""The whole step, readable in one screen: score, rank, mix, ask the teacher, train.

`distill_step` is a pure function of (networks, batch, draws); `Distiller` is the three lines for an
own loop around it. Source: arXiv 2012.09413.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unixkd.batch import Batch, Draws, MixedBatch, Outputs
from unixkd.cost import Ledger, forward_flops
from unixkd.draws import make_draws
from unixkd.errors import UserError
from unixkd.feature_losses import FeatureLoss
from unixkd.losses import KD, CrossEntropy
from unixkd.methods import Method, unix
from unixkd.mixing import mix, num_kept, pure
from unixkd.models.features import FeatureTap, unwrap
from unixkd.objective import Objective, Term, check_objective, evaluate_objective, resolve_layers
from unixkd.scoring import rank


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind; all tensors stay on the device, nothing is synchronised.

    Args:
        loss: scalar to call `backward` on
        parts: each term's unweighted value, detached
        mixed: the k rows that were trained on
        outputs: the student's outputs on them
        scoring_logits: the student's logits on all N images, where the method scored `[N, C]`
        scores: uncertainty of all N images, where the method scored `[N]`
    """

    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    mixed: MixedBatch
    outputs: Outputs
    scoring_logits: Float[Tensor, "n classes"] | None = None
    scores: Float[Tensor, " n"] | None = None


def distill_step(
    student: Network,
    teacher: Network | None,
    batch: Batch,
    draws: Draws,
    method: Method,
    objective: Objective,
    batch_size: int,
) -> StepResult:
    """One step on one batch; every random choice is in `draws`.

    Args:
        student: gets gradients through the k kept rows only
        teacher: asked once for each kept row; None where no loss needs it
        batch: N images
        draws: partners, λ, noise `[N]`
        method: whom to score, how many to keep, how to mix
        objective: weighted losses
        batch_size: the configured N that fractions of the method refer to
    """
    logits = score(student.module, batch.images, method) if method.scorer else None
    scores = method.scorer(logits) if method.scorer and logits is not None else None
    check_finite(scores)
    mixed = select(batch, scores, draws, method, batch_size)
    with torch.no_grad():
        answers = teacher(mixed.images) if teacher else None
    outputs = student(mixed.images)
    loss, parts = evaluate_objective(objective, outputs, answers, mixed)
    return StepResult(loss, parts, mixed, outputs, logits, scores)


def score(student: nn.Module, images: Float[Tensor, "n c h w"], method: Method) -> Float[Tensor, "n classes"]:
    """The student's logits on all N images, without gradient, in the method's BatchNorm mode."""
    module = unwrap(student)  # inside DDP: a scoring pass has no gradients to reduce
    mode = evaluating(module) if method.scoring_mode == "eval" else contextlib.nullcontext()
    with torch.no_grad(), mode:
        logits = module(images)
    # Casts cached under no_grad would cut the training forward off from the weights (pytorch issue
    # 112583); cleared always, as the student may switch autocast on inside its own forward.
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
    batch: Batch, scores: Float[Tensor, " n"] | None, draws: Draws, method: Method, batch_size: int
) -> MixedBatch:
    """Rank the batch, keep the first k rows, mix them with partners from the whole batch."""
    k = num_kept(method.keep, batch_size, len(batch))
    ranking = rank(draws.noise if scores is None else scores) if method.ranks else None
    if method.curve is None or ranking is None:
        return pure(batch, None if ranking is None else ranking[:k])
    return mix(batch, ranking, k, method.curve, draws, batch_size)


@dataclass(frozen=True)
class Network:
    """A module and the layers whose outputs the losses want: images `[k, C, H, W]` -> `Outputs`."""

    module: nn.Module
    layers: tuple[str, ...] = ()

    def __call__(self, images: Float[Tensor, "k c h w"]) -> Outputs:
        if not self.layers:
            return Outputs(self.module(images))
        with FeatureTap(self.module, self.layers) as tap:
            logits = self.module(images)
        return Outputs(logits, tap.take())


class Distiller:
    """Distillation for an own training loop; no `nn.Module`, owns no optimiser.

    Args:
        student: any module from images to logits `[N, C]`, also wrapped by DDP
        teacher: the same, is frozen and put in eval mode; None for `student_alone`
        method: default `unix()`
        objective: weighted losses; default KD at temperature 4, cross-entropy without a teacher
        batch_size: the N that a method's fractions refer to; default: the size of the first batch
        seed: of every random choice
        ledger: an open ledger to charge; default: one of its own, opened at the first step

    Raises:
        UserError: a teacher is missing, or a loss needs one the method does not use

    >>> from unixkd.methods import kd
    >>> teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)) for _ in range(2))
    >>> distiller = Distiller(student, teacher, method=kd())
    >>> result = distiller.step(torch.rand(4, 3, 2, 2))
    >>> result.loss.backward()
    >>> distiller.ledger.images.teacher_forwarded
    4
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: Method | None = None,
        objective: Objective | None = None,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        ledger: Ledger | None = None,
    ) -> None:
        self.method = method or unix()
        if objective is None:
            objective = [Term("kd", KD()) if self.method.teacher else Term("ce", CrossEntropy())]
        check_objective(self.method, objective, teacher)
        needs_teacher = any(term.loss.needs_teacher for term in objective)
        teacher = teacher if needs_teacher else None
        self.objective = resolve_layers(objective, student, teacher)
        features = [t.loss for t in self.objective if isinstance(t.loss, FeatureLoss)]
        self.student = Network(student, unique(name for loss in features for name in loss.student_layers))
        self.teacher: Network | None = None
        if teacher is not None:
            if unwrap(teacher) is unwrap(student):
                raise UserError(
                    "student and teacher are the same module; a student must be trained, a teacher not"
                )
            teacher.requires_grad_(False).eval()
            self._teacher_modules = list(teacher.modules())
            self.teacher = Network(teacher, unique(name for loss in features for name in loss.teacher_layers))
        self.batch_size = batch_size
        self.seed = seed
        self.steps = 0
        self._ledger = ledger

    def step(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"] | None = None,
        *,
        index: Int[Tensor, " n"] | None = None,
        view: Int[Tensor, " n"] | None = None,
    ) -> StepResult:
        """One step: the caller calls `result.loss.backward()` and the optimiser.

        Args:
            images: `[N, C, H, W]`; N may be smaller in an epoch's last batch
            labels: class numbers `[N]`; None where no loss needs them
            index: position of each image in its data set `[N]`
            view: code of each image's augmentation `[N]`
        """
        if len(images) == 0:
            raise UserError("the batch is empty")
        if self.batch_size is None:
            self.batch_size = len(images)
        if self.teacher is not None and any(m.training for m in self._teacher_modules):
            self.teacher.module.eval()  # a caller's model.train() may have reached it
        draws = make_draws(
            len(images),
            seed=self.seed,
            step=self.steps,
            per_sample_lambda=self.method.per_sample_lambda,
            device=images.device,
        )
        batch = Batch(images, labels, index, view)
        ledger = self.measure(tuple(images.shape[1:]))
        result = distill_step(
            self.student, self.teacher, batch, draws, self.method, self.objective, self.batch_size
        )
        counts = self.method.counts(len(images), self.batch_size)
        ledger.charge(counts if self.teacher else replace(counts, teacher_forwarded=0))
        self.steps += 1
        return result

    @property
    def ledger(self) -> Ledger:
        """Images scored, asked of the teacher and trained; cost against plain KD."""
        return self._ledger or Ledger(0, 0)

    def measure(self, image_shape: tuple[int, ...]) -> Ledger:
        """Measure both networks' forward FLOPs on images of this shape, once, and open the ledger."""
        if self._ledger is None:
            channels, height, width = image_shape
            shape = (channels, height, width)
            teacher_flops = forward_flops(unwrap(self.teacher.module), shape) if self.teacher else 0
            self._ledger = Ledger(forward_flops(unwrap(self.student.module), shape), teacher_flops)
        return self._ledger


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule has exactly the flag it had."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """The names in order, each once."""
    return tuple(dict.fromkeys(names))
