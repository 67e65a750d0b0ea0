"""The runs of `full_scale.py`, as far as a piece of time goes: teachers, their answers, students."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

import full_protocol as protocol
from common import keep_summary
from evidence_contenders import Contender
from kept import check_teacher, publish_teacher, trim
from pieces import Pace, Task, run_all
from unixkd.config import RunConfig, TrainConfig
from unixkd.method.network import Network
from unixkd.teacher.teacher import Teacher
from unixkd.training.answers import fetch_answers, open_store
from unixkd.training.compare import Job, is_finished
from unixkd.training.device import pick_device
from unixkd.training.display import Display, Event, Note, Started
from unixkd.training.precision import DTYPES
from unixkd.training.resolved import build_run
from unixkd.training.run import start
from unixkd.training.run_folder import RunFolder
from unixkd.training.state import Run
from worth import by_worth

RESULTS, TEACHERS, ANSWERS = Path("results"), Path("teachers"), Path("answers")
"""In the folder of all runs: summaries of finished runs, teachers, stored answers."""


@dataclass
class Comparison:
    """What is compared. It works in the current folder, as all its paths are relative.

    Args:
        pairs: by name
        contenders: who competes
        seeds: of the students
        scale: how much is trained
        command: named on a teacher's card
        display: gets the events of all runs
        at_once: runs that take turns, each on a stream of its own
    """

    pairs: list[str]
    contenders: list[Contender]
    seeds: list[int]
    scale: protocol.Scale
    command: str
    display: Display
    at_once: int = 1
    eager: set[str] = field(default_factory=set)
    """Runs whose steps could not be captured."""
    filled: dict[str, int] = field(default_factory=dict)
    """Answers in the stores that are full."""

    def __post_init__(self) -> None:
        self.device = pick_device(TrainConfig())

    def students(self) -> Iterator[tuple[str, Job]]:
        """Every run."""
        for seed in self.seeds:
            for contender in self.contenders:
                for pair in self.pairs:
                    config = protocol.student(contender, protocol.PAIRS[pair], seed, self.scale)
                    yield pair, Job(config, Path(pair) / "runs" / f"{contender.file_name}-seed{seed}")

    def teachers(self) -> dict[str, RunConfig]:
        """Every teacher once."""
        pairs = [protocol.PAIRS[name] for name in self.pairs]
        return {pair.teacher: protocol.teacher(pair, self.scale) for pair in pairs}

    def missing_teachers(self) -> list[str]:
        """Those that cannot teach yet."""
        return [name for name in self.teachers() if not protocol.teacher_folder(name).exists()]

    def missing_students(self) -> list[tuple[str, Job]]:
        """Runs without a result."""
        return [(pair, job) for pair, job in self.students() if not result(pair, job).exists()]

    def work(self, pace: Pace) -> None:
        """What is missing, as far as the time goes."""
        self.collect()
        try:
            for name in self.teachers().keys() - set(self.missing_teachers()):
                check_teacher(protocol.teacher_folder(name))
            run_all(self.tasks(), pace, self.at_once)
        finally:  # what is finished stays, also where another run failed
            self.collect()
            self.tidy()

    def tasks(self) -> list[Task]:
        """The students that are missing, by their worth, and each teacher before the first one that it teaches."""
        missing, found = self.missing_teachers(), list[Task]()
        untrained = {name: config for name, config in self.teachers().items() if name in missing}
        for pair, job in by_worth(self.missing_students(), self.seeds, untrained):
            name = protocol.PAIRS[pair].teacher
            if (config := untrained.pop(name, None)) is not None:
                begin = partial(self.begin, Job(config, protocol.teacher_run(name)))
                found.append(Task(begin, ended=self.collect))
            ready = protocol.teacher_folder(name).exists
            found.append(Task(partial(self.begin, job), ready, self.collect))
        return found

    def begin(self, job: Job) -> Run:
        """A run, new or where it stopped; a new one with a store is charged for all of the store."""
        answers = 0 if job.config.answers.path is None else self.fill(job.config, job.config.answers.path)
        trainer = start(job.config, RunFolder(job.folder), "resume", self.show)
        trainer.name = str(job.folder)  # several pairs have a run of this method and seed
        if trainer.epoch == 0:
            trainer.ledger.charge_fill(answers)
        epochs = trainer.config.train.epochs
        self.show(Started(trainer.name, epochs, trainer.stepper.steps_per_epoch, trainer.epoch))
        return trainer

    def fill(self, config: RunConfig, path: str) -> int:
        """Have the teacher answer every view of a run's images; how many answers its store holds."""
        if path not in self.filled:
            built = build_run(config, self.device)
            store = open_store(built, path, lambda text: self.show(Note("store", text, shared=True)))
            if store is None or built.teacher is None:
                return 0
            held, split = store.contents, built.data.train
            network = Network(built.teacher.eval(), dtype=DTYPES[config.train.teacher_precision])
            teacher = Teacher(network, store)
            with store:
                for epoch in range(held.views):  # so many epochs show each view once
                    fetch_answers(teacher, split, epoch, torch.arange(held.images))
            self.filled[path] = held.images * held.views
        return self.filled[path]

    def collect(self) -> None:
        """Make teachers of the finished runs that trained one, and results of the students'."""
        for name, config in self.teachers().items():
            job, target = Job(config, protocol.teacher_run(name)), protocol.teacher_folder(name)
            if not target.exists() and is_finished(job):
                publish_teacher(job.folder, target, self.command)
        for pair, job in self.missing_students():
            if is_finished(job):
                keep_summary(job.folder, result(pair, job))

    def tidy(self) -> None:
        """Make the folder small enough to travel: stores are filled again in the next piece."""
        shutil.rmtree(ANSWERS, ignore_errors=True)
        self.filled.clear()
        for run in (*Path().glob("*/runs/*/"), *TEACHERS.glob("*-run/")):
            trim(run)

    def show(self, event: Event) -> None:
        """Hand on an event; runs that are not captured are remembered."""
        if isinstance(event, Note) and "not as a CUDA graph" in event.text:
            self.eager.add(event.run)
        self.display(event)

    def stages(self) -> dict[str, int]:
        """Epochs that runs which were begun and are not finished have saved, by folder."""
        found = {}
        for path in sorted((*Path().glob("*/runs/*/checkpoints/"), *TEACHERS.glob("*-run/checkpoints/"))):
            epochs = [int(saved.name.partition("-")[2]) for saved in path.glob("epoch-*")]
            found[str(path.parent)] = max(epochs, default=0)
        return found


def result(pair: str, job: Job) -> Path:
    """Where a finished run's summary lies."""
    return RESULTS / pair / f"{job.folder.name}.json"
