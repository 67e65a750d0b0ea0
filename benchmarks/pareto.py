"""Accuracy against cost: plain KD, the published method, its controls, and cheaper ways, under one protocol.

The protocol and the contenders are in `pareto_protocol.py`. `search` runs on held-out training images, `confirm`
once on the test set, with other seeds. Everything goes on where it stopped; every finished run leaves its summary in
`benchmarks/results/pareto/PAIR/STAGE/`, and `report` makes the table of those that are there.

    python benchmarks/pareto.py teachers --root CIFAR100 --out runs/pareto      # an hour on two cores
    python benchmarks/pareto.py search   --root CIFAR100 --out runs/pareto      # ten minutes a run and core
    python benchmarks/pareto.py seconds  --root CIFAR100 --out runs/pareto      # alone on the machine, under an hour
    python benchmarks/pareto.py report --of confirm                             # tables, tests, docs/pareto-confirm.svg
    python benchmarks/pareto.py search --quick --root CIFAR100                  # a few steps of everything; no results
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, environment, keep_summary, mean_sd
from pareto_evidence import draw, load, points, verdict
from pareto_protocol import (
    CONTENDERS,
    PAIRS,
    QUICK,
    RECIPE,
    RIVALS,
    STAGES,
    TIMED,
    Contender,
    Scale,
    folder,
    sample,
    store,
    student,
    teacher,
)
from unixkd.compare import Job, run_jobs
from unixkd.train import run

KEPT = RESULTS / "pareto"
NAME_WIDTH = max(len(contender.name) for contender in CONTENDERS) + 1


def run_all(jobs: list[Job], workers: int) -> None:
    """Run what is not finished, some at a time, one thread each."""
    from unixkd.commands.screen import showing  # needs all of the command line, the tables below do not

    with showing(len(jobs)) as display:
        run_jobs(jobs, display, workers)


def train_teachers(pairs: list[str], root: str, out: Path, scale: Scale, workers: int) -> None:
    """Each pair's teacher."""
    run_all([Job(teacher(PAIRS[pair][0], root, scale), out / pair / "teacher") for pair in pairs], workers)


def students(
    pairs: list[str], names: list[str], stage: str, seeds: list[int], root: str, out: Path, scale: Scale
) -> Iterator[tuple[str, Contender, int, Job]]:
    """Runs of a stage, seeds outermost, so that what is there at any time can be compared."""
    for seed in seeds:
        for contender in CONTENDERS:
            for pair in pairs:
                if contender.name in names:
                    config = student(contender, pair, seed, stage, root, out, scale)
                    yield pair, contender, seed, Job(config, folder(contender, pair, seed, stage, out))


def keep(pair: str, contender: Contender, seed: int, stage: str, job: Job, out: Path) -> None:
    """A finished run's summary among the results; its store has served."""
    kept = KEPT / pair / stage / f"{job.folder.name}.json"
    if not kept.exists():  # later calls may be made elsewhere
        keep_summary(job.folder, kept)
    shutil.rmtree(store(contender, pair, seed, stage, out), ignore_errors=True)


def rows(kept: Path) -> list[dict[str, Any]]:
    """A line for each contender with summaries in a folder: accuracy, cost, paired difference to plain KD."""
    runs = load(kept)
    plain = points(runs.get("kd", {}))
    found = []
    for contender in CONTENDERS:
        if own := runs.get(contender.name):
            last = points(own)
            against = [last[seed] - plain[seed] for seed in last if seed in plain]
            costs = [summary["cost"]["relative_to_kd"] for summary in own.values()]
            found.append(
                {
                    "contender": contender.name,
                    "accuracy": mean_sd(list(last.values())),
                    "best": mean_sd([100 * summary["accuracy"]["best"] for summary in own.values()]),
                    "against_kd": mean_sd(against) if against else None,
                    "cost": {name: mean_sd([cost[name] for cost in costs])["mean"] for name in costs[0]},
                }
            )
    return found


def report(stage: str) -> dict[str, Any]:
    """The tables of a stage, printed."""
    tables = {pair: rows(KEPT / pair / stage) for pair in PAIRS}
    for pair, lines in tables.items():
        print(
            f"{pair}, {stage}\n{'':<{NAME_WIDTH}}{'accuracy %':>18}{'against kd':>16}{'cost x1 %':>11}{'x2 %':>8}"
        )
        for line in lines:
            against = line["against_kd"] or {"mean": float("nan"), "sd": None}
            print(
                f"{line['contender']:<{NAME_WIDTH}}{spread(line['accuracy']):>18}{spread(against):>16}"
                f"{100 * line['cost']['backward_1x']:>11.1f}{100 * line['cost']['backward_2x']:>8.1f}"
            )
        if (said := verdict(KEPT / pair / stage, RECIPE, RIVALS)) is not None:
            print(json.dumps({"pair": pair, **said}))
    return tables


def time_contenders(pairs: list[str], names: list[str], root: str, out: Path, rounds: int) -> None:
    """A short run of every contender, in turns and asking the teacher itself; its seconds over plain KD's.

    Epochs and views are shortened alike, and costs are compared with the shortened plain KD.
    """
    for pair in pairs:
        ratios: dict[str, list[float]] = {}
        for number in range(rounds):
            seconds = {}
            chosen = [c for c in CONTENDERS if c.name in {*names, "kd"}]
            for contender in chosen if number % 2 else reversed(chosen):
                path = out / pair / "seconds" / f"{number}-{folder(contender, pair, 0, 'search', out).name}"
                config = sample(contender, pair, root, out, path)
                seconds[contender.name] = run(config, path, mode="overwrite")["time"]["train_seconds"]
                shutil.rmtree(path.with_name(f"{path.name}.answers"), ignore_errors=True)
            for name, value in seconds.items():
                ratios.setdefault(name, []).append(value / seconds["kd"])
            print(pair, number, {name: round(values[-1], 3) for name, values in ratios.items()}, flush=True)
        result = {"relative_to_kd": {name: mean_sd(values) for name, values in ratios.items()}}
        kept = KEPT / pair / "seconds.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({**result, "environment": environment()}, indent=2) + "\n")


def spread(value: dict[str, Any]) -> str:
    """Mean and standard deviation."""
    return f"{value['mean']:.2f}" + ("" if value["sd"] is None else f" ± {value['sd']:.2f}")


def main() -> int:
    """Train, keep, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["teachers", *STAGES, "seconds", "report"])
    parser.add_argument("--of", choices=STAGES, default="confirm", help="the stage that report reports")
    parser.add_argument("--rounds", type=int, default=3, help="of the stage seconds")
    parser.add_argument("--root", default=os.environ.get("UNIXKD_CIFAR100"), help="folder with CIFAR-100")
    parser.add_argument("--out", type=Path, default=Path("runs/pareto"), help="folder of the runs")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--contenders", nargs="+", default=[contender.name for contender in CONTENDERS])
    parser.add_argument("--seeds", type=int, nargs="+", help="only these of the stage")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.stage != "report":
        if not options.root:
            parser.error("give --root or set UNIXKD_CIFAR100")
        scale, pairs = (QUICK, options.pairs[:1]) if options.quick else (Scale(), options.pairs)
        out = Path(tempfile.mkdtemp(prefix="unixkd-pareto-")) if options.quick else options.out
        if options.stage == "seconds" and not options.quick:
            scale, out = TIMED, out / "timed"
        train_teachers(pairs, options.root, out, scale, options.jobs)
        if options.stage in STAGES:
            seeds = options.seeds or list(STAGES[options.stage][1])
            wanted = (pairs, options.contenders, options.stage, seeds)
            planned = list(students(*wanted, options.root, out, scale))
            try:
                run_all([job for *_, job in planned], options.jobs)
            finally:  # what is finished stays, also where the rest was interrupted
                for pair, contender, seed, job in planned:
                    if not options.quick and (job.folder / "summary.json").exists():
                        keep(pair, contender, seed, options.stage, job, out)
        if options.stage == "seconds" and not options.quick:
            time_contenders(pairs, options.contenders, options.root, out, options.rounds)
    stage = options.stage if options.stage in STAGES else options.of
    if options.stage == "report" and any((KEPT / pair / stage).exists() for pair in PAIRS):
        draw(KEPT, list(PAIRS), stage, RESULTS.parents[1] / "docs" / f"pareto-{stage}.svg", RECIPE)
    print(
        json.dumps({"benchmark": "pareto", "stage": stage, "quick": options.quick, "tables": report(stage)})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
