"""One stage of speed.py: a captured run checked against an eager one, or contenders timed in turns."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from cases import CHANNELS, Case, Scale, make_network, make_split
from floor import CHIPS, Network, Work, step_work
from imagenet_like import write_tree
from runs import Run, reproducible
from timing import Samples, interleave, ratio
from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.data.split import Split
from unixkd.method.unix import METHODS
from unixkd.planning.timing import synchronize
from unixkd.teacher.store import AnswerStore

TOLERANCE = {"fp32": 5e-3, "bf16": 2e-2}
"""Relative difference that is still rounding. Equal operations give none at all; but where one differs by 1e-7,
other images are kept after a few steps: losses then differ by 0.1 % (bf16: 1 %), by 4 % a row late."""
UNITS = {"bf16": (2, "bf16"), "fp32": (4, "tf32")}
"""Bytes of a number between layers, and the units that multiply."""

EMA_NAMES = ("graph", "graph_ema")
PHOTOS: dict[str, dict[str, Any]] = {
    "in_memory": {"in_memory": True},
    "kept": {"in_memory": False, "keep": 0.5},
    "decoded": {"in_memory": False, "keep": 0.0},
}
"""How photos are held: cut to their size, decoded once, as files."""
THREADS = 16
"""That decode, at most."""

Figures = dict[str, Any]


def load_photos(folder: str, scale: Scale, **how: Any) -> Split:
    """The photos of a folder, for the device."""
    workers = min(THREADS, os.cpu_count() or 1)
    config = DataConfig(f"folder:{folder}", size=scale.photo_size, workers=workers, **how)
    return load_data(config).train.to(scale.device)


class Bench:
    """Measures cases of one scale.

    Args:
        scale: device, networks, images and how often
        split: the images (default: those of `make_split`)
    """

    def __init__(self, scale: Scale, split: Split | None = None) -> None:
        self.scale, self.split = scale, make_split(scale) if split is None else split
        name = torch.cuda.get_device_name() if scale.device.type == "cuda" else ""
        self.chip = CHIPS.get(name)
        self.network = lru_cache(maxsize=None)(self.sizes)

    def measure(self, kind: str, case: Case) -> Figures:
        """One stage's figures."""
        kinds: dict[str, Callable[[Case], Figures]] = {
            "check": self.check,
            "single": self.single,
            "side_by_side": self.side_by_side,
            "stored": self.stored,
            "ema": self.ema,
            "photos": self.photos,
            "compile": self.compile,
        }
        return kinds[kind](case)

    def check(self, case: Case) -> Figures:
        """A captured run against the eager one, and against a captured one that is a row of its tables late."""
        steps = self.scale.check_steps
        with reproducible():
            eager, captured, late = (self.run(case, graph=graph) for graph in (False, True, True))
            for run in (eager, captured, late):
                run.set_up()
            expected, found = eager.losses(steps), captured.losses(steps)
            late.skip_row()
            control = late.losses(steps)
            weights = weight_difference(eager.student, captured.student)
        return judge(expected, found, control, weights, TOLERANCE[case.precision])

    def single(self, case: Case) -> Figures:
        """One run alone: eager, captured, captured with the algorithms that cuDNN finds fastest by trying."""
        runs = {
            "eager": self.run(case, graph=False),
            "graph": self.run(case, graph=True),
            "graph_benchmark": self.run(case, graph=True, benchmark=True),
        }
        found = self.contest(case, {name: [run] for name, run in runs.items()})
        return found | {"graph_epoch_seconds": runs["graph"].epoch_seconds()}

    def side_by_side(self, case: Case) -> Figures:
        """Several runs of one case, each with a graph and a stream of its own, against one alone."""
        runs = [self.run(case, graph=True, seed=seed) for seed in range(self.scale.side_by_side)]
        return self.contest(case, {"1_run": runs[:1], f"{len(runs)}_runs": runs})

    def stored(self, case: Case) -> Figures:
        """Captured steps that ask the teacher, and that read its stored answers; set-up fills the store."""
        split = replace(self.split, views=1)
        store_of = {"images": len(split), "views": 1, "classes": self.scale.classes}
        with (
            TemporaryDirectory(prefix="unixkd-answers-") as folder,
            AnswerStore.open(Path(folder) / "store", {"teacher": case.teacher}, **store_of) as store,
        ):
            runs = {
                name: self.run(case, graph=True, split=split, store=each)
                for name, each in (("asked", None), ("stored", store))
            }
            found = self.contest(case, {name: [run] for name, run in runs.items()})
            # What is fetched before an epoch is part of it.
            return found | {"epoch_seconds": {name: run.epoch_seconds() for name, run in runs.items()}}

    def ema(self, case: Case) -> Figures:
        """Captured steps with and without a moving average of the weights."""
        runs = {name: self.run(case, graph=True, averaged=name == "graph_ema") for name in EMA_NAMES}
        return self.contest(case, {name: [run] for name, run in runs.items()})

    def photos(self, case: Case) -> Figures:
        """Eager and captured steps on photos in memory, decoded once, decoded in every epoch; windows of an epoch."""
        scale = self.scale
        with TemporaryDirectory(prefix="unixkd-photos-") as folder:
            write_tree(Path(folder), scale.photos, scale.classes)
            splits = {name: load_photos(folder, scale, **how) for name, how in PHOTOS.items()}
            window = max(1, scale.photos // case.batch_size)
            smaller = replace(scale, size=scale.photo_size, window=window, rounds=min(3, scale.rounds))
            bench = Bench(smaller, splits["in_memory"])
            runs = {
                f"{name}_{step}": [bench.run(case, graph=step == "graph", split=split)]
                for step in ("eager", "graph")
                for name, split in splits.items()
            }
            pairs = [("in_memory_graph", f"{name}_graph") for name in ("kept", "decoded")]
            return bench.contest(case, runs, [(f"{name}_eager", f"{name}_graph") for name in splits] + pairs)

    def compile(self, case: Case) -> Figures:
        """Captured steps with and without torch.compile."""
        torch.compiler.reset()  # or earlier runs' code counts towards the limit of recompilations
        runs = {
            "graph": self.run(case, graph=True),
            "graph_compile": self.run(case, graph=True, compiled=True),
        }
        return self.contest(case, {name: [run] for name, run in runs.items()})

    def run(self, case: Case, *, graph: bool, split: Split | None = None, **changes: Any) -> Run:
        """A run of this scale."""
        return Run(self.scale, self.split if split is None else split, case, graph=graph, **changes)

    def contest(
        self, case: Case, groups: dict[str, list[Run]], pairs: list[tuple[str, str]] | None = None
    ) -> Figures:
        """Groups of runs in turns, a window of steps each.

        Args:
            case: of all of them
            groups: runs by the name of their group
            pairs: groups whose seconds are divided by another one's (default: the first one's by each other one's)
        """
        set_up = {name: statistics.median(run.set_up() for run in runs) for name, runs in groups.items()}
        samples = interleave(
            {name: partial(self.window, runs) for name, runs in groups.items()}, self.scale.rounds
        )
        first, *others = groups
        ratios: Figures = {}
        for a, b in [(first, name) for name in others] if pairs is None else pairs:
            ratios.setdefault(f"{a}_over", {})[b] = ratio(samples[a], samples[b])
        return {
            "floor": self.work(case).floor(self.chip, UNITS[case.precision][1]),
            "contenders": {
                name: self.figures(case, samples[name], len(runs)) | {"set_up_seconds": set_up[name]}
                for name, runs in groups.items()
            },
        } | ratios

    def window(self, runs: list[Run]) -> None:
        """A window of steps of each run, in turns, to the end."""
        for _ in range(self.scale.window):
            for run in runs:
                run.take(1)
        synchronize(self.scale.device)

    def figures(self, case: Case, samples: Samples, runs: int) -> Figures:
        """Milliseconds until each of the runs has taken a step, and what that comes to."""
        times = sorted(1e3 * seconds / self.scale.window for seconds in samples.wall)
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        floor = self.work(case).floor(self.chip, UNITS[case.precision][1])
        arithmetic, least = floor["arithmetic_ms"], floor["floor_ms"]
        return {
            "ms_per_step": median,
            "quartiles_ms": [low, high],
            "cpu_ms_per_step": 1e3 * statistics.median(samples.cpu) / self.scale.window,
            "images_per_second": 1e3 * runs * case.batch_size / median,
            "mfu": None if arithmetic is None else runs * arithmetic / median,
            "over_floor": None if least is None else median / (runs * least),
        }

    def work(self, case: Case) -> Work:
        """What a step of the case has to do."""
        counts = METHODS[case.method]().counts(case.batch_size, case.batch_size)
        return step_work(
            self.network(case.student), self.network(case.teacher), counts, UNITS[case.precision][0]
        )

    def sizes(self, name: str) -> Network:
        """A network's FLOPs, layer outputs and weights."""
        return Network(make_network(name, self.scale), (CHANNELS, self.scale.size, self.scale.size))


def judge(expected: Tensor, found: Tensor, control: Tensor, weights: float, tolerance: float) -> Figures:
    """Whether two runs agree and a control does not: medians over the steps.

    Args:
        expected: losses of the eager run `[steps]`
        found: of the captured one
        control: of one that must differ
        weights: relative difference of the weights after these steps
        tolerance: relative difference that is allowed

    >>> judge(torch.ones(3), torch.ones(3), torch.tensor([1.0, 1.1, 1.2]), 0.0, 1e-3)["passed"]
    True
    """
    different = (expected != found).nonzero().flatten().tolist()
    apart, late = (((each - expected) / expected).abs() for each in (found, control))
    loss, other = apart.median().item(), late.median().item()
    return {
        "steps": len(expected),
        "equal": not different and weights == 0,
        "first_different_step": different[0] if different else None,
        "loss_difference": loss,
        "largest_loss_difference": apart.max().item(),
        "weight_difference": weights,
        "control_difference": other,
        "tolerance": tolerance,
        "passed": loss <= tolerance and weights <= tolerance < other,
    }


def weight_difference(a: nn.Module, b: nn.Module) -> float:
    """‖a − b‖ / ‖a‖ over all weights and the statistics of BatchNorm."""
    mine, theirs = (
        torch.cat([t.double().flatten() for t in network.state_dict().values() if t.is_floating_point()])
        for network in (a, b)
    )
    return ((mine - theirs).norm() / mine.norm()).item()
