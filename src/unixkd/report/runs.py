"""Find runs below folders, group them by method, and the statistics over their seeds."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unixkd.errors import CHECKSUMS, UserError, is_unchanged, shown
from unixkd.names import methods, plural
from unixkd.report.records import READ, Run, read_run
from unixkd.run_files import Epoch


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation (n − 1) over n runs; no deviation for one run.

    >>> MeanStd.of([1.0, 3.0])
    MeanStd(mean=2.0, sd=1.4142135623730951, n=2)
    """

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> MeanStd | None:
        """Over the values that are not None; None where there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        sd = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), sd, len(known))


@dataclass(frozen=True)
class Group:
    """The runs of one method and setting, in order of their seeds; `name` is the method without what tells it apart."""

    method: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return self.method.partition(" (")[0]

    @property
    def setting(self) -> tuple[str, ...]:
        return self.runs[0].setting

    def mean_std(self, value: Callable[[Run], float | None]) -> MeanStd | None:
        """Mean and deviation of a value over the runs that have it."""
        return MeanStd.of(value(run) for run in self.runs)

    def cost(self, backward: int) -> MeanStd | None:
        """Computation over plain KD's, see `Run.cost`."""
        return self.mean_std(lambda run: run.cost(backward))

    @property
    def train_seconds(self) -> MeanStd | None:
        """Seconds of training; None where a run had answers that others asked for, which its cost includes."""
        shared = (run.summary.cost.shared for run in self.runs)
        if any(part is not None and part.backward_2x for part in shared):
            return None
        return self.mean_std(lambda run: run.summary.time.train_seconds)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Read every finished run in or below the folders, in order of their paths; `left_out` names the changed ones.

    Two runs of one method and seed are told apart by their folders, and are then no longer averaged.

    Args:
        folders: run folders, or folders that hold run folders somewhere below

    Raises:
        UserError: a folder is missing, holds no finished run, or a file of a run is unreadable; all runs were changed
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: give a run folder or a folder that holds some")
        below = _folders_with(folder, "summary.json")
        if not below:
            unfinished = len(find_unfinished([folder]))
            hint = f" ({unfinished} unfinished)" if unfinished else ""
            raise UserError(f"{folder} holds no finished run{hint}: no summary.json in or below it")
        found |= {path.resolve(): path for path in below}
    runs = [read_run(found[path]) for path in sorted(found) if not changed_files(found[path])]
    if not runs:
        raise UserError("; ".join(left_out(folders)))
    if all(run.is_teacher for run in runs):
        runs = [replace(run, is_teacher=False) for run in runs]
    return _distinguish(runs)


def find_unfinished(folders: Sequence[Path]) -> list[Path]:
    """Run folders in or below the folders that were begun and have no `summary.json` yet."""
    begun = {
        path
        for folder in folders
        for name in ("run.yaml", "metrics.jsonl")
        for path in _folders_with(folder, name)
        if not (path / "summary.json").exists()
    }
    return sorted(begun)


def changed_files(run: Path) -> list[Path]:
    """The files of a finished run that are damaged or were edited since; none where it left no checksums."""
    return [run / name for name in READ if is_unchanged(run / name) is False]


def left_out(folders: Sequence[Path]) -> list[str]:
    """What has to be said of the runs in or below the folders that `find_runs` does not give."""
    unfinished = len(find_unfinished(folders))
    finished = {path.resolve(): path for folder in folders for path in _folders_with(folder, "summary.json")}
    changed = ", ".join(str(file) for path in sorted(finished) for file in changed_files(finished[path]))
    were = f"{plural(unfinished, 'unfinished run')} {'was' if unfinished == 1 else 'were'} left out"
    why = f"Left out, as a file was damaged or edited after the run ended (its checksum in {CHECKSUMS} is another)"
    return [f"{were} (no summary.json yet)."] * bool(unfinished) + [f"{why}: {changed}"] * bool(changed)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group by method, plain KD first; runs that trained the teacher are left out."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if not run.is_teacher:
            groups.setdefault(run.method, []).append(run)
    return [
        Group(method, tuple(sorted(groups[method], key=lambda run: run.seed)))
        for method in sorted(groups, key=_rank)
    ]


def matched_to(method: str) -> str:
    """The method whose cost a control was given, with the folder if one is named; empty where it is no such control.

    >>> matched_to("kd@unix:keep=0.5"), matched_to("unix")
    ('unix:keep=0.5', '')
    """
    return method.removeprefix("kd@") if method.startswith("kd@") else ""


def teacher_runs(runs: Iterable[Run]) -> list[Run]:
    """The runs that trained a teacher."""
    return [run for run in runs if run.is_teacher]


def paired_difference(
    group: Group, baseline: Group | None, value: Callable[[Run], float | None]
) -> MeanStd | None:
    """Mean over the seeds that both have of (value in group − value in baseline)."""
    if baseline is None or baseline.method == group.method:
        return None
    baseline_values = {run.seed: value(run) for run in baseline.runs}
    pairs = [(value(run), baseline_values.get(run.seed)) for run in group.runs]
    return MeanStd.of(ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None)


def curve(group: Group, value: Callable[[Epoch], float | None]) -> list[tuple[int, MeanStd]]:
    """Mean and deviation over the seeds at every epoch where all runs of the group have the value."""
    per_run = [{line.epoch: value(line) for line in run.history} for run in group.runs]
    points = []
    for epoch in sorted(set[int]().union(*per_run)):
        values = [known.get(epoch) for known in per_run]
        stat = MeanStd.of(values)
        if stat is not None and None not in values:
            points.append((epoch, stat))
    return points


def _folders_with(folder: Path, name: str) -> list[Path]:
    return [path.parent for path in folder.rglob(name) if path.is_file()]


def _rank(method: str) -> tuple[float, str, bool, str]:
    """The known methods in their order, each followed by its variants, `kd@x` right after x, student-alone last."""
    label = method.partition(" (")[0]
    target = matched_to(label)
    variant = target or label
    name = variant.partition(":")[0]
    order = list(methods())
    place = order.index(name) if name in order else len(order) - 1.5  # before student-alone, the last
    return place, variant, bool(target), method


def _distinguish(runs: list[Run]) -> list[Run]:
    """Number the settings in which the runs differ, and name the folder of runs that share method, setting and seed.

    What all runs that name it name alike, their data say, is left out of their settings.
    """
    named = zip(*(run.setting for run in runs if not run.is_teacher), strict=True)
    differs = [len({*texts} - {""}) > 1 for texts in named]
    kept = [tuple(d * text for d, text in zip(differs, run.setting, strict=True)) for run in runs]
    runs = [replace(run, setting=setting) for run, setting in zip(runs, kept, strict=True)]
    settings = sorted({run.setting for run in runs if not run.is_teacher})
    runs = [
        replace(run, method=f"{run.method} ({settings.index(run.setting) + 1})")
        if len(settings) > 1 and not run.is_teacher
        else run
        for run in runs
    ]
    students = Counter((run.method, run.seed) for run in runs if not run.is_teacher)
    twice = {method for (method, _), number in students.items() if number > 1}
    if not twice:
        return runs
    root = Path(os.path.commonpath([run.folder.resolve() for run in runs]))
    return [
        replace(run, method=f"{run.method} ({shown(run.folder.resolve().relative_to(root).as_posix())})")
        if run.method in twice and not run.is_teacher
        else run
        for run in runs
    ]
