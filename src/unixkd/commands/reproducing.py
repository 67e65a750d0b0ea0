"""The commands that make the runs of a report again, out of their configurations."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from unixkd.commands.wording import changed
from unixkd.config import MethodConfig, RunConfig
from unixkd.options import GROUPS
from unixkd.report.records import Command, Run
from unixkd.report.runs import group_runs, teacher_runs
from unixkd.variants import file_name, label_of

OUT = "again"
"""Folder of the runs that a printed command makes."""
_SHORT = {f"--train.{name}": f"--{name}" for name in ("epochs", "lr", "seed", "device")}


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
    values = dict(values)
    if "model" in values:  # trained on labels
        values |= {"student": values.pop("model"), "method": {"name": "student-alone"}}
    try:
        known = {
            key: GROUPS[key](**value) if key in GROUPS and value is not None else value
            for key, value in values.items()
        }
        return RunConfig(**known)
    except TypeError:
        return None


def run_words(config: RunConfig, out: str) -> list[str]:
    """The words of `unixkd distill` or `unixkd train` that make a run with this configuration."""
    if config.teacher is None:
        words = ["unixkd", "train", *_named("model", config.student)]
    else:
        words = ["unixkd", "distill", *_named("teacher", config.teacher), *_named("student", config.student)]
        words += [*_named("method", config.method), *changed("loss", config.loss)]
        words += [*changed("answers", config.answers)]
        if config.reference_epochs is not None:
            words += ["--reference_epochs", str(config.reference_epochs)]
    words += [*_named("data", config.data), *_train(config, ("epochs", "seed"))]
    words += ["--label", config.label] if config.label is not None else []
    return [*words, "--out", out]


def compare_words(runs: Sequence[Run]) -> list[str]:
    """The words of `unixkd compare` that make all of these runs and no others; empty where there are none."""
    configs = [config for run in runs if (config := config_of(run.config)) is not None]
    if len(configs) < max(2, len(runs)) or any(config.teacher is None for config in configs):
        return []
    base = replace(configs[0], train=replace(configs[0].train, epochs=configs[0].reference_epochs or 0))
    planned = [config for config in configs if not (config.label or "").startswith("kd@")]
    methods = list({label_of(config.method): config.method for config in planned})
    seeds = list(dict.fromkeys(config.train.seed for config in configs))
    matched = list({config.label: None for config in configs if config not in planned})
    made = [_planned(base, config.method, config.train.seed) for config in planned]
    whole = made == planned and len(planned) == len(methods) * len(seeds)
    controls = [config for config in configs if config not in planned]
    for config in controls:
        control = replace(_planned(base, MethodConfig("kd"), config.train.seed), label=config.label)
        whole &= replace(control, train=replace(control.train, epochs=config.train.epochs)) == config
        whole &= (config.label or "").removeprefix("kd@") in methods
    if not whole or len(controls) != len(matched) * len(seeds):
        return []
    assert base.teacher is not None
    words = ["unixkd", "compare", *_named("teacher", base.teacher), *_named("student", base.student)]
    words += ["--methods", ",".join(methods), "--seeds", ",".join(map(str, seeds))]
    words += [*changed("loss", base.loss), *changed("answers", base.answers), *_named("data", base.data)]
    base = replace(base, train=replace(base.train, seed=0))
    return [*words, *_train(base, ("epochs",)), *["--match-cost"] * bool(matched), "--out", OUT]


def _planned(base: RunConfig, method: MethodConfig, seed: int) -> RunConfig:
    """A run of the comparison, as `compare` configures it."""
    label = label_of(method)
    return replace(
        base,
        method=method,
        train=replace(base.train, seed=seed),
        label=None if label == method.name else label,
        reference_epochs=base.train.epochs,
    )


def _command(what: str, run: Run) -> Command:
    out = f"{OUT}/{'teacher' if run.is_teacher else f'{file_name(run.method)}-seed{run.seed}'}"
    config = config_of(run.config)
    if config is not None:
        return Command(what, shlex.join(run_words(config, out)))
    command = "train" if "model" in run.config else "distill"
    return Command(
        what, shlex.join(["unixkd", command, "--config", str(run.folder / "run.yaml"), "--out", out])
    )


def _named(group: str, config: Any) -> Iterator[str]:
    yield from (f"--{group}", config.name, *changed(group, config))


def _train(config: RunConfig, always: Iterable[str]) -> Iterator[str]:
    """What of `train` is not the default, in the short forms where there are some, and these in any case."""
    words = list(changed("train", config.train))
    given = {_SHORT.get(name, name): value for name, value in zip(words[::2], words[1::2], strict=True)}
    given = {f"--{name}": str(getattr(config.train, name)) for name in always} | given
    for name, value in given.items():
        yield from (name, value)


def _seedless(values: dict[str, Any]) -> dict[str, Any]:
    train = values.get("train")
    return {**values, "train": {**train, "seed": None}} if isinstance(train, dict) else values


def _seeds(runs: Sequence[Run]) -> str:
    seeds = ", ".join(str(run.seed) for run in runs)
    return f"seed {seeds}" if len(runs) == 1 else f"seeds {seeds} (this one is seed {runs[0].seed})"
