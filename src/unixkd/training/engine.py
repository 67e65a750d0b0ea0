"""The training step around the page: micro-batches, gradients, the optimiser, sums; one function however it is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from unixkd.distiller import Distiller
from unixkd.method.batch import Batch, Draws, MixedBatch, Outputs
from unixkd.method.epoch_choice import History
from unixkd.method.method import Method
from unixkd.method.network import Network, is_sharded
from unixkd.method.objective import Objective, evaluate_objective
from unixkd.method.resizing import shrink
from unixkd.method.step import Learn, Learnt, StepResult, distill_step, learn_at_once
from unixkd.training.distributed.world import ALONE, World
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.loss_scale import LossScale, Snapshot


@dataclass(frozen=True)
class MicroBatches:
    """Trains on the kept rows in micro-batches, for want of memory: a `Learn` of the step that goes backward itself.

    Losses are means over rows, so the gradients add up to those of all rows at once, but for what looks across rows:
    BatchNorm, DIST and similarity see one micro-batch at a time.

    Args:
        rows: maximum rows of a micro-batch; all are split as evenly as possible
        backward: called with each micro-batch's share of the loss
        agree: number of micro-batches, from the number that this process needs: all processes take part in each
            forward of a sharded student
    """

    rows: int
    backward: Callable[[Tensor], None]
    agree: Callable[[int], int] = int

    def bounds(self, k: int) -> list[tuple[int, int]]:
        """First row of each micro-batch, and the first after it.

        >>> MicroBatches(4, torch.Tensor.backward).bounds(10)
        [(0, 4), (4, 7), (7, 10)]
        """
        sizes = [len(rows) for rows in torch.arange(k).tensor_split(self.agree(-(-k // self.rows)))]
        stops = list(itertools.accumulate(sizes))
        return list(zip([0, *stops], stops, strict=False))

    def __call__(
        self,
        student: Network,
        teacher_outputs: Outputs | None,
        mixed: MixedBatch,
        method: Method,
        objective: Objective,
    ) -> Learnt:
        """The student's logits and its losses on all rows, detached; activations of one micro-batch at a time."""
        logits, losses, values = [], [], []
        no_sync = getattr(student.module, "no_sync", nullcontext)  # DDP's: gradients are not averaged yet
        for start, stop in self.bounds(len(mixed)):
            rows, share = mixed.rows(start, stop), (stop - start) / len(mixed)
            answers = None if teacher_outputs is None else teacher_outputs.rows(start, stop)
            with nullcontext() if stop == len(mixed) else no_sync():
                outputs = student(shrink(rows.images, method.size))
                loss, each = evaluate_objective(objective, outputs, answers, rows)
                self.backward(loss * share)
            logits.append(outputs.logits.detach())
            losses.append(loss.detach() * share)
            values.append({name: value * share for name, value in each.items()})
        total = {name: torch.stack([each[name] for each in values]).sum() for name in values[0]}
        return Outputs(torch.cat(logits)), torch.stack(losses).sum(), total


@dataclass
class Engine:
    """What a step changes: the student's weights, the optimiser, the average, the sums.

    Args:
        clip_norm: of the gradients, at most
        channels_last: memory layout of the images; False: contiguous
        history: each image's latest score, for methods that choose by it
        world: the processes that train together, each with its rows of every batch
        micro_batch: train on so many rows at once at most, adding up gradients; None: on all
        scale: of the losses, for a student in fp16; a step whose gradients are not finite changes no weights, no
            statistics and no average
    """

    distiller: Distiller
    optimizer: torch.optim.Optimizer
    tally: EpochStats
    clip_norm: float | None = None
    average: AveragedModel | None = None
    channels_last: bool = True
    history: History | None = None
    world: World = ALONE
    micro_batch: int | None = None
    scale: LossScale | None = None

    @property
    def student(self) -> nn.Module:
        """The module that is trained."""
        return self.distiller.student.module

    def step(self, batch: Batch, draws: Draws, weight: float = 1.0) -> StepResult:
        """One step on this process's rows of a batch; nothing is read back from the device.

        The loss counts for `weight` beside those of other processes.
        """
        if not self.channels_last:
            batch = replace(batch, images=batch.pixels.contiguous())

        def backward(loss: Tensor) -> None:
            loss = loss if weight == 1 else loss * weight
            (loss if self.scale is None else self.scale.scaled(loss)).backward()

        learn: Learn = learn_at_once
        if self.micro_batch is not None:
            learn = MicroBatches(self.micro_batch, backward, self.most if is_sharded(self.student) else int)
        d = self.distiller
        assert d.batch_size is not None
        self.optimizer.zero_grad()
        before = None if self.scale is None else Snapshot(self.following())
        result = distill_step(d.student, d.teacher, batch, draws, d.method, d.objective, d.batch_size, learn)
        if self.micro_batch is None:
            backward(result.loss)
        self.update()
        self.world.take_from_leader(list(self.student.buffers()))
        if self.average is not None:
            self.average.update_parameters(self.student)
        skipped = None if self.scale is None else self.scale.found
        if before is not None and skipped is not None:
            before.restore(skipped)
        self.tally.add(batch, result, skipped)
        self.remember(batch, result)
        return result

    def following(self) -> list[Tensor]:
        """What a step changes beside the weights and the optimiser: statistics, and the average."""
        tensors = list(self.student.buffers())
        if self.average is not None:
            tensors += [*self.average.parameters(), *self.average.buffers()]
        return tensors

    def update(self) -> None:
        """Let the optimiser step by the gradients, clipped after they are unscaled."""
        if self.scale is not None:
            self.scale.unscale(self.student.parameters())
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)
        if self.scale is None:
            self.optimizer.step()
        else:
            self.scale.step(self.optimizer)

    def finite(self) -> bool:
        """Whether training can go on: losses were finite, but for steps that fp16 skips. Waits for the device."""
        return self.tally.finite() and (self.scale is None or self.scale.usable())

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return max(self.world.gather(number))

    @torch.no_grad()
    def remember(self, batch: Batch, result: StepResult) -> None:
        """Store in the history what the method's choice of later epochs needs of each image; no forward is spent."""
        choice = self.distiller.method.choice
        if self.history is None or choice is None or choice.row_score is None:
            return
        assert batch.index is not None
        answers = None if result.answers is None else result.answers.outputs
        scores = choice.row_score(result.outputs, answers, result.mixed)
        self.history.record(batch.index[result.mixed.position], scores)

    def set_learning_rate(self, value: float | Tensor) -> None:
        """Set the learning rate of the coming steps, in place where it is a tensor."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(value) if isinstance(value, Tensor) else group["lr"].fill_(value)
            else:
                group["lr"] = float(value)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a step changes, by name; tensors of the optimiser appear with its first step."""
        tensors = dict(self.student.state_dict(keep_vars=True))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, parameter in enumerate(parameters):
            values = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{number}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        tensors |= {f"tally.{name}": value for name, value in self.tally.sums.items()}
        if self.history is not None:
            tensors["history.fresh"] = self.history.fresh
        if self.scale is not None:
            tensors |= {f"scale.{name}": value for name, value in self.scale.state().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict(keep_vars=True).items()}
        return tensors | self.tally.of_images()
