"""Train a student: a run is started, its epochs are trained, its results are written. Read it from top to bottom.

What a run is made of is in `state.py`. A run is a pure function of its configuration: order, views and draws come from
(seed, epoch, step).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unixkd.config import NO_LOG, LogConfig, RunConfig, flatten, to_plain
from unixkd.errors import UserError
from unixkd.method.network import set_train
from unixkd.models.user_code import locating
from unixkd.names import phase, plural
from unixkd.planning.timing import synchronize
from unixkd.run_files import Epoch, Images
from unixkd.training import resume, stopping
from unixkd.training.build import build_stepper
from unixkd.training.device import claim_device
from unixkd.training.display import (
    Began,
    Display,
    EpochDone,
    Finished,
    Note,
    Started,
    Stepped,
    silent,
    unfailing,
)
from unixkd.training.distributed.sharding import check_sharding, gathered, local_shard
from unixkd.training.distributed.world import ALONE, Agreement, World, together
from unixkd.training.evaluation import (
    evaluate_student,
    evaluate_teacher,
    remember_predictions,
    stuck_note,
)
from unixkd.training.head import fit_head
from unixkd.training.loggers import Loggers, check_installed, open_loggers
from unixkd.training.memory import explained, keep_freed_memory
from unixkd.training.predictions import Predictions
from unixkd.training.resolved import resolve
from unixkd.training.results import list_left_out, plan_of_run, write_results
from unixkd.training.run_folder import Mode, RunFolder
from unixkd.training.state import Run
from unixkd.training.stopping import Stopped, stoppable

SEED_STRIDE = 1_000_003
"""Between the seeds of processes."""
SHOW_SECONDS = 0.25
"""At least, between two looks at a run in the middle of an epoch: they wait for the device."""
NAMED_IMAGES = 8
"""Of those that an error is about."""


def run(
    config: RunConfig,
    out: Path,
    *,
    mode: Mode = "new",
    display: Display = silent,
    log: LogConfig = NO_LOG,
    as_if_alone: bool = False,
) -> dict[str, Any]:
    """Train a student as configured and leave a run folder behind; returns the summary.

    Args:
        config: everything that decides the result
        out: the run folder
        mode: what to do with a folder that holds a run
        display: gets the run's events; where it fails, the run goes on without
        log: where its figures also go; where that fails, the run goes on without
        as_if_alone: charge it for answers that other runs have stored too, so that its cost does not depend on them

    Raises:
        UserError: the configuration, the data or the folder do not allow it, or a logger's package is missing
        Stopped: on SIGTERM or Ctrl-C, saved after the step at work; `mode="resume"` goes on
    """
    folder = RunFolder(out)
    networks = [model.code or model.name for model in (config.student, config.teacher) if model is not None]
    try:
        claim_device(config.train)  # before the process group is made
        with stoppable(), locating(*networks), together() as world, explained(config.train):
            world.once(lambda: check_installed(log))
            shown = unfailing(display) if world.leads else silent
            started = start(config, folder, mode, shown, world, as_if_alone)
            if world.leads:
                settings = flatten(to_plain(started.config))
                started.loggers = open_loggers(log, folder.logs, folder.metrics, settings, started.note)
            with closing(started.loggers) as loggers:
                fit(started)
                remember_predictions(started)
                weights = gathered(started.student.net.state_dict(), world)
                summary = world.once(lambda: write_results(started, weights))
                loggers.finish(summary)
    finally:
        folder.close()
        torch.set_flush_denormal(False)  # the process is the caller's
        keep_freed_memory(False)
    started.display(Finished(started.name))
    return summary


# Start: build, decide, open, restore


def start(
    config: RunConfig,
    folder: RunFolder,
    mode: Mode,
    display: Display,
    world: World = ALONE,
    as_if_alone: bool = False,
) -> Run:
    """A run that is ready for its next step, new or where it was left."""
    begun = time.perf_counter()

    def note(text: str) -> None:
        display(Note(folder.path.name, text))

    display(Began(folder.path.name))
    device = prepare_process(config, world)
    resolved = resolve(config, device, folder.path if mode == "resume" else None, note, world)
    if not world.leads:  # dropout, the same in all processes, would be less of it
        torch.manual_seed(config.train.seed + SEED_STRIDE * world.rank)
    made = Run(
        name=folder.path.name,
        resolved=resolved,
        folder=folder,
        display=display,
        world=world,
        stepper=build_stepper(resolved, note, world),
        loggers=Loggers(note),
        agreement=Agreement(world),
    )
    if as_if_alone and (store := resume.answer_store(made)) is not None:
        store.foreign = np.ones(store.contents.images * store.contents.views, bool)
    resume.check_space(made)
    if world.once(lambda: open_folder(made, mode)):  # not before: a faulty configuration leaves no trace
        resume.restore(made)
    else:
        fit_head(made)
    made.total = made.ledger
    resume.keep_journal(made)
    made.answers = evaluate_teacher(made)
    made.seconds["setup"] += time.perf_counter() - begun
    return made


def prepare_process(config: RunConfig, world: World) -> torch.device:
    """Set what holds for the whole process, before anything is computed in it; the run's device."""
    torch.set_flush_denormal(config.train.flush_denormal)  # first, as threads to come inherit it
    device = claim_device(config.train)
    if config.train.keep_memory and device.type == "cpu":
        keep_freed_memory(True)
    world.once(lambda: check_sharding(config, world))
    return device


def open_folder(run: Run, mode: Mode) -> bool:
    """Make the run's folder ready; True where there is a checkpoint to go on from."""
    resumed = run.folder.open(run.config, mode)
    if run.folder.removed:
        run.note(f"removed the run that was in {run.folder.path}: {', '.join(run.folder.removed)}")
    if (planned := plan_of_run(run)) is not None:
        with run.folder.writing():
            run.folder.write_json("plan.json", asdict(planned))
    for line in run.resolved.data.notes:
        run.note(line, shared=True)
    list_left_out(run)
    if resumed:
        return True
    if run.folder.metrics.exists():
        run.note("nothing was saved before the run was ended: it begins again")
    run.folder.keep_metrics(0)
    return False


# Fit: epoch after epoch


def fit(run: Run) -> None:
    """Train the epochs that are left, evaluating and saving as configured."""
    epochs = run.config.train.epochs
    run.display(Started(run.name, epochs, run.stepper.steps_per_epoch, run.epoch))
    steps = plural(run.stepper.steps_per_epoch, "step")
    doing = f"training {run.student.card.name}: {plural(epochs, 'epoch')} of {steps}"
    while run.epoch < epochs:
        with phase(doing, once=True, counted=True):
            for _ in epoch_steps(run):
                pass
        end_epoch(run)


def epoch_steps(run: Run) -> Iterator[None]:
    """The steps that are left of an epoch; pauses after each, so that a caller can look on."""
    started, captured, shown = time.perf_counter(), run.stepper.capture_seconds, 0.0
    trained = run.seconds["train"]
    set_train(run.resolved.student, freeze_batchnorm=run.config.train.freeze_batchnorm)
    if not run.done:
        run.engine.tally.start_epoch()
        if not run.resolved.data.train.lasting:  # the next epoch has other images in the same places
            run.engine.tally.unanswered.zero_()
    seen = run.engine.tally.seen

    def images(seconds: float) -> float:
        return run.world.size * (run.engine.tally.seen - seen) / seconds

    def show() -> None:
        step(run, images(time.perf_counter() - started))

    try:
        for counts in run.stepper.epoch(run.epoch, run.done):
            run.engine.distiller.count(counts)
            run.engine.tally.count(counts)
            run.done += 1
            if run.agreement.ask(stopping.asked()):
                charge_time(run, started, captured)
                stop(run)
            if (now := time.monotonic()) - shown >= SHOW_SECONDS:
                shown = now
                check_answers(run)
                check_finite(run, run.engine.finite())
                show()
            yield
    except (Exception, KeyboardInterrupt):
        if run.done:  # the last picture is of where it ended
            show()
        raise
    charge_time(run, started, captured)
    run.rate = images(run.seconds["train"] - trained)


def step(run: Run, images_per_second: float) -> None:
    """Show how far a run is within an epoch."""
    cost = run.relative_cost()
    done = run.engine.distiller.steps
    run.display(Stepped(run.name, done, images_per_second, cost.backward_2x if cost else None))


def end_epoch(run: Run) -> None:
    """Evaluate, write the epoch's line, save; the run stands before the next epoch then."""
    train = run.config.train
    check(run)
    run.epoch, run.done = run.epoch + 1, 0
    last = run.epoch == train.epochs
    predictions = evaluate_student(run) if last or run.epoch % train.eval_every == 0 else None
    record_epoch(run, predictions)
    if predictions is not None and (stuck := stuck_note(run, predictions)) is not None:
        run.note(stuck)
    if last:
        run.predictions = predictions
    if last or run.epoch % train.checkpoint_every == 0:
        resume.save(run)


def charge_time(run: Run, started: float, captured: float) -> None:
    """Count the time of an epoch's steps: training, but for what the first capture took."""
    synchronize(run.device)
    setup = run.stepper.capture_seconds - captured
    run.seconds["setup"] += setup
    run.seconds["train"] += time.perf_counter() - started - setup


def stop(run: Run) -> None:
    """Save in the middle of an epoch, and raise what ends the process."""
    check(run)
    resume.save(run)
    raise Stopped(
        f"{run.folder.path}: stopped in epoch {run.epoch + 1} after step {run.done} of "
        f"{run.stepper.steps_per_epoch}, and saved"
    )


def record_epoch(run: Run, predictions: Predictions | None) -> None:
    """Add the epoch's line to metrics.jsonl and show it."""
    steps, step = run.engine.tally.steps, run.engine.distiller.steps
    stats, run.total = run.engine.tally.joined(run.world), resume.total_ledger(run)
    agreement = None
    if predictions is not None and run.answers is not None:
        agreement = predictions.agreement(run.answers)
    line = Epoch(
        epoch=run.epoch,
        step=step,
        lr=run.stepper.rate(run.epoch - 1, steps - 1, steps),
        **stats.losses(),
        accuracy=predictions.accuracy if predictions else None,
        agreement=agreement,
        calibration_error=predictions.calibration_error if predictions else None,
        images=Images(**asdict(run.total.images)),
        cost=run.relative_cost(),
        seconds={key: round(run.seconds[key], 3) for key in ("train", "evaluate")},
        selection=stats.selection() if run.resolved.method.selects else None,
        skipped_steps=run.engine.tally.skipped(),
    )
    record = asdict(line)
    if record["skipped_steps"] is None:  # in fp16 only
        del record["skipped_steps"]
    run.remember(record)
    if run.world.leads:
        run.folder.append_metrics(record)
        run.loggers.epoch(record)
    per_epoch = (run.seconds["train"] + run.seconds["evaluate"]) / run.epoch
    epochs = run.config.train.epochs
    run.display(EpochDone(run.name, epochs, record, run.rate, (epochs - run.epoch) * per_epoch))


# What ends a run before its time


def check(run: Run) -> None:
    """Raise where an epoch has broken the weights, or the teacher has failed, before anything is saved.

    Every process has to call it.
    """
    resume.share(run)
    check_answers(run)
    shards = [local_shard(p.detach()) for p in run.resolved.student.parameters()]
    weights = torch.stack([shard.isfinite().all() for shard in shards]).all()
    finite = run.engine.finite() and run.engine.tally.counted() > 0
    check_finite(run, all(run.world.gather(bool(finite and weights))))


def check_answers(run: Run) -> None:
    """Raise where more images are faulty than may be left out; waits for the device."""
    faulty = run.engine.tally.unanswered.nonzero().flatten().tolist()
    allowed, unreadable = run.config.data.max_faulty, len(run.resolved.data.left_out)
    if faulty and len(faulty) + unreadable > allowed:
        named = ", ".join(map(str, faulty[:NAMED_IMAGES]))
        raise UserError(
            f"epoch {run.epoch + 1}: the teacher's logits are not finite for {len(faulty)} images "
            f"({named}{', …' if len(faulty) > NAMED_IMAGES else ''}); are its mean, std and precision right? Up to "
            f"--data.max_faulty ({allowed}) are left out{f', and {unreadable} cannot be read' if unreadable else ''}"
        )


def check_finite(run: Run, finite: bool) -> None:
    """Raise where a run has diverged."""
    if not finite:
        what, hint = "the loss or the weights are", ""
        if run.engine.scale is not None:
            what, hint = (
                "the loss, the gradients or the weights are",
                ", or --train.precision fp32 instead of fp16",
            )
        raise UserError(
            f"epoch {run.epoch + 1}: {what} no longer finite; lower --lr or give --train.clip_norm{hint} (nothing of "
            "this epoch was saved)"
        )
