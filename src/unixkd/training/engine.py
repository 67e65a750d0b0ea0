"""The whole training step on tensors: score, rank, mix, ask, train, sum up; one function however it is run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from unixkd.distiller import Distiller
from unixkd.method.batch import Batch, Draws
from unixkd.method.epoch_choice import History
from unixkd.method.network import is_sharded
from unixkd.method.resizing import size_at
from unixkd.method.scoring import score_logits
from unixkd.method.step import Parts, StepResult, check_finite, score
from unixkd.training.distributed.global_selection import GlobalSelection
from unixkd.training.distributed.world import ALONE, World
from unixkd.training.epoch_stats import EpochStats


@dataclass
class Engine:
    """What a step changes: the student's weights, the optimiser, the average, the sums.

    Args:
        distiller: student, teacher, method and losses
        optimizer: over the student's parameters
        tally: sums up what happens
        clip_norm: clip gradients to this norm
        average: moving average of the weights
        channels_last: memory layout of the images; False: contiguous
        history: gets what the method's choice wants remembered of each image
        world: the processes that train together, each with a part of every batch
        micro_batch: train on so many rows at once at most, adding up gradients; None: on all
        across: rows are kept of those of all processes together, not of each one's own
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
    across: bool = False

    @property
    def student(self) -> nn.Module:
        """The module that is trained."""
        return self.distiller.student.module

    def step(self, batch: Batch, draws: Draws, weight: float = 1.0) -> StepResult:
        """One step on one batch; nothing is read back from the device.

        Args:
            batch: this process's rows
            draws: for them
            weight: what its loss counts for beside those of other processes
        """
        exchange = self.exchange(len(batch), weight)
        if exchange is not None:
            weight = exchange.weight(self.distiller.method.keep)
        if not self.channels_last:
            batch = replace(batch, images=batch.pixels.contiguous())

        def backward(loss: Tensor) -> None:
            (loss if weight == 1 else loss * weight).backward()

        if self.micro_batch is None:
            result = self.distiller.run(batch, draws, exchange=exchange)
            self.optimizer.zero_grad()
            backward(result.loss)
        else:
            self.optimizer.zero_grad()
            agree = self.most if is_sharded(self.student) else int
            parts = Parts(self.micro_batch, backward, agree)
            result = self.distiller.run(batch, draws, parts, exchange)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)
        self.optimizer.step()
        self.world.take_from_leader(list(self.student.buffers()))
        if self.average is not None:
            self.average.update_parameters(self.student)
        self.tally.add(batch, result)
        self.remember(batch, result)
        return result

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return max(self.world.gather(number))

    def exchange(self, rows: int, weight: float) -> GlobalSelection | None:
        """What ranks the rows of all processes together; None where each keeps of its own.

        Args:
            rows: that this process has of the step
            weight: what they count for: their number over that of an even share
        """
        if not self.across or not self.distiller.method.ranks:
            return None
        assert self.distiller.batch_size is not None
        size = self.world.size
        return GlobalSelection(self.world, round(rows * size / weight), self.distiller.batch_size * size)

    def score_ahead(self, batch: Batch) -> Float[Tensor, " n"]:
        """The scores of images whose steps are to come, at a forward of the student that is charged here."""
        method = self.distiller.method
        assert method.scorer is not None
        logits = score(self.distiller.student, batch.pixels, method.scoring)
        scores = score_logits(method.scorer, logits, batch.labels)
        check_finite(scores)
        self.distiller.ledger.charge_scoring(len(batch), size_at(batch.pixels, method.scoring.size))
        self.tally.scored += len(batch)
        if self.history is not None:
            assert batch.index is not None
            self.history.record(batch.index, scores)
        return scores

    def remember(self, batch: Batch, result: StepResult) -> None:
        """Hand the history what the step found out about its images."""
        if self.history is None:
            return
        assert batch.index is not None
        if result.row_scores is not None:
            index = batch.index if result.held is None else result.held.batch.index
            assert index is not None
            self.history.record(index[result.mixed.position], result.row_scores)
        elif result.scoring_logits is not None and result.scores is not None:
            self.history.record(batch.index, result.scores)

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
        return tensors | self.tally.of_images()
