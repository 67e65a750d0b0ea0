"""The queue of evidence: which run is worth most now, whether it would end in time, and where its result is kept.

A run's result is one file; what is not there is missing. So any machine goes on from the files alone, and several
processes share the work: each run is claimed by a lock in the folder of the runs.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from common import environment
from evidence_arenas import SEARCH_SEEDS, STAGES, Arena, Place
from evidence_contenders import VIEWS, Contender

NEAR = 1.5
"""Points below the front up to which a contender is searched with a second seed."""
MARGIN = 1.15
"""A run is started if its expected seconds times this are left."""
Results = dict[str, dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class Item:
    """One run of the queue."""

    arena: Arena
    stage: str
    contender: Contender
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arena.name}, {self.stage}: {self.contender.name}, seed {self.seed}"

    def result(self, kept: Path) -> Path:
        """Where its result is kept."""
        return kept / self.arena.name / self.stage / f"{self.contender.file_name}-seed{self.seed}.json"


def load(folder: Path) -> Results:
    """The results of a stage by contender and seed."""
    found: Results = {}
    for path in sorted(folder.glob("*-seed*.json")):
        summary = json.loads(path.read_text())
        found.setdefault(summary["method"], {})[summary["seed"]] = summary
    return found


def points(runs: dict[int, dict[str, Any]]) -> dict[int, float]:
    """Accuracy after the last epoch in % by seed."""
    return {seed: 100 * summary["accuracy"]["last"] for seed, summary in runs.items()}


def near_front(results: Results, seed: int = SEARCH_SEEDS[0], reach: float = NEAR) -> set[str]:
    """Contenders within some points of the best that costs no more than they do, by one seed.

    >>> def run(accuracy, cost):
    ...     return {0: {"accuracy": {"last": accuracy}, "cost": {"relative_to_kd": {"backward_2x": cost}}}}
    >>> sorted(near_front({"kd": run(0.50, 1.0), "half": run(0.47, 0.5), "bad": run(0.45, 0.6), "odd": run(0.46, 0.6)}))
    ['half', 'kd', 'odd']
    """
    at = {
        name: (runs[seed]["cost"]["relative_to_kd"]["backward_2x"], 100 * runs[seed]["accuracy"]["last"])
        for name, runs in results.items()
        if seed in runs
    }
    return {
        name
        for name, (cost, accuracy) in at.items()
        if accuracy >= max(other for price, other in at.values() if price <= cost) - reach
    }


def wanted(arena: Arena, kept: Path) -> Iterator[Item]:
    """All runs of an arena in the order of their worth, as far as it is known yet which will be needed.

    Every contender is searched with seed 0, those near the front with seed 1 too; the confirmation begins when the
    recipe is frozen.
    """
    first, *others = SEARCH_SEEDS
    yield from (Item(arena, "search", contender, first) for contender in arena.contenders)
    results = load(kept / arena.name / "search")
    near = near_front(results)
    for seed in others:
        yield from (Item(arena, "search", each, seed) for each in arena.contenders if each.name in near)
    if arena.recipe is not None:
        for seed in arena.confirm_seeds:
            for name in arena.confirmed:
                yield Item(arena, "confirm", arena.contender(name), seed)


def missing(arenas: list[Arena], kept: Path) -> list[Item]:
    """What has no result: every arena's first seed of the search, then the rest, arena by arena."""
    items = [item for arena in arenas for item in wanted(arena, kept) if not item.result(kept).exists()]
    return sorted(items, key=lambda item: (STAGES.index(item.stage), item.seed))


def asks_little(contender: Contender) -> bool:
    """Whether a run has most of the teacher's answers at hand: its time is the student's."""
    return contender.stored and (contender.views or contender.mixes or VIEWS) < VIEWS / 2


class Estimates:
    """How long runs take: what result files say, in the proportion in which this machine differs from theirs.

    Args:
        kept: folder of the results
        file: where this machine's own measurements are kept
    """

    def __init__(self, kept: Path, file: Path) -> None:
        self.kept, self.file = kept, file

    def seconds(self, item: Item) -> float:
        """Expected of a run on this machine."""
        return self.typical(item) * self.factor()

    def typical(self, item: Item) -> float:
        """On the machines that the results come from; without a result, by the steps of a contender that is like it."""
        found = self.measured(item.arena, item.contender.name)
        if found:
            return statistics.median(found)
        alike = [
            seconds / (other.epochs * other.images)
            for other in item.arena.contenders
            if asks_little(other) == asks_little(item.contender)
            for seconds in self.measured(item.arena, other.name)
        ]
        plain = self.measured(item.arena, "kd")
        whole = statistics.median(alike or plain or [item.arena.kd_seconds])
        return whole * item.contender.epochs * item.contender.images

    def measured(self, arena: Arena, name: str) -> list[float]:
        """Seconds of a contender's runs."""
        stages = (load(self.kept / arena.name / stage) for stage in ("search", "confirm"))
        return [sum(run["time"].values()) for found in stages for run in found.get(name, {}).values()]

    def factor(self) -> float:
        """Seconds here over those expected, of the last runs on this machine."""
        try:
            ratios = json.loads(self.file.read_text())
        except FileNotFoundError:
            return 1.0
        return statistics.median(ratios[-5:])

    def learn(self, typical: float, took: float) -> None:
        """Remember how long a run took here that was expected to take so long elsewhere."""
        ratios = json.loads(self.file.read_text()) if self.file.exists() else []
        self.file.write_text(json.dumps([*ratios, round(took / typical, 4)]))


@contextmanager
def claim(item: Item, place: Place) -> Iterator[bool]:
    """Whether this process may take a run: nobody else is at work on it. Given back when the process ends."""
    path = place.run(item.arena, item.stage, item.contender, item.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.claim"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def keep(item: Item, place: Place, kept: Path, commit: str) -> None:
    """A finished run's summary among the results, whole or not at all; its folder and store have served."""
    run = place.run(item.arena, item.stage, item.contender, item.seed)
    summary = json.loads((run / "summary.json").read_text())
    evidence = {
        "arena": item.arena.name,
        "stage": item.stage,
        "commit": commit,
        "date": f"{time.strftime('%Y-%m-%d', time.gmtime())}",
    }
    target = item.result(kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(
        json.dumps({**summary, "evidence": evidence, "benchmark_environment": environment()}, indent=2) + "\n"
    )
    temporary.replace(target)
    shutil.rmtree(place.store(item.arena, item.stage, item.contender, item.seed), ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)


def commit_of(folder: Path) -> str:
    """The commit that a checkout is at; marked where tracked files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True
        ).stdout.strip()

    found = git("rev-parse", "HEAD")
    if not found:
        return "unknown: no checkout"
    return found + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")
