"""Train a student: the loop over epochs, what it shows, saves and counts, and when it is not worth going on.

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

from unixkd.config import NO_LOG, LogConfig, RunConfig, flatten, to_plain
from unixkd.errors import UserError
from unixkd.planning.timing import synchronize
from unixkd.training import resume, stopping
from unixkd.training.build import (
    build_run,
    decide,
    make_distiller,
    make_stepper,
    open_ledger,
    pick_device,
    spread,
)
from unixkd.training.display import (
    Display,
    EpochDone,
    Finished,
    Started,
    Stepped,
    Throttle,
    silent,
    unfailing,
)
from unixkd.training.distributed.sharding import check_sharding, gathered, own_part
from unixkd.training.distributed.world import ALONE, Agreement, World, together
from unixkd.training.evaluation import evaluate_student, evaluate_teacher, synchronise
from unixkd.training.loggers import Loggers, check_installed, open_loggers
from unixkd.training.memory import explained, keep_freed_memory
from unixkd.training.predictions import Predictions
from unixkd.training.results import plan_of_run, write_results
from unixkd.training.run_folder import Mode, RunFolder
from unixkd.training.state import Run
from unixkd.training.stopping import Stopped, stoppable

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


class Trainer(Run):
    """One run, from its start to its end."""

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
        resume.check_space(self)
        if world.once(lambda: self.open_folder(mode)):  # not before: a faulty configuration leaves no trace
            resume.restore(self)
        self.total = self.ledger
        """What all processes were charged, of several as of the end of the last epoch."""
        resume.keep_journal(self)
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

    def fit(self) -> Iterator[None]:
        """Train the epochs that are left, evaluating and saving as configured; pauses after every step."""
        train = self.config.train
        self.display(Started(self.name, train.epochs, self.stepper.steps_per_epoch, self.epoch))
        while self.epoch < train.epochs:
            before, seen = self.seconds["train"], self.engine.tally.seen if self.done else 0
            yield from self.epoch_steps()
            check(self)
            self.epoch, self.done = self.epoch + 1, 0
            last = self.epoch == train.epochs
            predictions = None
            if last or self.epoch % train.eval_every == 0:
                predictions = evaluate_student(self)
            rate = self.world.size * (self.engine.tally.seen - seen) / (self.seconds["train"] - before)
            self.record_epoch(predictions, rate)
            if last or self.epoch % train.checkpoint_every == 0:
                resume.save(self)

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
            if self.agreement.ask(stopping.asked()):
                self.charge_time(started, captured)
                self.stop()
            if throttle.ready():
                look(self)
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
        check(self)
        resume.save(self)
        raise Stopped(
            f"{self.folder.path}: stopped in epoch {self.epoch + 1} after step {self.done} of "
            f"{self.stepper.steps_per_epoch}, and saved"
        )

    def record_epoch(self, predictions: Predictions | None, rate: float) -> None:
        """Add the epoch's line to metrics.jsonl and show it."""
        steps, step = self.engine.tally.steps, self.engine.distiller.steps
        tally, self.total = self.engine.tally.joined(self.world), resume.total_ledger(self)
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


NAMED = 8
"""Images that an error names."""


def check(run: Run) -> None:
    """Raise where an epoch has broken the weights, or the teacher has failed, before anything is saved.

    Every process has to call it.
    """
    resume.share(run)
    check_answers(run)
    parts = [own_part(p.detach()) for p in run.parts.student.parameters()]
    weights = torch.stack([part.isfinite().all() for part in parts]).all()
    if not all(run.world.gather(bool(run.engine.tally.finite() and weights))):
        raise not_finite(run)


def look(run: Run) -> None:
    """Raise where this process's steps so far went wrong; waits for the device."""
    check_answers(run)
    if not run.engine.tally.finite():
        raise not_finite(run)


def check_answers(run: Run) -> None:
    """Raise where the teacher's answers to more images than allowed were not finite; waits for the device."""
    faulty, allowed = run.engine.tally.unanswered > 0, run.config.answers.max_faulty
    if int(faulty.sum()) > allowed:
        named = ", ".join(map(str, faulty.nonzero().flatten()[:NAMED].tolist()))
        raise UserError(
            f"epoch {run.epoch + 1}: the teacher's logits are not finite for {int(faulty.sum())} images "
            f"({named}{', …' if int(faulty.sum()) > NAMED else ''}); are its mean, std and precision right? Up to "
            f"--answers.max_faulty ({allowed}) are left out of the losses"
        )


def not_finite(run: Run) -> UserError:
    """The error for a run that has diverged."""
    return UserError(
        f"epoch {run.epoch + 1}: the loss or the weights are no longer finite; lower --lr or give "
        "--train.clip_norm (nothing of this epoch was saved)"
    )
