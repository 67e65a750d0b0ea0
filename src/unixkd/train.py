"""Train a student: the loop over epochs, what it shows, saves and counts.

One run is a pure function of its configuration: order, views and draws come from (seed, epoch, step).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from unixkd import runstate, stopping
from unixkd.allocator import keep_freed_memory
from unixkd.assembly import decide, make_distiller, make_stepper
from unixkd.batchnorm import clean_statistics, has_statistics, sees_clean_images
from unixkd.build import build_run, pick_device
from unixkd.config import RunConfig
from unixkd.cost import Ledger
from unixkd.data import epoch_order
from unixkd.display import Display, EpochDone, Finished, Note, Started, Stepped, Throttle, percent, silent
from unixkd.engine import Engine
from unixkd.errors import UserError
from unixkd.evaluate import Predictions, predict
from unixkd.memory import explained
from unixkd.models import PixelModel
from unixkd.planner import synchronize
from unixkd.precision import DTYPES
from unixkd.runfolder import Mode, RunFolder
from unixkd.stopping import Stopped, stoppable
from unixkd.summary import write_results

NEAR_CHANCE = 0.02
"""A teacher this little better than guessing is warned about."""


NAMED = 8
"""Images that an error names."""

T = TypeVar("T")


def run(config: RunConfig, out: Path, *, mode: Mode = "new", display: Display = silent) -> dict[str, Any]:
    """Train a student as configured and leave a run folder behind; returns the summary.

    Args:
        config: everything that decides the result
        out: the run folder
        mode: what to do with a folder that holds a run
        display: gets the run's events

    Raises:
        UserError: the configuration, the data or the folder do not allow it
        Stopped: on SIGTERM or Ctrl-C, saved after the step at work; `mode="resume"` goes on
    """
    with stoppable():
        return drain(steps(config, out, mode=mode, display=display))


def steps(
    config: RunConfig, out: Path, *, mode: Mode = "new", display: Display = silent
) -> Generator[None, None, dict[str, Any]]:
    """The same run as a generator that pauses after every step, so that several can take turns."""
    folder = RunFolder(out)
    try:
        with explained(config.train):
            trainer = Trainer(config, folder, mode, display)
            yield from trainer.fit()
            summary = write_results(trainer)
    finally:
        folder.close()
        torch.set_flush_denormal(False)  # the process is the caller's
        keep_freed_memory(False)
    display(Finished(trainer.name))
    return summary


def drain(running: Generator[None, None, T]) -> T:
    """Run a generator to its end; gives back what it returns."""
    while True:
        try:
            next(running)
        except StopIteration as stop:
            result: T = stop.value
            return result


class Trainer:
    """One run: what it is made of and where it stands."""

    def __init__(self, config: RunConfig, folder: RunFolder, mode: Mode, display: Display) -> None:
        started = time.perf_counter()
        self.folder, self.display, self.name = folder, display, folder.path.name
        self.device = pick_device(config.train)
        torch.set_flush_denormal(config.train.flush_denormal)  # first, as threads to come inherit it
        if config.train.keep_memory and self.device.type == "cpu":
            keep_freed_memory(True)
        self.parts = build_run(config, self.device)
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.config = decide(
            config, self.parts, self.device, folder.decided() if mode == "resume" else {}, self.note
        )
        distiller = make_distiller(self.config, self.parts, self.note)
        self.stepper = make_stepper(self.config, self.parts, distiller, self.device, self.note)
        self.reference_images = (config.reference_epochs or config.train.epochs) * len(self.parts.data.train)
        self.epoch = self.done = 0
        """Epochs that are finished, and steps taken of the next."""
        self.records: list[dict[str, Any]] = []
        self.seconds = {"setup": 0.0, "train": 0.0, "evaluate": 0.0}
        runstate.check_space(self)
        if folder.open(self.config, mode):  # only here, so that a faulty configuration leaves no trace
            runstate.restore(self)
        else:
            if folder.metrics.exists():
                self.note("nothing was saved before the run was ended: it begins again")
            folder.keep_metrics(0)
        runstate.keep_journal(self)
        self.answers = self.ask_teacher()
        self.seconds["setup"] += time.perf_counter() - started

    @property
    def engine(self) -> Engine:
        """What takes the steps."""
        return self.stepper.engine

    @property
    def ledger(self) -> Ledger:
        """What was charged so far."""
        return self.engine.distiller.ledger

    @property
    def student(self) -> PixelModel:
        """The network that is evaluated and saved: the average of the weights where one is kept."""
        average = self.engine.average
        network = self.parts.student if average is None else average.module
        assert isinstance(network, PixelModel)
        return network

    def fit(self) -> Iterator[None]:
        """Train the epochs that are left, evaluating and saving as configured; pauses after every step."""
        train = self.config.train
        self.display(Started(self.name, train.epochs, self.stepper.steps_per_epoch, self.epoch))
        while self.epoch < train.epochs:
            before, seen = self.seconds["train"], self.engine.tally.seen if self.done else 0
            yield from self.epoch_steps()
            self.check_finite()
            self.epoch, self.done = self.epoch + 1, 0
            last = self.epoch == train.epochs
            predictions = None
            if last or self.epoch % train.eval_every == 0:
                predictions = self.evaluate()
            rate = (self.engine.tally.seen - seen) / (self.seconds["train"] - before)
            self.record_epoch(predictions, rate)
            if last or self.epoch % train.checkpoint_every == 0:
                runstate.save(self)

    def epoch_steps(self) -> Iterator[None]:
        """One pass over the training images; pauses after every step."""
        started, throttle, captured = time.perf_counter(), Throttle(), self.stepper.capture_seconds
        self.parts.student.train()
        if not self.done:
            self.engine.tally.start_epoch()
        seen = self.engine.tally.seen
        for counts in self.stepper.epoch(self.epoch, self.done):
            self.engine.distiller.count(counts)
            self.engine.tally.count(counts)
            self.done += 1
            if stopping.asked() and self.stepper.can_stop(self.epoch, self.done):
                self.charge_time(started, captured)
                self.stop()
            if throttle.ready():
                self.check_answers()
                if not self.engine.tally.finite():
                    raise self.not_finite()
                rate = (self.engine.tally.seen - seen) / (time.perf_counter() - started)
                cost = (self.relative_cost() or {}).get("backward_2x")
                self.display(Stepped(self.name, self.engine.distiller.steps, rate, cost))
            yield
        self.charge_time(started, captured)

    def charge_time(self, started: float, captured: float) -> None:
        """Count the time of an epoch's steps: training, but for what the first capture took."""
        synchronize(self.device)
        setup = self.stepper.capture_seconds - captured
        self.seconds["setup"] += setup
        self.seconds["train"] += time.perf_counter() - started - setup

    def stop(self) -> None:
        """Save in the middle of an epoch, and raise what ends the process."""
        self.check_finite()
        runstate.save(self)
        raise Stopped(
            f"{self.folder.path}: stopped in epoch {self.epoch + 1} after step {self.done} of "
            f"{self.stepper.steps_per_epoch}, and saved"
        )

    def check_finite(self) -> None:
        """Raise where an epoch has broken the weights, or the teacher has failed, before anything is saved."""
        self.check_answers()
        weights = torch.stack([p.detach().isfinite().all() for p in self.parts.student.parameters()]).all()
        if not (self.engine.tally.finite() and weights):
            raise self.not_finite()

    def check_answers(self) -> None:
        """Raise where the teacher's answers to more images than allowed were not finite; waits for the device."""
        faulty, allowed = self.engine.tally.unanswered > 0, self.config.answers.max_faulty
        if int(faulty.sum()) > allowed:
            named = ", ".join(map(str, faulty.nonzero().flatten()[:NAMED].tolist()))
            raise UserError(
                f"epoch {self.epoch + 1}: the teacher's logits are not finite for {int(faulty.sum())} images "
                f"({named}{', …' if int(faulty.sum()) > NAMED else ''}); are its mean, std and precision right? Up to "
                f"--answers.max_faulty ({allowed}) are left out of the losses"
            )

    def not_finite(self) -> UserError:
        """The error for a run that has diverged."""
        return UserError(
            f"epoch {self.epoch + 1}: the loss or the weights are no longer finite; lower --lr or give "
            "--train.clip_norm (nothing of this epoch was saved)"
        )

    def evaluate(self) -> Predictions | None:
        """The student on the evaluation split, where there is one."""
        started = time.perf_counter()
        with self.clean_statistics():
            predictions = self.predict(self.student, self.config.train.precision)
        if predictions is not None:
            self.ledger.charge_evaluation(len(predictions))
        self.seconds["evaluate"] += time.perf_counter() - started
        return predictions

    def clean_statistics(self) -> contextlib.AbstractContextManager[None]:
        """BatchNorm's statistics on clean images, where the epoch showed none; the last ones stay and are charged."""
        train, split = self.config.train, self.parts.data.train
        count, epoch, last = min(train.bn_images, len(split)), self.epoch - 1, self.epoch == train.epochs
        method = self.engine.distiller.method
        if not count or sees_clean_images(method, epoch) or not has_statistics(self.student):
            return contextlib.nullcontext()
        if last:
            self.ledger.charge_refresh(count)
        else:
            self.ledger.charge_evaluation(count)
        order = epoch_order(len(split), train.seed, epoch)[:count]
        batches = split.train_batches(epoch, order, train.eval_batch_size)
        return clean_statistics(self.student, batches, DTYPES[train.precision], keep=last)

    def predict(self, model: PixelModel, precision: str) -> Predictions | None:
        """A network's answers on the evaluation split."""
        test = self.parts.data.test
        if test is None:
            return None
        batches = test.eval_batches(self.config.train.eval_batch_size)
        return predict(model, batches, self.device, DTYPES[precision])

    def ask_teacher(self) -> Predictions | None:
        """The teacher's answers on the evaluation split; its accuracy is shown before training starts."""
        teacher = self.parts.teacher
        answers = None if teacher is None else self.predict(teacher, self.config.train.teacher_precision)
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

    def record_epoch(self, predictions: Predictions | None, rate: float) -> None:
        """Add the epoch's line to metrics.jsonl and show it."""
        steps, step = self.engine.tally.steps, self.engine.distiller.steps
        agreement = None
        if predictions is not None and self.answers is not None:
            agreement = predictions.agreement(self.answers)
        record = {
            "epoch": self.epoch,
            "step": step,
            "lr": self.stepper.rate(self.epoch - 1, steps - 1, steps),
            **self.engine.tally.losses(),
            "accuracy": predictions and predictions.accuracy,
            "agreement": agreement,
            "calibration_error": predictions and predictions.calibration_error,
            "images": asdict(self.ledger.images),
            "cost": self.relative_cost(),
            "seconds": {key: round(self.seconds[key], 3) for key in ("train", "evaluate")},
            "selection": self.engine.tally.selection() if self.parts.method.selects else None,
        }
        self.records.append(record)
        self.folder.append_metrics(record)
        per_epoch = (self.seconds["train"] + self.seconds["evaluate"]) / self.epoch
        epochs = self.config.train.epochs
        left = (epochs - self.epoch) * per_epoch
        self.display(EpochDone(self.name, epochs, record, rate, left))

    def relative_cost(self) -> dict[str, float] | None:
        """Training cost so far over that of plain KD's whole run; None without a teacher to compare with."""
        return None if self.parts.teacher is None else self.ledger.relative_to_kd(self.reference_images)

    def note(self, text: str, *, shared: bool = False) -> None:
        """Show the user a line; once where it is true of all runs of a comparison."""
        self.display(Note(self.name, text, shared))
