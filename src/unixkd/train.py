"""Train a student: the loop over epochs, what it shows, saves and counts.

One run is a pure function of its configuration: order, views and draws come from (seed, epoch, step).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from unixkd import health, runstate, stopping
from unixkd.allocator import keep_freed_memory
from unixkd.assembly import decide, make_distiller, make_stepper, open_ledger, spread
from unixkd.batchnorm import synchronise
from unixkd.build import build_run, pick_device
from unixkd.config import NO_LOG, LogConfig, RunConfig
from unixkd.cost import Ledger
from unixkd.display import Display, EpochDone, Finished, Note, Started, Stepped, Throttle, silent, unfailing
from unixkd.engine import Engine
from unixkd.evaluate import Predictions
from unixkd.evaluation import evaluate_student, evaluate_teacher
from unixkd.loggers import Loggers, check_installed, open_loggers
from unixkd.memory import explained
from unixkd.models import PixelModel
from unixkd.parallel import ALONE, Agreement, World, together
from unixkd.planned import plan_of_run
from unixkd.planner import synchronize
from unixkd.runfolder import Mode, RunFolder, flatten, to_plain
from unixkd.sharding import check_sharding, gathered
from unixkd.stopping import Stopped, stoppable
from unixkd.summary import write_results

STRIDE = 1_000_003
"""Between the seeds of processes."""

T = TypeVar("T")


def run(
    config: RunConfig, out: Path, *, mode: Mode = "new", display: Display = silent, log: LogConfig = NO_LOG
) -> dict[str, Any]:
    """Train a student as configured and leave a run folder behind; returns the summary.

    Args:
        config: everything that decides the result
        out: the run folder
        mode: what to do with a folder that holds a run
        display: gets the run's events; where it fails, the run goes on without
        log: where its figures also go; where that fails, the run goes on without

    Raises:
        UserError: the configuration, the data or the folder do not allow it, or a logger's package is missing
        Stopped: on SIGTERM or Ctrl-C, saved after the step at work; `mode="resume"` goes on
    """
    with stoppable():
        return drain(steps(config, out, mode=mode, display=display, log=log))


def steps(
    config: RunConfig, out: Path, *, mode: Mode = "new", display: Display = silent, log: LogConfig = NO_LOG
) -> Generator[None, None, dict[str, Any]]:
    """The same run as a generator that pauses after every step, so that several can take turns."""
    folder = RunFolder(out)
    try:
        with together() as world, explained(config.train):
            world.once(lambda: check_installed(log))
            shown = unfailing(display) if world.leads else silent
            trainer = Trainer(config, folder, mode, shown, world)
            with closing(trainer.open_loggers(log)):
                yield from trainer.fit()
                weights = gathered(trainer.student.net.state_dict(), world)
                summary = world.once(lambda: write_results(trainer, weights))
                trainer.loggers.finish(summary)
    finally:
        folder.close()
        torch.set_flush_denormal(False)  # the process is the caller's
        keep_freed_memory(False)
    trainer.display(Finished(trainer.name))
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

    def __init__(
        self, config: RunConfig, folder: RunFolder, mode: Mode, display: Display, world: World = ALONE
    ) -> None:
        started = time.perf_counter()
        self.folder, self.display, self.name, self.world = folder, display, folder.path.name, world
        self.device = pick_device(config.train, world.local if world.size > 1 else None)
        torch.set_flush_denormal(config.train.flush_denormal)  # first, as threads to come inherit it
        if config.train.keep_memory and self.device.type == "cpu":
            keep_freed_memory(True)
        world.once(lambda: check_sharding(config, world))
        self.parts = world.leader_first(lambda: build_run(config, self.device))
        if not world.leads:  # dropout, the same in all processes, would be less of it
            torch.manual_seed(config.train.seed + STRIDE * world.rank)
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.config = world.once(lambda: self.decided(config, mode))
        if config.train.sync_batchnorm:
            synchronise(self.parts.student, world)
        ledger = open_ledger(self.config, self.parts)
        student = spread(self.config, self.parts, self.device, world)
        distiller = world.leader_first(
            lambda: make_distiller(self.config, self.parts, self.note, student, ledger, world)
        )
        self.stepper = make_stepper(self.config, self.parts, distiller, self.device, self.note, world)
        self.agreement = Agreement(world)
        self.reference_images = (config.reference_epochs or config.train.epochs) * len(self.parts.data.train)
        self.loggers = Loggers(self.note)
        self.epoch = self.done = 0
        """Epochs that are finished, and steps taken of the next."""
        self.last_record: dict[str, Any] = {}
        self.best_accuracy: float | None = None
        self.seconds = {"setup": 0.0, "train": 0.0, "evaluate": 0.0}
        runstate.check_space(self)
        if world.once(lambda: self.open_folder(mode)):  # not before: a faulty configuration leaves no trace
            runstate.restore(self)
        self.total = self.ledger
        """What all processes were charged, of several as of the end of the last epoch."""
        runstate.keep_journal(self)
        self.answers = evaluate_teacher(self)
        self.seconds["setup"] += time.perf_counter() - started

    def decided(self, config: RunConfig, mode: Mode) -> RunConfig:
        """The configuration with nothing left for this machine to decide."""
        saved = self.folder.decided() if mode == "resume" else {}
        return decide(config, self.parts, self.device, saved, self.note)

    def open_folder(self, mode: Mode) -> bool:
        """Make the run's folder ready; True where there is a checkpoint to go on from."""
        resumed = self.folder.open(self.config, mode)
        if (planned := plan_of_run(self)) is not None:
            with self.folder.writing():
                self.folder.write_json("plan.json", planned)
        self.list_left_out()
        if resumed:
            return True
        if self.folder.metrics.exists():
            self.note("nothing was saved before the run was ended: it begins again")
        self.folder.keep_metrics(0)
        return False

    def open_loggers(self, log: LogConfig) -> Loggers:
        """Begin to log as configured, in the first process alone."""
        if self.world.leads:
            settings = flatten(to_plain(self.config))
            self.loggers = open_loggers(log, self.folder.logs, self.folder.metrics, settings, self.note)
        return self.loggers

    def list_left_out(self) -> None:
        """Show what is to be known of the data; leave a list of the training images that could not be read."""
        for line in self.parts.data.notes:
            self.note(line, shared=True)
        if wrong := self.parts.data.left_out:
            self.folder.write_json("left_out.json", {"unreadable": list(wrong)})
            self.note(
                f"{len(wrong)} training images cannot be read and are left out: {self.folder.path}/left_out.json"
            )

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
            health.check(self)
            self.epoch, self.done = self.epoch + 1, 0
            last = self.epoch == train.epochs
            predictions = None
            if last or self.epoch % train.eval_every == 0:
                predictions = evaluate_student(self)
            rate = self.world.size * (self.engine.tally.seen - seen) / (self.seconds["train"] - before)
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
            if self.agreement.ask(stopping.asked()) and self.stepper.can_stop(self.epoch, self.done):
                self.charge_time(started, captured)
                self.stop()
            if throttle.ready():
                health.look(self)
                rate = self.world.size * (self.engine.tally.seen - seen) / (time.perf_counter() - started)
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
        health.check(self)
        runstate.save(self)
        raise Stopped(
            f"{self.folder.path}: stopped in epoch {self.epoch + 1} after step {self.done} of "
            f"{self.stepper.steps_per_epoch}, and saved"
        )

    def record_epoch(self, predictions: Predictions | None, rate: float) -> None:
        """Add the epoch's line to metrics.jsonl and show it."""
        steps, step = self.engine.tally.steps, self.engine.distiller.steps
        tally, self.total = self.engine.tally.joined(self.world), runstate.total_ledger(self)
        agreement = None
        if predictions is not None and self.answers is not None:
            agreement = predictions.agreement(self.answers)
        record = {
            "epoch": self.epoch,
            "step": step,
            "lr": self.stepper.rate(self.epoch - 1, steps - 1, steps),
            **tally.losses(),
            "accuracy": predictions and predictions.accuracy,
            "agreement": agreement,
            "calibration_error": predictions and predictions.calibration_error,
            "images": asdict(self.total.images),
            "cost": self.relative_cost(),
            "seconds": {key: round(self.seconds[key], 3) for key in ("train", "evaluate")},
            "selection": tally.selection() if self.parts.method.selects else None,
        }
        self.remember(record)
        if self.world.leads:
            self.folder.append_metrics(record)
            self.loggers.epoch(record)
        per_epoch = (self.seconds["train"] + self.seconds["evaluate"]) / self.epoch
        epochs = self.config.train.epochs
        left = (epochs - self.epoch) * per_epoch
        self.display(EpochDone(self.name, epochs, record, rate, left))

    def remember(self, record: dict[str, Any]) -> None:
        """What of an epoch's line the summary wants; all lines would add up in a long run."""
        self.last_record = record
        if record["accuracy"] is not None:
            self.best_accuracy = max(record["accuracy"], self.best_accuracy or 0.0)

    def relative_cost(self) -> dict[str, float] | None:
        """Training cost so far over that of plain KD's whole run; None without a teacher to compare with."""
        return None if self.parts.teacher is None else self.total.relative_to_kd(self.reference_images)

    def note(self, text: str, *, shared: bool = False) -> None:
        """Show the user a line; once where it is true of all runs of a comparison."""
        self.display(Note(self.name, text, shared))
