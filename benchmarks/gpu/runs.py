"""What speed.py measures: runs of one kind, captured or eager, alone or side by side, and whether both agree."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cases import Case, Scale, make_network, settle_statistics
from unixkd.config import TrainConfig
from unixkd.data.split import Split
from unixkd.distiller import Distiller
from unixkd.method.unix import METHODS
from unixkd.planning.timing import synchronize
from unixkd.teacher.store import AnswerStore
from unixkd.training.average import MovingAverage
from unixkd.training.cuda_graph import WARM_UPS
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.optimizer import build_optimizer
from unixkd.training.precision import DTYPES
from unixkd.training.stepper import Stepper

LR = 2**-4
"""Near the usual 0.05, and the same number in float32, as a captured step has it."""

EMA_DECAY = 0.999


class Run:
    """A training run as the trainer puts it together, on a stream of its own.

    Args:
        scale: device and images
        split: the images
        case: networks, method, precision, batch size
        graph: whether its steps are captured
        seed: of the order of the images and of the draws; the weights are the same for all
        compiled: whether torch.compile compiles both networks
        benchmark: whether cuDNN chooses algorithms by trying them
        averaged: whether a moving average of the weights is kept
        store: of the teacher's answers, which are fetched before each epoch
    """

    def __init__(
        self,
        scale: Scale,
        split: Split,
        case: Case,
        *,
        graph: bool,
        seed: int = 0,
        compiled: bool = False,
        benchmark: bool = False,
        averaged: bool = False,
        store: AnswerStore | None = None,
    ) -> None:
        self.device, self.benchmark, self.notes = scale.device, benchmark, list[str]()
        train = TrainConfig(
            epochs=240, batch_size=case.batch_size, lr=LR, schedule="multistep", graph=graph, seed=seed
        )
        teacher, self.student = (make_network(name, scale) for name in (case.teacher, case.student))
        settle_statistics(teacher, split, case.batch_size)
        if compiled:
            for network in (teacher, self.student):
                network.compile(backend=scale.backend, dynamic=False)
        dtype = DTYPES[case.precision]
        distiller = Distiller(
            self.student.train(),
            teacher,
            METHODS[case.method](),
            batch_size=case.batch_size,
            seed=seed,
            student_dtype=dtype,
            teacher_dtype=dtype,
            store=store,
        )
        optimizer = build_optimizer(train, self.student.parameters(), scale.device)
        tally = EpochStats(torch.zeros(len(split), dtype=torch.int32, device=scale.device))
        average = MovingAverage(self.student, EMA_DECAY) if averaged else None
        engine = Engine(distiller, optimizer, tally, average=average)
        self.stepper = Stepper(engine, split, train, scale.device, store is not None, self.notes.append)
        self.stepper.record = scale.record
        self.steps = itertools.chain.from_iterable(self.stepper.epoch(n) for n in itertools.count())
        self.stream = None
        if scale.device.type == "cuda":
            self.stream = torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())

    @contextlib.contextmanager
    def on_its_stream(self) -> Iterator[None]:
        """Launch what is inside on the run's stream."""
        with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            yield

    def take(self, steps: int) -> None:
        """Launch the next steps."""
        with self.on_its_stream():
            for _ in range(steps):
                next(self.steps)

    def set_up(self) -> float:
        """Seconds of the first step and of all that is made for it: tables, graph, compiled code."""
        synchronize(self.device)
        started = time.perf_counter()
        torch.backends.cudnn.benchmark = self.benchmark
        try:
            self.take(1)
        finally:
            torch.backends.cudnn.benchmark = False
        synchronize(self.device)
        if self.stepper.train.graph and self.stepper.captured is None:
            raise RuntimeError(f"nothing was captured: {'; '.join(self.notes)}")
        return time.perf_counter() - started

    def epoch_seconds(self) -> float:
        """Seconds of a whole epoch, with the order, draws and tables that are made before it."""
        synchronize(self.device)
        started = time.perf_counter()
        with self.on_its_stream():
            for _ in self.stepper.epoch(1):
                pass
        synchronize(self.device)
        return time.perf_counter() - started

    def skip_row(self) -> None:
        """Let the graph read its tables one row late from now on."""
        captured = self.stepper.captured
        assert captured is not None
        with self.on_its_stream():
            captured.counter.add_(1).remainder_(captured.steps)

    def losses(self, steps: int) -> Tensor:
        """The loss of each of the next steps `[steps]`, float64, on the CPU."""
        found, sums = [], self.stepper.engine.tally.sums
        with self.on_its_stream():
            sums["loss"].zero_()
            for _ in range(steps):
                next(self.steps)
                found.append(sums["loss"].clone())
                sums["loss"].zero_()
        synchronize(self.device)
        return torch.stack(found).double().cpu()


def rehearse(body: Callable[[], None]) -> Callable[[], None]:
    """The stand-in for a CUDA graph on a CPU: the same warm-up, and every replay is the step itself."""
    for _ in range(WARM_UPS):
        body()
    return body


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Full float32 and deterministic algorithms inside, so that equal operations give equal bits."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32)
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = False, True, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that have no deterministic algorithm
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = before
