"""Which run of a comparison comes next: the one that adds most to its table for the work that it takes.

A contender whose accuracy the paper prints counts 1, another one 1/2; a cell's second seed counts half of its first,
its third a third. The work is that of the forwards and backwards, in FLOPs, as no seconds are known before a run; where
the teacher is still to be trained, that is divided among the first runs of its students' cells, and added to each run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

import torch

import full_protocol as protocol
from floor import Network, step_work
from unixkd.config import RunConfig
from unixkd.method.from_config import build_method
from unixkd.method.method import Method
from unixkd.models import create_model
from unixkd.training.compare import Job

PRINTED = ("kd", "unix")
BATCH = 64


@cache
def sizes(name: str) -> Network:
    """A network's FLOPs on an image of CIFAR-100."""
    torch.manual_seed(0)
    return Network(create_model(name, 100), (3, 32, 32))


def work(config: RunConfig, pair: str) -> float:
    """A run's share of FLOPs: those of a step on 64 images, times its epochs."""
    student, method = config.student.name, build_method(config.method)
    asked = protocol.PAIRS[pair].teacher if config.teacher is not None else student
    return float(step_flops(student, asked, method) * config.train.epochs)


def step_flops(student: str, teacher: str, method: Method) -> int:
    """FLOPs of a step; a method without a teacher asks none."""
    return step_work(sizes(student), sizes(teacher), method.counts(BATCH, BATCH), value_bytes=2).flops


def by_worth(
    missing: list[tuple[str, Job]], seeds: list[int], teachers: Mapping[str, RunConfig]
) -> list[tuple[str, Job]]:
    """Runs without a result, with the names of their pairs, most worth for their work first.

    Args:
        missing: the runs
        seeds: of every cell, in their order
        teachers: the networks that are still to be trained, by name
    """
    firsts = Counter(
        protocol.PAIRS[pair].teacher for pair, job in missing if job.config.train.seed == seeds[0]
    )

    def worth(entry: tuple[str, Job]) -> float:
        pair, job = entry
        name, effort = protocol.PAIRS[pair].teacher, work(job.config, pair)
        if name in teachers:
            effort += work(teachers[name], pair) / max(1, firsts[name])
        value = 1.0 if job.config.label in PRINTED else 0.5
        return value / (1 + seeds.index(job.config.train.seed)) / effort

    return sorted(missing, key=worth, reverse=True)
