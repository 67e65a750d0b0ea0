"""Methods × seeds under one protocol: resumable, several runs side by side, cost-matched controls."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from unixkd.config import NO_LOG, LogConfig, MethodConfig, RunConfig, TrainConfig
from unixkd.data.load import load_data
from unixkd.errors import UserError, refuse_links, show_logged_names
from unixkd.method.ledger import Ledger
from unixkd.method.method import Method
from unixkd.models.loading import class_names_of
from unixkd.names import announced, file_name, label_of, phase
from unixkd.planning.expected import Workload, expected_cost
from unixkd.training import stopping
from unixkd.training.build import make_distiller, open_ledger
from unixkd.training.checkpoint import newest_state
from unixkd.training.device import pick_device
from unixkd.training.display import Display, Event, Finished, Note
from unixkd.training.distributed.world import ALONE
from unixkd.training.precision import OPTIONS, candidate, remembered, with_auto
from unixkd.training.resolved import build_on, read_method, resolve
from unixkd.training.resume import check_inputs, check_state
from unixkd.training.run import run
from unixkd.training.run_folder import RunFolder
from unixkd.training.stopping import Stopped, stoppable
from unixkd.training.stored_views import may_choose, with_views
from unixkd.training.threads import known_threads


@dataclass(frozen=True)
class Job:
    """One run of a comparison, its folder, and where its figures also go."""

    config: RunConfig
    folder: Path
    log: LogConfig = NO_LOG


def decide_once(base: RunConfig, out: Path, note: Callable[[str], None], workers: int = 1) -> RunConfig:
    """The protocol with what a probe decides, decided for all runs alike: as an earlier one in `out`, else anew.

    Of several at a time each has one thread unless the protocol says otherwise.
    """
    if (earlier := min(out.glob("runs/*/run.yaml"), default=None)) is not None:
        return remembered(base, earlier.parent)
    if may_choose(base):
        base, _ = with_views(base, load_data(base.data, class_names_of(base.teacher)), note)
    device = pick_device(base.train)
    threads = known_threads(base.train.threads, device)
    base = with_auto(base, {"threads": 1 if workers > 1 else threads})
    if candidate(device) is None and base.train.threads != "auto":  # nothing to probe
        decided = {**dict.fromkeys(OPTIONS, "fp32"), "frozen_teacher": "eager"}
        return with_auto(remembered(base, None), decided)
    return resolve(base, device, None, note).config


def plan_jobs(base: RunConfig, methods: Sequence[MethodConfig], seeds: Sequence[int], out: Path) -> list[Job]:
    """Every method with every seed, seeds outermost, so that an interrupted comparison is balanced.

    A method with options of its own is labelled by them; each run's folder is `out/runs/METHOD-seedS`.

    Raises:
        UserError: a method or a seed is named twice
    """
    for what, values in (("method", [label_of(method) for method in methods]), ("seed", list(seeds))):
        if not values:
            raise UserError(f"compare needs at least one {what}")
        if len(set(values)) < len(values):
            raise UserError(f"compare: a {what} is named twice in {', '.join(map(str, values))}")
    epochs = base.train.epochs
    return [
        make_job(base, method, label_of(method), seed, epochs, out) for seed in seeds for method in methods
    ]


def make_job(base: RunConfig, method: MethodConfig, label: str, seed: int, epochs: int, out: Path) -> Job:
    """One method with one seed, for `epochs` epochs; costs are relative to plain KD for the protocol's."""
    config = replace(
        base,
        method=method,
        train=replace(base.train, seed=seed, epochs=epochs),
        label=None if label == method.name else label,
        reference_epochs=base.train.epochs,
    )
    return Job(config, out / "runs" / f"{file_name(label)}-seed{seed}")


def matched_epochs(ledger: Ledger, method: Method, train: TrainConfig, images: int, convention: str) -> int:
    """Epochs of plain KD that cost what the method's whole run costs on `images` training images, at least 1.

    Args:
        ledger: an empty ledger with both networks' forward FLOPs
        convention: how backwards are counted: backward_1x | backward_2x
    """
    sizes = Workload(images, train.batch_size).sizes
    return max(1, round(train.epochs * expected_cost(method, ledger, sizes, train.epochs)[convention]))


def matched_jobs(base: RunConfig, epochs: dict[str, int], seeds: Sequence[int], out: Path) -> list[Job]:
    """Plain KD for as many epochs as the cost of each method (by its label) buys; the schedule shrinks with it.

    Milestones and cosine are measured in shares of the run, so the learning rate is fully decayed.
    """
    kd, pairs = MethodConfig("kd"), epochs.items()
    return [make_job(base, kd, f"kd@{label}", seed, number, out) for seed in seeds for label, number in pairs]


def check_jobs(jobs: Sequence[Job], note: Callable[[str], None]) -> None:
    """Raise where a folder holds another run, or a method could not be trained: before the first run begins.

    Each method is built once as its runs will be, on the data that all share, up to its first step.
    """
    for job in jobs:
        refuse_links(job.folder.parent, job.folder)
        if (folder := RunFolder(job.folder)).holds_run():
            folder.check_same(job.config)
    configs = {job.config.label or job.config.method.name: job.config for job in jobs if not is_finished(job)}
    if not configs:
        return
    first = next(iter(configs.values()))
    device = pick_device(first.train)
    methods = {label: read_method(config, device) for label, config in configs.items()}
    data = load_data(first.data, class_names_of(first.teacher))
    states = ((job.folder, newest_state(job.folder / "checkpoints", check_state)) for job in jobs)
    begun = {folder: state for folder, state in states if state is not None}
    for label, config in configs.items():
        with phase(f"trying {label} out before the first run"):
            built = build_on(config, torch.device("cpu"), data, *methods[label])
        while begun:
            begun_folder, state = begun.popitem()
            check_inputs(begun_folder, state, built)
        distiller = make_distiller(built, built.student, open_ledger(built), note, ALONE)
        if distiller.teacher is not None and distiller.teacher.store is not None:
            distiller.teacher.store.close()


def run_jobs(jobs: Sequence[Job], display: Display, workers: int) -> list[dict[str, Any]]:
    """Run what is not finished yet, and resume what was interrupted; after a failure no new run is started.

    `workers` runs go on at a time, each in a process of its own, with one thread unless configured.
    """
    todo = [job for job in jobs if not is_finished(job)]
    if len(todo) < len(jobs):
        display(Note("compare", f"{len(jobs) - len(todo)} of {len(jobs)} runs are finished already"))
        for job in jobs:
            if job not in todo:
                display(Finished(job.folder.name))
    with stoppable():
        return run_todo(todo, display, workers)


def run_todo(todo: Sequence[Job], display: Display, workers: int) -> list[dict[str, Any]]:
    """Run these, as `run_jobs` does."""
    if workers <= 1 or not todo:
        return [run_job(job, display) for job in todo]
    context = multiprocessing.get_context("spawn")
    events: SimpleQueue[Event] = context.SimpleQueue()  # put returns once it is written: no event is lost
    with ProcessPoolExecutor(min(workers, len(todo)), context, start_worker, (events,)) as pool:
        at_a_time = f"{len(todo)} runs go on, {min(workers, len(todo))} at a time, a process each"
        try:
            with phase(at_a_time, counted=True):
                return run_side_by_side(pool, todo, events, display, workers)
        except BrokenProcessPool:
            if stopping.asked():  # a worker that was not listening yet
                raise Stopped("stopped before a run had begun") from None
            raise UserError(
                "a worker process died (out of memory?): the same command goes on, fewer --jobs may help"
            ) from None


def run_side_by_side(
    pool: Executor, jobs: Sequence[Job], events: SimpleQueue[Event], display: Display, workers: int
) -> list[dict[str, Any]]:
    """Submit one job for each free worker and show events; after a failure none, then raise it."""
    waiting = iter(jobs)
    futures: list[Future[dict[str, Any]]] = []
    pending: set[Future[dict[str, Any]]] = set()
    failures: list[BaseException] = []
    stopping_all = False
    while True:
        if stopping.asked() and not stopping_all:
            stopping_all = True
            for process in multiprocessing.active_children():
                process.terminate()  # asks it to stop
        free = 0 if failures or stopping_all else workers - len(pending)
        for job in itertools.islice(waiting, free):
            futures.append(pool.submit(work, job))
            pending.add(futures[-1])
        if not pending:
            break
        done, pending = wait(pending, timeout=0.2)
        while not events.empty():  # also after a failure: a full pipe would block the other workers
            display(events.get())
        failures += [error for future in done if (error := future.exception()) is not None]
    if failures:
        raise failures[0]
    if stopping_all:
        raise Stopped("stopped between two runs")
    return [future.result() for future in futures]


def is_finished(job: Job) -> bool:
    """Whether a run is finished, under the same configuration."""
    folder = RunFolder(job.folder)
    if not folder.is_finished():
        return False
    folder.check_same(job.config)
    return True


def default_workers(train: TrainConfig) -> int:
    """One-thread runs side by side beat one run with many threads on a CPU; a GPU takes one at a time here."""
    if train.device in ("cuda", "mps") or (train.device == "auto" and torch.cuda.is_available()):
        return 1
    threads = train.threads if isinstance(train.threads, int) else 1
    return max(1, (os.cpu_count() or 1) // threads)


_events: SimpleQueue[Event] | None = None


def start_worker(events: SimpleQueue[Event]) -> None:
    """In each worker process: remember where events go; one thread unless a run says otherwise."""
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too; the main process tells them
    stopping.listen([signal.SIGTERM], say=False)
    show_logged_names()
    torch.set_num_threads(1)
    threading.Thread(target=end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


GRACE = 5.0
"""Seconds that a run has to save in, once the comparison's main process is gone."""
_at_work = threading.Lock()


def end_with(main: BaseProcess | None) -> None:
    """Wait in a thread for the main process; once it is gone ask the run to save, and end with what it started.

    A worker that went on would train for nobody and keep its run folder locked.
    """
    if main is None:
        return
    main.join()
    stopping.ask()
    _at_work.acquire(timeout=GRACE)
    for process in multiprocessing.active_children():  # whatever has the lock's file open too
        process.kill()
    os._exit(stopping.EXIT_CODE)


def work(job: Job) -> dict[str, Any]:
    """`run_job` in a worker process."""
    with _at_work, announced(lambda text: tell(Note(job.folder.name, f"{text} …", shared=True))):
        return run_job(job)


def tell(event: Event) -> None:
    """Hand an event to the main process."""
    assert _events is not None
    _events.put(event)


def run_job(job: Job, display: Display = tell) -> dict[str, Any]:
    """One run, by default inside a worker process; its cost does not depend on what others have stored."""
    return run(job.config, job.folder, mode="resume", display=display, log=job.log, as_if_alone=True)
