"""The commands that make the runs of a report again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unixkd.cli.options import GROUPS
from unixkd.config import MethodConfig, RunConfig, flatten, to_plain, without_gone
from unixkd.errors import UserError
from unixkd.names import file_name, label_of, run_words
from unixkd.report.records import Command, Run
from unixkd.report.runs import group_runs, matched_to, teacher_runs
from unixkd.training.compare import matched_jobs, plan_jobs

OUT = "again"
"""Folder of the runs that a printed command makes."""


def commands_of(runs: Sequence[Run]) -> list[Command]:
    """One command for the teacher, one for the comparison if the runs are one, and one for each method.

    Runs that differ in their seeds alone share a line, which has the first one's.
    """
    alike: dict[str, list[Run]] = {}
    for run in [*teacher_runs(runs), *(run for group in group_runs(runs) for run in group.runs)]:
        alike.setdefault(json.dumps([run.method, run.is_teacher, _seedless(run.config)]), []).append(run)
    teachers = [same for same in alike.values() if same[0].is_teacher]
    students = [same for same in alike.values() if not same[0].is_teacher]
    whole = compare_words([run for same in students for run in same])
    return [
        *(_command(f"The teacher, seed {same[0].seed}", same[0]) for same in teachers),
        *([Command("All methods and seeds", shlex.join(whole))] if whole else []),
        *(_command(f"{same[0].method}, {_seeds(same)}", same[0]) for same in students),
    ]


def config_of(values: dict[str, Any]) -> RunConfig | None:
    """The configuration that a run.yaml holds; None where this version does not know all of it."""
    try:
        values = without_gone(values)
        if "model" in values:  # trained on labels
            values |= {"student": values.pop("model"), "method": {"name": "student-alone"}}
        for key, value in values.items():
            values[key] = GROUPS[key](**value) if key in GROUPS and value is not None else value
        return RunConfig(**values)
    except (TypeError, UserError):
        return None


def compare_words(runs: Sequence[Run]) -> list[str]:
    """The words of `unixkd compare` that make all of these runs and no others; empty where there are none."""
    configs = [config for run in runs if (config := config_of(run.config)) is not None]
    if len(configs) < max(2, len(runs)) or any(config.teacher is None for config in configs):
        return []
    first = configs[0]
    base = replace(first, train=replace(first.train, epochs=first.reference_epochs or 0))
    seeds = list(dict.fromkeys(config.train.seed for config in configs))
    targets = [matched_to(config.label or "") for config in configs]
    pairs = list(zip(targets, configs, strict=True))
    methods = {label_of(config.method): config.method for target, config in pairs if not target}
    matched = {target: config.train.epochs for target, config in pairs if target}
    if not methods or not matched.keys() <= methods.keys():
        return []
    jobs = plan_jobs(base, list(methods.values()), seeds, Path())
    jobs += matched_jobs(base, matched, seeds, Path())
    if len(jobs) != len(configs) or any(job.config not in configs for job in jobs):
        return []
    values = flatten(to_plain(replace(base, method=MethodConfig(""), label=None, reference_epochs=None)))
    del values["method.name"], values["train.seed"]
    _, _, *words = run_words(values)
    words += ["--methods", ",".join(methods), "--seeds", ",".join(map(str, seeds))]
    return ["unixkd", "compare", *words, *["--match-cost"] * bool(matched), "--out", OUT]


def _command(what: str, run: Run) -> Command:
    if config_of(run.config) is not None:
        words = run_words(flatten(without_gone(run.config)))
    else:
        command = "train" if "model" in run.config else "distill"
        words = ["unixkd", command, "--config", str(run.folder / "run.yaml")]
    folder = "teacher" if run.is_teacher else f"{file_name(run.method)}-seed{run.seed}"
    return Command(what, shlex.join([*words, "--out", f"{OUT}/{folder}"]))


def _seedless(values: dict[str, Any]) -> dict[str, Any]:
    train = values.get("train")
    return {**values, "train": {**train, "seed": None}} if isinstance(train, dict) else values


def _seeds(runs: Sequence[Run]) -> str:
    seeds = ", ".join(str(run.seed) for run in runs)
    return f"seed {seeds}" if len(runs) == 1 else f"seeds {seeds} (this one is seed {runs[0].seed})"
