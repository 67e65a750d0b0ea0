"""Train a student on lightning-fabric: the loop over epochs and steps.

One run is a pure function of its configuration: order, views and draws come from (seed, epoch, step).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unixkd import runstate
from unixkd.batch import Batch
from unixkd.build import RunParts, build_optimizer, build_run, make_fabric
from unixkd.config import RunConfig
from unixkd.cost import Ledger, forward_flops
from unixkd.data import epoch_order
from unixkd.display import Display, EpochDone, Finished, Note, Started, Stepped, Throttle, percent, silent
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.evaluate import Predictions, predict
from unixkd.models import PixelModel
from unixkd.runfolder import Mode, RunFolder
from unixkd.schedules import learning_rate
from unixkd.summary import write_results
from unixkd.tally import EpochTally

NEAR_CHANCE = 0.02
"""A teacher this little better than guessing is warned about."""


def run(config: RunConfig, out: Path, *, mode: Mode = "new", display: Display = silent) -> dict[str, Any]:
    """Train a student as configured and leave a run folder behind; returns the summary.

    Args:
        config: everything that decides the result
        out: the run folder
        mode: what to do with a folder that holds a run
        display: gets the run's events

    Raises:
        UserError: the configuration, the data or the folder do not allow it
    """
    trainer = Trainer(config, RunFolder(out), mode, display)
    trainer.fit()
    summary = write_results(trainer)
    display(Finished(trainer.name))
    return summary


class Trainer:
    """One run: what it is made of and where it stands."""

    def __init__(self, config: RunConfig, folder: RunFolder, mode: Mode, display: Display) -> None:
        started = time.perf_counter()
        self.config, self.folder, self.display, self.name = config, folder, display, folder.path.name
        self.fabric = make_fabric(config.train)
        self.parts = build_run(config, self.fabric.device)
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.ledger = open_ledger(self.parts)
        self.model, self.optimizer = self.fabric.setup(
            self.parts.student, build_optimizer(config.train, self.parts.student.parameters())
        )
        self.distiller = Distiller(
            self.model,
            self.parts.teacher,
            self.parts.method,
            self.parts.objective,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            ledger=self.ledger,
        )
        self.average: AveragedModel | None = None
        if (decay := config.train.ema_decay) is not None:
            average = get_ema_multi_avg_fn(decay)
            self.average = AveragedModel(self.parts.student, multi_avg_fn=average, use_buffers=True)
        self.times_kept = torch.zeros(
            len(self.parts.data.train), dtype=torch.int32, device=self.fabric.device
        )
        self.steps_per_epoch = math.ceil(len(self.parts.data.train) / config.train.batch_size)
        self.reference_images = (config.reference_epochs or config.train.epochs) * len(self.parts.data.train)
        self.epoch = 0
        self.records: list[dict[str, Any]] = []
        self.seconds = {"setup": 0.0, "train": 0.0, "evaluate": 0.0}
        if folder.open(config, mode):  # only here, so that a faulty configuration leaves no trace
            runstate.restore(self)
        else:
            folder.keep_metrics(0)
        self.answers = self.ask_teacher()
        self.seconds["setup"] += time.perf_counter() - started

    @property
    def student(self) -> PixelModel:
        """The network that is evaluated and saved: the average of the weights where one is kept."""
        network = self.parts.student if self.average is None else self.average.module
        assert isinstance(network, PixelModel)
        return network

    def fit(self) -> None:
        """Train the epochs that are left, evaluating and saving as configured."""
        train = self.config.train
        self.display(Started(self.name, train.epochs, self.steps_per_epoch, self.epoch))
        while self.epoch < train.epochs:
            tally, seconds = self.train_epoch()
            self.check_finite(tally)
            self.epoch += 1
            last = self.epoch == train.epochs
            predictions = None
            if last or self.epoch % train.eval_every == 0:
                predictions = self.evaluate()
            self.record_epoch(tally, predictions, tally.seen / seconds)
            if last or self.epoch % train.checkpoint_every == 0:
                runstate.save(self)

    def train_epoch(self) -> tuple[EpochTally, float]:
        """One pass over the training images; what was summed up, and the seconds it took."""
        started, throttle = time.perf_counter(), Throttle()
        self.model.train()
        tally = EpochTally(self.times_kept)
        for step, batch in enumerate(self.batches(), start=self.epoch * self.steps_per_epoch):
            self.train_step(step, batch, tally)
            if throttle.ready():
                rate = tally.seen / (time.perf_counter() - started)
                cost = (self.relative_cost() or {}).get("backward_2x")
                self.display(Stepped(self.name, step + 1, rate, cost))
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        self.seconds["train"] += seconds
        return tally, seconds

    def check_finite(self, tally: EpochTally) -> None:
        """Raise where an epoch has broken the weights, before they are saved."""
        weights = torch.stack([p.detach().isfinite().all() for p in self.parts.student.parameters()]).all()
        if not (math.isfinite(tally.losses()["loss"]) and weights):
            raise UserError(
                f"epoch {self.epoch + 1}: the loss or the weights are no longer finite; lower --lr or give "
                "--train.clip_norm (nothing of this epoch was saved)"
            )

    def train_step(self, step: int, batch: Batch, tally: EpochTally) -> None:
        """Score, rank, mix, ask, train: one batch."""
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, step, self.steps_per_epoch)
        with self.fabric.autocast():
            result = self.distiller.step(batch.images, batch.labels, index=batch.index, view=batch.view)
        self.optimizer.zero_grad()
        self.fabric.backward(result.loss)
        if train.clip_norm is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=train.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.parts.student)
        tally.add(batch, result)

    def batches(self) -> Iterator[Batch]:
        """This epoch's batches, on the device."""
        split, train = self.parts.data.train, self.config.train
        order = epoch_order(len(split), train.seed, self.epoch)
        for batch in split.train_batches(self.epoch, order, train.batch_size):
            yield batch.to(self.fabric.device)

    def evaluate(self) -> Predictions | None:
        """The student on the evaluation split, where there is one."""
        started = time.perf_counter()
        predictions = self.predict(self.student)
        if predictions is not None:
            self.ledger.charge_evaluation(len(predictions))
        self.seconds["evaluate"] += time.perf_counter() - started
        return predictions

    def predict(self, model: PixelModel) -> Predictions | None:
        """A network's answers on the evaluation split."""
        test = self.parts.data.test
        if test is None:
            return None
        with self.fabric.autocast():
            return predict(model, test.eval_batches(self.config.train.eval_batch_size), self.fabric.device)

    def ask_teacher(self) -> Predictions | None:
        """The teacher's answers on the evaluation split; its accuracy is shown before training starts."""
        teacher = self.parts.teacher
        answers = None if teacher is None else self.predict(teacher)
        if teacher is None or answers is None:
            return None
        if not self.ledger.teacher_evaluated:  # a resumed run has paid for it before
            self.ledger.charge_evaluation(len(answers), teacher=True)
        if answers.accuracy is not None:
            self.note(f"teacher {teacher.card.name}: accuracy {percent(answers.accuracy)}", shared=True)
            if answers.accuracy < 1 / teacher.card.num_classes + NEAR_CHANCE:
                self.note(
                    "WARNING: the teacher is hardly better than chance on these images: are its classes in "
                    "the data's order, and its mean, std and size right?",
                    shared=True,
                )
        return answers

    def record_epoch(self, tally: EpochTally, predictions: Predictions | None, rate: float) -> None:
        """Add the epoch's line to metrics.jsonl and show it."""
        train, step = self.config.train, self.epoch * self.steps_per_epoch
        agreement = None
        if predictions is not None and self.answers is not None:
            agreement = predictions.agreement(self.answers)
        record = {
            "epoch": self.epoch,
            "step": step,
            "lr": learning_rate(train, step - 1, self.steps_per_epoch),
            **tally.losses(),
            "accuracy": predictions and predictions.accuracy,
            "agreement": agreement,
            "calibration_error": predictions and predictions.calibration_error,
            "images": asdict(self.ledger.images),
            "cost": self.relative_cost(),
            "seconds": {key: round(self.seconds[key], 3) for key in ("train", "evaluate")},
            "selection": tally.selection() if self.parts.method.keep < 1 else None,
        }
        self.records.append(record)
        self.folder.append_metrics(record)
        per_epoch = (self.seconds["train"] + self.seconds["evaluate"]) / self.epoch
        left = (train.epochs - self.epoch) * per_epoch
        self.display(EpochDone(self.name, train.epochs, record, rate, left))

    def relative_cost(self) -> dict[str, float] | None:
        """Training cost so far over that of plain KD's whole run; None without a teacher to compare with."""
        return None if self.parts.teacher is None else self.ledger.relative_to_kd(self.reference_images)

    def note(self, text: str, *, shared: bool = False) -> None:
        """Show the user a line; once where it is true of all runs of a comparison."""
        self.display(Note(self.name, text, shared))


def open_ledger(parts: RunParts) -> Ledger:
    """A ledger with both networks' measured forward FLOPs."""
    shape = parts.data.image_shape
    teacher = 0 if parts.teacher is None else forward_flops(parts.teacher, shape)
    return Ledger(forward_flops(parts.student, shape), teacher)
