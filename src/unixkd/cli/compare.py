"""`compare`, `demo`, `report`: commands about many runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from unixkd.cli.reproduce import commands_of
from unixkd.cli.schedule import suited
from unixkd.cli.screen import console, say, showing
from unixkd.cli.sizes import at_teachers_size
from unixkd.cli.train import check_named
from unixkd.config import NO_LOG, DataConfig, LogConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.data.load import load_data
from unixkd.method.from_config import build_method
from unixkd.method.ledger import Ledger
from unixkd.models.loading import class_names_of
from unixkd.names import label_of, parse_variants
from unixkd.report import report
from unixkd.report.page import check_page
from unixkd.training.compare import (
    Job,
    check_jobs,
    decide_once,
    default_workers,
    is_finished,
    matched_epochs,
    matched_jobs,
    plan_jobs,
    run_jobs,
)
from unixkd.training.display import Display, Finished
from unixkd.training.loggers import check_installed
from unixkd.training.resolved import build_network, build_student

DEMO_TEACHER, DEMO_STUDENT = "wrn_16_2", "resnet8"
DEMO_METHODS = ("kd", "unix", "random", "hard")
DEMO_SEEDS = (0, 1, 2)
DEMO_TRAIN = TrainConfig(epochs=6)


def compare(options: Namespace) -> None:
    """`unixkd compare`: methods × seeds, then the report."""
    check_named(teacher=options.teacher, student=options.student)
    keys = ("student", "teacher", "loss", "data", "answers", "train")
    base = RunConfig(**{key: options[key] for key in keys})
    methods = list(parse_variants(options.methods).values())
    out, log = Path(options.out), options.log
    check_installed(log)
    # Of plain KD at another method's cost, whose name has an @, the epochs are its own.
    earlier = min((path for path in out.glob("runs/*/run.yaml") if "@" not in path.parent.name), default=None)
    data, training = suited(options, options.student, earlier)
    base = replace(base, data=data, train=training)
    base = replace(base, data=at_teachers_size(base.data, options.teacher, earlier))
    run_comparison(base, methods, options.seeds, out, options.jobs, match=options.match_cost, log=log)


def run_comparison(
    base: RunConfig,
    methods: list[MethodConfig],
    seeds: list[int],
    out: Path,
    jobs: int | None,
    *,
    match: bool,
    log: LogConfig = NO_LOG,
    teacher: Job | None = None,
) -> None:
    """Run what is missing of a comparison, before it the training of its `teacher`, and report on all of it."""
    for method in methods:
        build_method(method)  # a value out of range must not wait for the data
    check_page(out / "report.html")  # before hours of runs, not after
    workers = jobs or default_workers(base.train)
    with ExitStack() as screen:
        display: Display | None = None
        if teacher is not None:  # on one screen with the runs that wait for it
            display = screen.enter_context(
                showing_jobs([teacher, *plan_jobs(base, methods, seeds, out)], workers)
            )
            if is_finished(teacher):
                display(Finished(teacher.folder.name))
            else:
                run_jobs([teacher], display, 1)
        base = decide_once(base, out, say, workers)
        planned = plan_jobs(base, methods, seeds, out)
        if match:
            planned += matched_jobs(base, cost_matches(base, methods), seeds, out)
        check_jobs(planned, say)
        display = display or screen.enter_context(showing_jobs(planned, workers))
        run_jobs([replace(job, log=log) for job in planned], display, workers)
    report([out], out / "report.html", console, commands_of)


def showing_jobs(jobs: list[Job], workers: int) -> AbstractContextManager[Display]:
    """What shows these runs, so many at a time."""
    return showing({job.folder.name: job.config.train.epochs for job in jobs}, workers)


def cost_matches(base: RunConfig, methods: list[MethodConfig]) -> dict[str, int]:
    """For each method cheaper or dearer than plain KD, by its label, the epochs of KD that its cost buys."""
    assert base.teacher is not None
    data = load_data(base.data, class_names_of(base.teacher))
    teacher = build_network(base.teacher, data, "teacher")
    student = build_student(base, data, teacher)
    ledger = Ledger.of(student, teacher, data.image_shape)
    epochs = {}
    for config in methods:
        method, label = build_method(config), label_of(config)
        number = matched_epochs(ledger, method, base.train, len(data.train), "backward_2x")
        if number != base.train.epochs and label != "student-alone":
            epochs[label] = number
    return epochs


def show_report(options: Namespace) -> None:
    """`unixkd report`: table and page."""
    folders = [Path(folder) for folder in options.folders]
    html = Path(options.html) if options.html else folders[0] / "report.html"
    report(folders, html, console, commands_of)


def demo(options: Namespace) -> None:
    """`unixkd demo`: a teacher on handwritten digits, four ways to distil it, three seeds, the report."""
    data, out = DataConfig("digits"), Path(options.out)
    alone = RunConfig(
        ModelConfig(DEMO_TEACHER), None, MethodConfig("student-alone"), data=data, train=DEMO_TRAIN
    )
    teacher = Job(alone, out / "teacher")
    base = RunConfig(ModelConfig(DEMO_STUDENT), ModelConfig(str(teacher.folder)), data=data, train=DEMO_TRAIN)
    methods = [MethodConfig(name) for name in DEMO_METHODS]
    run_comparison(base, methods, list(DEMO_SEEDS), out, options.jobs, match=False, teacher=teacher)
