"""Accuracy against cost at full scale: the paper's pairs for 240 epochs, with every contender of the search.

Protocol and contenders are in `full_protocol.py`, the order of the runs is that of `worth.py`; `--at-once` lets several
take turns on streams of their own. After `--minutes` everything stops at a checkpoint; the same command goes on, also
elsewhere if the folder `--out` is brought along. The package need not be installed. The paper's table is
`--pairs all --contenders kd unix unix-random`.

    PYTHONPATH=src python benchmarks/gpu/full_scale.py --root CIFAR100 --out runs/full-scale --minutes 8
    PYTHONPATH=src python benchmarks/gpu/full_scale.py --out runs/full-scale --minutes 0 --keep    # no GPU, no data
    PYTHONPATH=src python benchmarks/gpu/full_scale.py --quick                       # on a CPU: does it run?

Exit codes: 0 everything is finished; 75 something is left; 1 a run failed, or the target is missed.
Target: UNIX within 1 point of its published accuracy (best epoch) for every pair that is finished.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from unixkd.errors import UserError
from unixkd.training.display import LineDisplay
from unixkd.training.forecast import Forecast

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))
sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

import comparison
import full_protocol as protocol
import kept
from comparison import Comparison
from evidence_queue import load
from evidence_report import mean_and_sd, rows
from pieces import Pace

STOPPED = 75
"""As in `unixkd.cli.main`, which wants packages that a borrowed machine may lack."""
TARGET = 1.0
QUICK_STEPS = 10
"""Steps of all runs together between two stops of `--quick`."""


def published(pair: str, contender: str) -> float | None:
    """The paper's accuracy of the same method on the same pair, best epoch."""
    figures = protocol.PAIRS[pair]
    return {"kd": figures.kd, "unix": figures.unix}.get(contender)


def print_table(pair: str, lines: list[dict[str, Any]]) -> None:
    """Last epochs are the result; best epochs stand beside the published ones."""
    figures = protocol.PAIRS[pair]
    print(f"\n{pair}; published: UNIX at {figures.computation} % (x1)")
    heads = ("last epoch %", "against kd", "best epoch %", "published", "cost x1 %", "x2 %", "runs")
    print(f"{'':<26}" + "".join(f"{head:>15}" for head in heads))
    for line in lines:
        printed = published(pair, line["contender"])
        cells = (
            mean_and_sd(line["accuracy"]),
            "" if line["against_kd"] is None else mean_and_sd(line["against_kd"]),
            mean_and_sd(line["best"]),
            "" if printed is None else f"{printed:.2f}",
            f"{100 * line['cost']['backward_1x']:.1f}",
            f"{100 * line['cost']['backward_2x']:.1f}",
            str(line["accuracy"]["n"]),
        )
        print(f"{line['contender']:<26}" + "".join(f"{cell:>15}" for cell in cells))


def report(compared: Comparison, *, quick: bool) -> dict[str, Any]:
    """What is finished, what is left, and the tables, which are printed."""
    names = [contender.name for contender in compared.contenders]
    tables = {pair: rows(load(comparison.RESULTS / pair), names) for pair in compared.pairs}
    for pair, lines in tables.items():
        if lines:
            print_table(pair, lines)
    left = [f"teacher {name}" for name in compared.missing_teachers()]
    left += [f"{pair}, {job.folder.name}" for pair, job in compared.missing_students()]
    return {
        "benchmark": "full_scale",
        "quick": quick,
        "teachers": {name: name not in compared.missing_teachers() for name in compared.teachers()},
        "finished": {
            pair: {line["contender"]: line["accuracy"]["n"] for line in t} for pair, t in tables.items()
        },
        "under_way": compared.stages(),
        "left": len(left),
        "next": left[:5],
        "not_captured": sorted(compared.eager),
        "tables": tables,
        "published": {pair: {name: published(pair, name) for name in ("kd", "unix")} for pair in tables},
        "short": short(tables),
    }


def short(tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Pairs on which UNIX stays further below its published accuracy than the target allows."""
    found = []
    for pair, lines in tables.items():
        best = [line["best"]["mean"] for line in lines if line["contender"] == "unix"]
        if best and best[0] < protocol.PAIRS[pair].unix - TARGET:
            found.append(pair)
    return found


def work(compared: Comparison, options: argparse.Namespace) -> list[str]:
    """A piece of the given minutes; with `--quick` short ones until all is done. Says what failed."""
    for piece in itertools.count(1):
        pace = Pace(60 * options.minutes)
        if options.quick:
            pace = Pace(QUICK_STEPS, itertools.count().__next__)  # a clock that ticks with every step
        pace.listen()
        compared.work(pace)
        left = len(compared.missing_students())
        print(f"piece {piece}: {left} students left", flush=True)
        if not options.quick or pace.stopped or pace.failures or not left:
            return pace.failures
    raise AssertionError


def parse() -> argparse.Namespace:
    """The options."""
    known = [contender.name for contender in protocol.contenders()]
    usual = [contender.name for contender in protocol.contenders() if contender.epochs <= 1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=os.environ.get("UNIXKD_CIFAR100"), help="folder with CIFAR-100")
    parser.add_argument("--out", type=Path, help="folder of all runs (default: runs/full-scale)")
    pairs = [*protocol.PAIRS, "all"]
    parser.add_argument("--pairs", nargs="+", choices=pairs, default=list(protocol.FIRST_PAIRS))
    parser.add_argument("--contenders", nargs="+", choices=known, metavar="NAME", default=usual)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(protocol.SEEDS))
    parser.add_argument("--minutes", type=float, default=8, help="0: train nothing, report what is there")
    parser.add_argument("--at-once", type=int, default=1, help="runs that take turns on the device")
    parser.add_argument("--keep", action="store_true", help="copy results and small teachers to benchmarks/")
    parser.add_argument("--quick", action="store_true", help="a few steps of each on digits; nothing is kept")
    options = parser.parse_args()
    if not options.root and options.minutes and not options.quick:
        parser.error("give --root or set UNIXKD_CIFAR100")
    stored = [c.name for c in protocol.contenders() if c.stored and c.name in options.contenders]
    if options.at_once > 1 and stored:
        parser.error(
            f"--at-once has not been tried with contenders that share a store, as '{stored[0]}' does"
        )
    if "all" in options.pairs:
        options.pairs = list(protocol.PAIRS)
    if options.quick:
        options.pairs, options.seeds = options.pairs[:1], options.seeds[:1]
    return options


def enter(options: argparse.Namespace) -> contextlib.chdir[str]:
    """Make the folder of all runs, with a link to the images, and go there."""
    out = options.out or Path("runs/full-scale")
    if options.quick and not options.out:
        out = Path(tempfile.mkdtemp(prefix="unixkd-full-scale-"))
    out.mkdir(parents=True, exist_ok=True)
    if options.root:
        link = out / protocol.DATA
        if link.is_symlink():
            link.unlink()
        link.symlink_to(Path(options.root).expanduser().resolve())
    return contextlib.chdir(str(out))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train what fits into the time, keep what is finished; the report."""
    scale = protocol.QUICK if options.quick else protocol.FULL
    command = f"python benchmarks/gpu/full_scale.py --pairs {' '.join(options.pairs)}"
    chosen = [c for c in protocol.contenders(scale.views) if c.name in options.contenders]
    display = LineDisplay(Console(), Forecast({}))
    compared = Comparison(options.pairs, chosen, options.seeds, scale, command, display, options.at_once)
    if not options.quick:
        kept.fetch(comparison.RESULTS, comparison.TEACHERS)
    try:
        failures = work(compared, options) if options.minutes else []
    finally:
        compared.collect()
        if options.keep and not options.quick:
            for name in kept.keep(comparison.RESULTS, comparison.TEACHERS):
                print(f"teacher {name} is too large to be kept")
    return {**report(compared, quick=options.quick), "failures": failures}


def main() -> int:
    """Compare; exit codes as above."""
    options = parse()
    try:
        with enter(options):
            figures = compare(options)
    except UserError as error:
        sys.stderr.write(f"full_scale: error: {error}\n")
        return error.exit_code
    print(json.dumps(figures))
    if figures["failures"]:
        return 1
    if figures["left"]:
        return STOPPED
    return 1 if figures["short"] and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
