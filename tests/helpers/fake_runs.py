"""Small runs on fake CUDA tensors, or on a CPU under the same watch: what is configured, and a watched epoch of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fake_cuda import ALLOWED, Watcher, fake_cuda, with_rate_on_device
from slow import TinyNet
from unixkd.config import LossConfig, MethodConfig, TrainConfig
from unixkd.data.split import MemorySplit
from unixkd.distiller import Distiller
from unixkd.method.epoch_choice import History
from unixkd.method.from_config import build_method, build_objective
from unixkd.training.average import MovingAverage
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats, score_bins
from unixkd.training.loss_scale import LossScale
from unixkd.training.optimizer import build_optimizer
from unixkd.training.precision import DTYPES
from unixkd.training.stepper import Stepper

IMAGES, BATCH, CLASSES, SIDE = 6, 4, 5, 8
"""A full step, of whose 4 rows UNIX keeps 3, and a short one of 2."""


class Staged(TinyNet):
    """A network that says which layers its stages are."""

    stage_layers = ("stem", "body")


@dataclass(frozen=True)
class Case:
    """What a run is configured to.

    Args:
        train: options that are not as they are by default
        data: those of the split
        stored: the teacher's answers are stored
        on_host: the images lie on the host, and no step is captured
        loaded: they lie there, and each batch is copied into a captured step's own
    """

    method: MethodConfig = field(default_factory=MethodConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    stored: bool = False
    on_host: bool = False
    loaded: bool = False


class Loaded:
    """A split whose images are loaded, as those on disk are, for all that a `Stepper` knows of it."""

    def __init__(self, split: MemorySplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)


def build(case: Case, device: torch.device, record: Any = None) -> Stepper:
    """What takes the steps of a case."""
    options = {"precision": "fp32", "teacher_precision": "fp32", **case.train}
    train = TrainConfig(epochs=2, batch_size=BATCH, graph=record is not None and not case.on_host, **options)
    method = build_method(case.method)
    with device:
        student, teacher = Staged(CLASSES).train(), Staged(CLASSES, width=6)
    with torch.device("cpu") if case.on_host or case.loaded else device:
        pixels = torch.zeros(IMAGES, SIDE, SIDE, 3, dtype=torch.uint8)
        labels = torch.arange(IMAGES) % CLASSES
    split = MemorySplit(**{"images": pixels, "labels": labels, "padding": 1, "flip": True, **case.data})
    distiller = Distiller(
        student,
        teacher if method.teacher else None,
        method,
        build_objective(case.loss, method, train.label_smoothing),
        batch_size=BATCH,
        student_dtype=DTYPES[train.precision],
        teacher_dtype=DTYPES[train.teacher_precision],
        marks_faulty=True,
    )
    optimizer = build_optimizer(train, student.parameters(), torch.device("cpu"))
    engine = Engine(
        distiller,
        with_rate_on_device(optimizer, device) if train.fused else optimizer,
        EpochStats(torch.zeros(IMAGES, dtype=torch.int32, device=device), score_bins(method, CLASSES)),
        train.clip_norm,
        None if train.ema_decay is None else MovingAverage(student, train.ema_decay),
        train.channels_last,
        History(IMAGES, device) if method.remembers else None,
        micro_batch=train.micro_batch,
        scale=LossScale(device) if train.precision == "fp16" else None,
    )
    stepper = Stepper(engine, split, train, device, case.stored, record=record)
    if case.loaded:
        stepper.split = Loaded(split)  # type: ignore[assignment]
    return stepper


def run_once(body: Callable[[], None]) -> Callable[[], None]:
    """In the place of a CUDA graph: the body runs when it is captured; the short step is one after it."""
    body()
    return lambda: None


def epoch(case: Case) -> Watcher:
    """A watched epoch of a case on fake tensors."""
    notes: list[str] = []
    with fake_cuda() as device:
        stepper = build(case, device, run_once)
        stepper.note = notes.append
        with (watcher := Watcher(device, ALLOWED)):
            for counts in stepper.epoch(0):
                stepper.engine.tally.count(counts)
            stepper.engine.tally.losses()
        tensors = {t.device.type for t in stepper.engine.state().values()}
    assert tensors == {"cuda"}
    assert stepper.engine.tally.seen == IMAGES
    eager = case.on_host or not stepper.train.fused
    assert (stepper.captured is None) == eager
    assert bool(notes) == (eager and not case.on_host), notes
    return watcher
