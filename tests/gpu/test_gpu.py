"""What only a GPU can show: run with `pytest -m gpu`."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from slow import TinyNet
from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.data import MemorySplit, load_data
from unixkd.distiller import Distiller
from unixkd.method.batch import Batch, MixedBatch, Outputs
from unixkd.method.draws import make_draws
from unixkd.method.losses import DIST, DKD, KD, CrossEntropy, Loss
from unixkd.method.method import Method
from unixkd.method.mixing import StepCurve
from unixkd.method.objective import Term
from unixkd.method.unix import METHODS, kd, unix
from unixkd.teacher.store import AnswerStore
from unixkd.training.cuda_graph import refuse_waiting
from unixkd.training.display import silent
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.optimizer import build_optimizer
from unixkd.training.run import epoch_steps, run, start
from unixkd.training.run_folder import RunFolder
from unixkd.training.stepper import Stepper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DATA = DataConfig("digits", limit=256)
DEVICE = torch.device("cuda")
IMAGES, BATCH, CLASSES, SIZE = 72, 32, 5, 8
"""Steps of 32, 32 and 8 images: fewer captured ones than the capture's warm-up takes."""
REFUSED = "steps run one by one, not as a CUDA graph: "


@pytest.fixture(autouse=True)
def same_bits() -> Iterator[None]:
    """Full float32 and deterministic convolutions."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32)
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = False, True, False
    yield
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = before


@dataclass
class Run:
    """A small run on the device, and what it noted."""

    method: Method = field(default_factory=kd)
    losses: tuple[Loss, ...] = (KD(),)
    graph: bool = True
    optimizer: str = "sgd"
    clip_norm: float | None = None
    images: int = IMAGES
    views: int | None = None
    store: AnswerStore | None = None
    dtype: torch.dtype | None = None
    extra: nn.Module = field(default_factory=nn.Identity)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        student = nn.Sequential(TinyNet(CLASSES, seed=1), self.extra).train()
        teacher = TinyNet(CLASSES, width=6, seed=2)
        for network in (student, teacher):
            network.to(DEVICE, memory_format=torch.channels_last)
        train = TrainConfig(
            epochs=3,
            batch_size=BATCH,
            lr=0.05 if self.optimizer == "sgd" else 0.001,
            graph=self.graph,
            optimizer=self.optimizer,  # type: ignore[arg-type]
        )
        distiller = Distiller(
            student,
            teacher if self.method.teacher else None,
            self.method,
            [Term(type(loss).__name__, loss) for loss in self.losses],
            batch_size=BATCH,
            store=self.store,
            student_dtype=self.dtype,
            teacher_dtype=self.dtype,
        )
        optimizer = build_optimizer(train, student.parameters(), DEVICE)
        tally = EpochStats(torch.zeros(self.images, dtype=torch.int32, device=DEVICE))
        self.engine = Engine(distiller, optimizer, tally, self.clip_norm)
        self.stepper = Stepper(
            self.engine, self.make_split(), train, DEVICE, self.store is not None, self.notes.append
        )

    def make_split(self) -> MemorySplit:
        shape = (self.images, SIZE, SIZE, 3)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(self.images) % CLASSES
        return MemorySplit(pixels, labels, padding=1, flip=True, views=self.views).to(DEVICE)

    def steps(self, epochs: int = 2) -> Iterator[int]:
        for number in range(epochs):
            for counts in self.stepper.epoch(number):
                yield counts.seen

    def outcome(self) -> tuple[dict[str, Tensor], list[int]]:
        """All tensors after two epochs and the sizes of the steps; dropout draws the same each time."""
        torch.manual_seed(0)
        seen = list(self.steps())
        return self.state(), seen

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.engine.state().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.isfinite().all(), name
        torch.testing.assert_close(
            tensor, b[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def dropout() -> nn.Module:
    return nn.Dropout(0.3)


CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"method": make(), **({} if make().teacher else {"losses": (CrossEntropy(),)})}
        for name, make in METHODS.items()
    },
    "step curve": {"method": replace(unix(), curve=StepCurve(0.5))},
    "scored in eval mode": {"method": unix(scoring_mode="eval")},
    "all losses": {"method": unix(), "losses": (KD(), CrossEntropy(0.1), DKD(), DIST())},
    "clipped": {"method": unix(), "clip_norm": 0.1},
    "adamw": {"method": unix(), "optimizer": "adamw"},
    "bf16": {"method": unix(), "dtype": torch.bfloat16},
    "limited views": {"views": 3},
    "no short step": {"images": 64},
    "one step": {"images": 33},
}


@pytest.mark.parametrize("name", CASES)
def test_a_captured_run_is_the_eager_one(name: str) -> None:
    captured, eager = (Run(**CASES[name], graph=graph) for graph in (True, False))
    (mine, my_steps), (theirs, their_steps) = captured.outcome(), eager.outcome()
    assert captured.notes == []
    assert captured.stepper.captured is not None
    assert eager.stepper.captured is None
    assert my_steps == their_steps
    assert 0 not in my_steps
    assert_same(mine, theirs)


def test_dropout_draws_what_it_draws_eagerly() -> None:
    captured, eager = (Run(unix(), graph=graph, extra=dropout()) for graph in (True, False))
    (mine, _), (theirs, _) = captured.outcome(), eager.outcome()
    assert captured.stepper.captured is not None
    assert_same(mine, theirs)


@pytest.mark.parametrize("method", [kd(), replace(unix(), curve=StepCurve(0.5))], ids=["kd", "step curve"])
def test_stored_answers_fetched_ahead(method: Method, tmp_path: Path) -> None:
    """The first epoch fills the store, the second reads some of it back."""
    outcomes = []
    for graph in (True, False):
        folder = tmp_path / str(graph)
        with AnswerStore.open(folder, {"teacher": "a"}, images=IMAGES, views=2, classes=CLASSES) as store:
            answered = Run(method, graph=graph, views=2, store=store)
            outcomes.append(answered.outcome()[0])
            assert (answered.stepper.captured is not None) == graph
            assert store.filled() > IMAGES
    assert_same(*outcomes)


def test_a_graph_that_reads_another_row_differs() -> None:
    late, eager = Run(unix()), Run(unix(), graph=False)
    steps = late.steps()
    next(steps)
    assert late.stepper.captured is not None
    late.stepper.captured.counter.zero_()  # the first row again
    list(steps)
    eager.outcome()
    assert not torch.equal(late.engine.tally.times_kept, eager.engine.tally.times_kept)


class Waiting(KD):
    """A loss that is looked at."""

    def __call__(self, student: Outputs, teacher: Outputs | None, mixed: MixedBatch) -> Tensor:
        loss = super().__call__(student, teacher, mixed)
        assert loss.item() >= 0
        return loss


class Uncapturable(nn.Dropout):
    """Fails while it is captured, and only then."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not here\nbut there")
        return super().forward(input)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"losses": (Waiting(),)}, "synchronizing"), ({"extra": Uncapturable(0.3)}, "not here")],
    ids=["a step that waits", "an error in the capture"],
)
def test_a_failed_capture_leaves_no_trace(changes: dict[str, Any], reason: str) -> None:
    refused, eager = (Run(unix(), graph=graph, **changes) for graph in (True, False))
    stream = torch.cuda.current_stream()
    (mine, _), (theirs, _) = refused.outcome(), eager.outcome()
    assert torch.cuda.current_stream() == stream
    assert refused.stepper.captured is None
    (note,) = refused.notes
    assert note.startswith(REFUSED)
    assert reason in note
    assert "\n" not in note
    assert_same(mine, theirs)


def test_other_runs_can_be_captured_after_a_failure() -> None:
    Run(unix(), extra=Uncapturable(0.3)).outcome()
    captured, eager = (Run(unix(), graph=graph, extra=dropout()) for graph in (True, False))
    assert_same(captured.outcome()[0], eager.outcome()[0])
    assert captured.stepper.captured is not None


@pytest.mark.parametrize("name", CASES)
def test_an_eager_step_never_waits(name: str) -> None:
    eager = Run(**CASES[name], graph=False)
    index = torch.arange(BATCH, device=DEVICE)
    split = eager.stepper.split
    assert isinstance(split, MemorySplit)
    method = eager.method
    draws = make_draws(BATCH, seed=0, step=0, per_sample_lambda=method.per_sample_lambda, device=DEVICE)
    for number in range(3):
        with refuse_waiting() if number else contextlib.nullcontext():  # the first may set things up
            batch = split.batch(index, split.epoch_views(0, index))
            eager.engine.set_learning_rate(0.01)
            eager.engine.step(batch, draws)
    torch.cuda.synchronize()


def test_a_step_that_waits_is_found() -> None:
    eager = Run(losses=(Waiting(),), graph=False)
    batch: Batch = next(eager.stepper.split.train_batches(0, torch.arange(BATCH), BATCH))
    with pytest.raises(RuntimeError, match="synchronizing"), refuse_waiting():
        eager.engine.step(batch, make_draws(BATCH, seed=0, step=0, device=DEVICE))
    assert torch.cuda.get_sync_debug_mode() == 0


def test_a_run_goes_on_when_another_one_ends() -> None:
    """An ended run's graph must not take memory away from the others."""
    left, ended = Run(unix()), Run(unix())
    steps = left.steps()
    next(steps)
    ended.outcome()
    del ended
    gc.collect()
    torch.cuda.empty_cache()
    list(steps)
    assert_same(left.state(), Run(unix(), graph=False).outcome()[0])


def train(out: Path, device: str, precision: str = "fp32", method: str = "random") -> dict[str, Any]:
    """One short run with a teacher trained on the CPU."""
    return run(configured(out, device, precision, method), out)


def configured(out: Path, device: str, precision: str = "fp32", method: str = "random") -> RunConfig:
    """A resnet8 distilled from a teacher beside its folder."""
    teacher = out.parent / "teacher"
    if not teacher.exists():
        alone, short = MethodConfig("student-alone"), TrainConfig(epochs=3, device="cpu")
        run(RunConfig(ModelConfig("resnet8"), None, alone, data=DATA, train=short), teacher)
    return RunConfig(
        ModelConfig("resnet8"),
        ModelConfig(str(teacher)),
        MethodConfig(method),
        data=DATA,
        train=TrainConfig(epochs=2, device=device, precision=precision),  # type: ignore[arg-type]
    )


def test_the_trainer_keeps_its_data_on_the_device_and_captures(tmp_path: Path) -> None:
    trainer = start(
        configured(tmp_path / "run", "cuda", "auto", "unix"), RunFolder(tmp_path / "run"), "new", silent
    )
    data = trainer.resolved.data.train
    assert isinstance(data, MemorySplit)
    assert data.images.is_cuda
    assert data.images.dtype == torch.uint8
    for _ in epoch_steps(trainer):
        pass
    assert trainer.stepper.captured is not None
    assert trainer.engine.tally.times_kept.is_cuda
    assert trainer.engine.tally.losses()["loss"] > 0


def test_same_samples_are_chosen_on_both_devices(tmp_path: Path) -> None:
    """Draws are made on the CPU, so a random choice does not depend on the device."""
    for device in ("cpu", "cuda"):
        train(tmp_path / device, device)
    kept = [json.loads((tmp_path / d / "selection.json").read_text()) for d in ("cpu", "cuda")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_run_follows_the_cpu_run(tmp_path: Path, precision: str) -> None:
    """The first epoch's loss agrees to the precision's rounding."""
    losses = []
    for device, kind in (("cpu", "fp32"), ("cuda", precision)):
        train(tmp_path / device, device, kind, method="kd")
        losses.append(json.loads((tmp_path / device / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.01 if precision == "fp32" else 0.1)


def test_unix_charges_every_image_on_a_gpu(tmp_path: Path) -> None:
    """The ledger counts what the step did."""
    summary = train(tmp_path / "unix", "cuda", method="unix")
    assert summary["cost"]["images"]["scored"] == 2 * 256
    assert summary["cost"]["images"]["teacher_forwarded"] == 2 * 4 * 48


@pytest.mark.parametrize("workers", [0, 2])
def test_images_from_disk_become_the_same_pixels_on_the_device(workers: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        noise = torch.randint(0, 256, (30 + i, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / f"{i}.png")
    split = load_data(DataConfig(f"folder:{tmp_path}", size=24, in_memory=False, workers=workers)).train
    order = torch.tensor([4, 1, 5, 0, 3])
    pairs = zip(split.train_batches(2, order, 2), split.to(DEVICE).train_batches(2, order, 2), strict=True)
    for expected, batch in pairs:
        assert batch.images.device.type == batch.index.device.type == batch.view.device.type == "cuda"
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(batch.images.cpu(), expected.images, rtol=1e-6, atol=0)
        assert torch.equal(batch.index.cpu(), expected.index)
        assert torch.equal(batch.view.cpu(), expected.view)
