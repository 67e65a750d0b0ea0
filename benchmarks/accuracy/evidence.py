"""Which way to distil is cheapest? A queue of runs for every arena, and what their results say.

The arenas and seeds are in `evidence_arenas.py`, the contenders in `evidence_contenders.py`, their order in
`evidence_queue.py`. Every finished run leaves one file in `benchmarks/results/pareto/ARENA/STAGE/`; what has no file
is missing, on any machine.

    python benchmarks/accuracy/evidence.py run --hours 2.5 --jobs 1 --root CIFAR100 --teachers TEACHERS
        --out runs/evidence
        --photos PHOTOS           # class folders in train and val; arenas whose images are not given are left out
    python benchmarks/accuracy/evidence.py status                      # what is done, what is missing, the hours left
    python benchmarks/accuracy/evidence.py report --of search          # tables; of confirm: tests and figures too
    # alone on the machine
    python benchmarks/accuracy/evidence.py seconds --arenas ARENA --root CIFAR100 --out runs/evidence
    python benchmarks/accuracy/evidence.py run --quick --root CIFAR100 # a few steps of some contenders; nothing is kept

`--teachers` is a folder of trained teachers' run folders (`resnet32x4/`, …); those that are not there are
trained first, in `--out`, which takes an hour or two each. To go on while the checkout changes, run it from a clone and
give `--kept` the folder of results in the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unixkd.errors import UserError
from unixkd.training.display import EpochDone, Event, Note
from unixkd.training.run import run
from unixkd.training.stopping import EXIT_CODE, Stopped

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import RESULTS, environment, mean_sd
from evidence_arenas import (
    ARENAS,
    FIGURES,
    STAGES,
    STORY,
    Arena,
    Place,
    quick,
    sample_run,
    student_run,
    teacher_run,
)
from evidence_queue import MARGIN, Estimates, Item, claim, commit_of, keep, missing, wanted
from evidence_report import draw, draw_story, report
from lending import lending

KEPT = RESULTS / "pareto"
QUICK = ("kd", "kd, 16 mixes", "random-half")


def show(event: Event) -> None:
    """Print what a run says, and every tenth of its epochs."""
    if isinstance(event, Note):
        print(f"  {event.text}", flush=True)
    if isinstance(event, EpochDone):
        epoch = event.record["epoch"]
        if epoch % max(1, event.epochs // 10) == 0:
            print(f"  epoch {epoch} of {event.epochs}, {event.images_per_second:,.0f} images/s", flush=True)


def say(text: str) -> None:
    """A line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def train_teacher(arena: Arena, place: Place) -> None:
    """Train the arena's teacher where there is none."""
    folder = place.teacher(arena)
    if not (folder / "model.safetensors").exists():
        say(f"training the teacher {arena.teacher.network}, as none was brought along: {folder}")
        run(teacher_run(arena, place), folder, mode="resume", display=show)


def take(item: Item, place: Place, kept: Path, estimates: Estimates, commit: str) -> None:
    """One run of the queue, from where it was left to its result."""
    train_teacher(item.arena, place)
    typical, started = estimates.typical(item), time.perf_counter()
    config = student_run(item.arena, item.stage, item.contender, item.seed, place)
    folder = place.run(item.arena, item.stage, item.contender, item.seed)
    fresh = not (folder / "checkpoints").exists()
    with lending(place.lender(item.arena, item.contender)):
        summary = run(config, folder, mode="resume", display=show)
    keep(item, place, kept, commit)
    if fresh:
        estimates.learn(typical, time.perf_counter() - started)
    cost = summary["cost"]["relative_to_kd"]["backward_2x"]
    say(f"{item.name}: {summary['accuracy']['last']:.2%} at {cost:.1%} of plain KD's cost")


def work(arenas: list[Arena], place: Place, kept: Path, deadline: float) -> int:
    """Take the most valuable run that ends in time until there is none; how many were finished."""
    estimates = Estimates(kept, place.out / "speed.json")
    commit = commit_of(Path(__file__).parent)
    for arena in arenas:
        if not place.has(arena):
            say(f"{arena.name} is left out: its images are not here")
    arenas = [arena for arena in arenas if place.has(arena)]
    place.out.mkdir(parents=True, exist_ok=True)
    done, failed = 0, set[str]()
    while True:
        for item in missing(arenas, kept):
            expected = estimates.seconds(item)
            if item.name in failed or expected * MARGIN > deadline - time.time():
                continue
            with claim(item, place) as mine:
                if not mine or item.result(kept).exists():
                    continue
                say(f"{item.name}: about {expected / 60:.0f} minutes")
                try:
                    take(item, place, kept, estimates, commit)
                    done += 1
                except UserError as error:  # it has diverged, for one; the others go on
                    say(f"{item.name} failed: {error}")
                    failed.add(item.name)
                break
        else:
            return done


def work_in_processes(jobs: int) -> int:
    """The same command in several processes, which share the queue; a signal is handed on to all."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    own = [subprocess.Popen(command) for _ in range(jobs)]

    def hand_on(number: int, frame: object) -> None:
        for process in own:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    return max(process.wait() for process in own)


def status(arenas: list[Arena], kept: Path, out: Path) -> dict[str, Any]:
    """What is done and missing in each arena and stage, and the hours of one core that the missing runs take."""
    estimates, figures = Estimates(kept, out / "speed.json"), {}
    for arena in arenas:
        items = list(wanted(arena, kept))
        left = [item for item in items if not item.result(kept).exists()]
        hours = sum(estimates.seconds(item) for item in left) / 3600
        for stage in STAGES:
            of = [item for item in items if item.stage == stage]
            lacking = [item for item in left if item.stage == stage]
            if not of and stage == "confirm":
                print(f"{arena.name}, confirm: waits until the search is complete and the recipe is frozen")
                continue
            print(f"{arena.name}, {stage}: {len(of) - len(lacking)} of {len(of)} runs done")
            for item in lacking:
                print(
                    f"    missing: {item.contender.name}, seed {item.seed}, {estimates.seconds(item) / 60:.0f} min"
                )
        figures[arena.name] = {"done": len(items) - len(left), "missing": len(left), "hours": round(hours, 1)}
        print(f"{arena.name}: {hours:.1f} hours of one core left, as far as is known yet\n")
    return figures


def time_contenders(arena: Arena, names: list[str] | None, place: Place, kept: Path, rounds: int) -> None:
    """A short run of every contender, in turns and asking the teacher itself; its seconds over plain KD's.

    Epochs, views and mixes are shortened alike, and costs are compared with the shortened plain KD.
    """
    train_teacher(arena, place)
    chosen = [each for each in arena.contenders if names is None or each.name in {*names, "kd"}]
    ratios: dict[str, list[float]] = {}
    for number in range(rounds):
        seconds = {}
        for contender in chosen if number % 2 else reversed(chosen):
            path = place.out / arena.name / "seconds" / f"{number}-{contender.file_name}"
            config = sample_run(arena, contender, place, path)
            seconds[contender.name] = run(config, path, mode="overwrite")["time"]["train_seconds"]
            shutil.rmtree(path.with_name(f"{path.name}.answers"), ignore_errors=True)
        for name, value in seconds.items():
            ratios.setdefault(name, []).append(value / seconds["kd"])
        say(f"{arena.name}, round {number}: { ({name: round(v[-1], 3) for name, v in ratios.items()}) }")
    result = {"relative_to_kd": {name: mean_sd(values) for name, values in ratios.items()}}
    target = kept / arena.name / "seconds.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**result, "environment": environment()}, indent=2) + "\n")


def draw_figures(kept: Path, docs: Path) -> None:
    """The figures of the documentation."""
    for name, rows in FIGURES.items():
        draw(kept, [ARENAS[row] for row in rows], docs / f"{name}.svg")
    arena, names = STORY
    draw_story(kept, ARENAS[arena], names, docs / "cost-accuracy.svg")


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "status", "report", "seconds"])
    parser.add_argument(
        "--hours", type=float, default=2.5, help="of run: nothing is started that would end later"
    )
    parser.add_argument("--jobs", type=int, default=1, help="of run: processes, one core each")
    parser.add_argument("--arenas", nargs="+", choices=ARENAS, help="default: all that are not closed")
    parser.add_argument("--of", choices=STAGES, default="confirm", help="the stage that report reports")
    parser.add_argument("--rounds", type=int, default=3, help="of seconds")
    parser.add_argument("--contenders", nargs="+", help="of seconds (default: all)")
    parser.add_argument("--root", default=os.environ.get("UNIXKD_CIFAR100"), help="folder with CIFAR-100")
    parser.add_argument("--photos", default=os.environ.get("UNIXKD_PHOTOS"), help="folder of photographs")
    parser.add_argument(
        "--teachers", type=Path, help="folder of trained teachers (default: they are trained)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="a few steps of some; nothing is kept")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.action in ("run", "seconds") and not (options.root or options.photos):
        parser.error("give --root (or set UNIXKD_CIFAR100) or --photos")
    return options


def place_of(options: argparse.Namespace, out: Path) -> Place:
    """Where the command line says that things are."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).resolve())

    return Place(whole(options.root), out.resolve(), options.teachers, whole(options.photos))


def main() -> int:
    """Run, list, report."""
    options = options_of()
    open_ones = [arena for arena in ARENAS.values() if not arena.closed]
    arenas = [ARENAS[name] for name in options.arenas] if options.arenas else open_ones
    figures: dict[str, Any] = {}
    if options.action == "run":
        deadline = time.time() + 3600 * options.hours
        if options.jobs > 1 and not options.worker:
            return work_in_processes(options.jobs)
        torch.set_num_threads(1)
        if options.quick:
            figures["finished"] = try_out(arenas[0], options)
        else:
            place = place_of(options, options.out)
            try:
                figures["finished"] = work(arenas, place, options.kept, deadline)
            except Stopped as stopped:
                say(f"{stopped}; the same command goes on with it")
                return EXIT_CODE
    elif options.action == "seconds":
        torch.set_num_threads(1)
        for arena in arenas:
            place = place_of(options, options.out / "timed")
            time_contenders(arena, options.contenders, place, options.kept, options.rounds)
    elif options.action == "status":
        figures = status(arenas, options.kept, options.out)
    else:
        reported = arenas if options.arenas else list(ARENAS.values())
        figures["tables"] = report(reported, options.of, options.kept)
        if options.of == "confirm" and not options.arenas:
            draw_figures(options.kept, RESULTS.parents[1] / "docs")
    print(json.dumps({"benchmark": "evidence", "action": options.action, "quick": options.quick, **figures}))
    return 0


def try_out(arena: Arena, options: argparse.Namespace) -> int:
    """A few steps of some contenders, in a folder that goes."""
    small = replace(quick(arena), contenders=tuple(each for each in arena.contenders if each.name in QUICK))
    with tempfile.TemporaryDirectory(prefix="unixkd-evidence-") as scratch:
        place = place_of(options, Path(scratch))
        return work([small], place, Path(scratch) / "kept", time.time() + 3600)


if __name__ == "__main__":
    sys.exit(main())
