"""Distillation for an own training loop: three lines around the pure step of `method`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from unixkd.errors import UserError
from unixkd.method.batch import Batch, Draws
from unixkd.method.batch_size import BatchSize
from unixkd.method.draws import make_draws
from unixkd.method.labels import check_labels, check_pixels, check_range
from unixkd.method.ledger import Ledger
from unixkd.method.losses import DKD, KD, CrossEntropy, FeatureLoss
from unixkd.method.measure import Costs, Flops
from unixkd.method.method import Method, StepCounts
from unixkd.method.named_inputs import TEACHERS, Inputs, as_inputs
from unixkd.method.network import Network, set_eval
from unixkd.method.objective import Objective, Term, check_objective, resolve_layers
from unixkd.method.scoring import TrueLoss
from unixkd.method.step import StepResult, distill_step
from unixkd.method.unix import unix
from unixkd.teacher.kinds import TeacherLike, as_module
from unixkd.teacher.sharing import check_apart
from unixkd.teacher.store import AnswerStore
from unixkd.teacher.teacher import Teacher, check_store


class Distiller:
    """Distillation for an own training loop; no `nn.Module`, owns no optimiser.

    Args:
        student: any module from images, or from named tensors, to logits `[N, C]` (or to something that has
            them as `.logits`), also wrapped by DDP
        teacher: the same, is frozen and put in eval mode; a function, TorchScript or a program of torch.export is taken
            as it is; of a list the mean probability at the losses' temperature teaches; None for `student_alone`
        method: default `unix()`
        objective: weighted losses; default KD at temperature 4, cross-entropy without a teacher
        batch_size: the N that a method's shares refer to; default: that of the loop's batches, see `BatchSize`
        seed: of every random choice
        rank: number of this process among several, so that each draws for itself
        ledger: an open ledger to charge; default: one of its own, opened at the first step
        teacher_flops: forward FLOPs of the teacher per sample, where they cannot be counted (quantised, not of torch)
        store: stored answers of the teacher, to use and to fill; `step` then wants `index` and `view`
        student_dtype: precision of the student's forwards by autocast; default: as the caller has it
        teacher_dtype: precision of the teacher's
        marks_faulty: rows whose answers are not finite weigh 0 in the losses; `StepResult.answers.finite` says which

    Raises:
        UserError: a teacher is missing or shares weights with the student, or a loss needs one the method does not
            use, or features that stored answers do not hold

    >>> import torch
    >>> from unixkd.method.unix import kd
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
        teacher: TeacherLike | None = None,
        method: Method | None = None,
        objective: Objective | None = None,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        ledger: Ledger | None = None,
        teacher_flops: int | None = None,
        store: AnswerStore | None = None,
        student_dtype: torch.dtype | None = None,
        teacher_dtype: torch.dtype | None = None,
        marks_faulty: bool = False,
    ) -> None:
        self.method = method or unix()
        if objective is None:
            objective = [Term("kd", KD()) if self.method.teacher else Term("ce", CrossEntropy())]
        check_objective(self.method, objective, has_teacher=teacher is not None)
        losses = [term.loss for term in objective]
        asked = teacher is not None and any(loss.needs_teacher for loss in losses)
        network = as_module(teacher, losses) if asked else None
        self.objective = resolve_layers(objective, student, network)
        features = [t.loss for t in self.objective if isinstance(t.loss, FeatureLoss)]
        student_layers = dict.fromkeys(name for loss in features for name in loss.student_layers)
        teacher_layers = dict.fromkeys(name for loss in features for name in loss.teacher_layers)
        self.student = Network(student, tuple(student_layers), student_dtype)
        self.teacher: Teacher | None = None
        if network is not None:
            check_apart(student, network)
            if store is not None:
                check_store(store, losses)
            for parameter in network.parameters():  # TorchScript's modules have no requires_grad_
                parameter.requires_grad_(False)
            set_eval(network)
            self._teacher_modules = [m for m in network.modules() if not getattr(m, "training", False)]
            asking = Network(network, tuple(teacher_layers), teacher_dtype, TEACHERS)
            self.teacher = Teacher(asking, store, self.method.mixes_answers, marks_faulty)
        self._batch_size = BatchSize(batch_size)
        self.seed, self.rank = seed, rank
        self.steps = 0
        self._looked_at: set[int] = set()
        reading = [self.method.scorer, *losses]
        self._reads_labels = any(isinstance(each, TrueLoss | CrossEntropy | DKD) for each in reading)
        frozen = None if self.teacher is None else self.teacher.network
        self._costs = Costs(self.student, frozen, ledger, teacher_flops)

    def step(
        self,
        inputs: Shaped[Tensor, "n ..."] | Mapping[str, Tensor],
        labels: Tensor | None = None,
        *,
        index: Int[Tensor, " n"] | None = None,
        view: Int[Tensor, " n"] | None = None,
    ) -> StepResult:
        """One step: the caller calls `result.loss.backward()` and the optimiser.

        Args:
            inputs: images `[N, C, H, W]`; N may be smaller in an epoch's last batch. Or named tensors `[N, ...]`
                that both networks get as keyword arguments, those called `teacher_...` the teacher alone
            labels: class numbers `[N]`, −100 where a sample has none; None where no loss needs them, or they are among
                the named tensors
            index: position of each image in its data set `[N]`
            view: code of each image's augmentation `[N]`

        Raises:
            UserError: labels that a loss cannot take, an image that is not finite. A look stops a GPU: there labels
                are looked at in the first batch of each size and images are not, and the loss is NaN
        """
        samples, batch_labels = as_inputs(inputs)
        if len(samples) == 0:
            raise UserError("the batch is empty")
        labels = batch_labels if labels is None else labels
        check_pixels(samples)
        if labels is not None:
            check_labels(labels, len(samples), classes=self._reads_labels)
        batch = Batch(samples, labels, index, view)
        self.check_method()
        draws = make_draws(
            len(batch),
            seed=self.seed,
            step=self.steps,
            rank=self.rank,
            per_sample_lambda=self.method.per_sample_lambda,
            device=samples.device,
        )
        each = self.measure_batch(samples)
        self._batch_size.follow(len(batch))
        if self.teacher is not None and any(getattr(m, "training", False) for m in self._teacher_modules):
            set_eval(self.teacher.network.module)  # a caller's model.train() may have reached it
        result = self.run(batch, draws)
        if labels is not None and self._reads_labels:
            if labels.device.type == "cpu" or len(labels) not in self._looked_at:
                check_range(labels, result.outputs.logits.shape[1])
            self._looked_at.add(len(labels))
        self.count(result.counts, each)
        return result

    def check_method(self) -> None:
        """Raise a `UserError` where the method chooses ahead of the step, or changes over a run."""
        if self.method.choice is not None:
            raise UserError(
                f"method {self.method.name} chooses each epoch's images before they are loaded, which a loop of "
                "one's own does not let it: use `unixkd distill`, or a method that chooses within the batch"
            )
        if self.method.ramp is not None:
            raise UserError(
                f"method {self.method.name} changes over a run, whose length is not known here: set "
                "distiller.method = method.at(progress) before each epoch, progress in [0, 1)"
            )

    @property
    def batch_size(self) -> int | None:
        """The N that the method's shares refer to; None: no step yet."""
        return self._batch_size.size

    def expect_batches(self, rows: int) -> None:
        """Say how many rows the loop's full batches have, where it knows: N without waiting for the batches."""
        self._batch_size.expect(rows)

    def run(self, batch: Batch, draws: Draws) -> StepResult:
        """The step alone, a pure function of its arguments and the weights: nothing is counted."""
        size = self.batch_size or len(batch)
        return distill_step(self.student, self.teacher, batch, draws, self.method, self.objective, size)

    def count(self, counts: StepCounts, each: Flops | None = None) -> None:
        """Charge a step to the ledger; `each` as in `Ledger.charge`."""
        self._costs.charge(counts, each)
        self.steps += 1

    @property
    def ledger(self) -> Ledger:
        """Images scored, asked of the teacher and trained; cost against plain KD."""
        return self._costs.ledger

    def measure(self, image_shape: tuple[int, ...]) -> Ledger:
        """Measure both networks' forward FLOPs on images of this shape, once, and open the ledger."""
        return self._costs.measure(image_shape)

    def measure_batch(self, inputs: Inputs) -> Flops | None:
        """Forward FLOPs of student and teacher on a sample of the batch, for `count`; None: as the ledger has them."""
        return self._costs.of_batch(inputs)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs for draws and ledger to go on: plain numbers, no weights."""
        numbers = {"steps": self.steps, "seed": self.seed, **self._batch_size.state_dict()}
        return {**numbers, "ledger": self._costs.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved distiller stood: the inverse of `state_dict`; a batch size that was given stays.

        Raises:
            UserError: it drew from another seed; at the next step: its teacher was another one
        """
        if state["seed"] != self.seed:
            raise UserError(
                f"the saved distiller drew from seed {state['seed']}, this one draws from {self.seed}: give that seed"
            )
        self.steps = state["steps"]
        self._batch_size.load_state_dict(state)
        self._costs.load_state_dict(state["ledger"])
