"""Captured steps are eager ones, no step waits for the device, a trainer keeps all on it: on a GPU by `pytest -m gpu`.

The same tests run on the CPU, with stand-ins for the CUDA graph and for what finds a wait (`places.py`), so that none
can rot. Three things are a GPU's alone: cuDNN's algorithms, copies between host and device, the memory of graphs.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from places import KINDS, Place, standing_in
from slow import TinyNet
from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.data import MemorySplit, load_data
from unixkd.distiller import Distiller
from unixkd.method.batch import Batch, MixedBatch, Outputs
from unixkd.method.draws import make_draws
from unixkd.method.epoch_choice import History
from unixkd.method.losses import DIST, DKD, KD, CrossEntropy, Loss
from unixkd.method.method import Method
from unixkd.method.mixing import StepCurve
from unixkd.method.objective import Term
from unixkd.method.unix import METHODS, kd, unix
from unixkd.teacher.store import AnswerStore
from unixkd.training.display import silent
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.run import epoch_steps, run, start
from unixkd.training.run_folder import RunFolder
from unixkd.training.stepper import Stepper

DATA = DataConfig("digits", limit=128)
IMAGES, BATCH, CLASSES, SIZE = 72, 32, 5, 8
"""Steps of 32, 32 and 8 images: fewer captured ones than the capture's warm-up takes."""
REFUSED = "steps run one by one, not as a CUDA graph: "


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A GPU, and the CPU with stand-ins."""
    found = Place(request.param)
    with same_bits(), contextlib.nullcontext() if found.is_cuda else standing_in(monkeypatch):
        yield found


@contextlib.contextmanager
def same_bits() -> Iterator[None]:
    """Full float32 and deterministic convolutions."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32)
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = False, True, False
    yield
    cudnn.allow_tf32, cudnn.deterministic, matmul.allow_tf32 = before


@dataclass
class Run:
    """A small run on a device, and what it noted."""

    place: Place
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
            network.to(self.place.device, memory_format=torch.channels_last)
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
        device = self.place.device
        optimizer = self.place.optimizer(train, student.parameters())
        tally = EpochStats(torch.zeros(self.images, dtype=torch.int32, device=device))
        history = History(self.images, device) if self.method.remembers else None
        self.engine = Engine(distiller, optimizer, tally, self.clip_norm, history=history)
        self.stepper = Stepper(
            self.engine, self.make_split(), train, device, self.store is not None, self.notes.append,
            self.place.recorder(),
        )  # fmt: skip

    def make_split(self) -> MemorySplit:
        shape = (self.images, SIZE, SIZE, 3)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(self.images) % CLASSES
        return MemorySplit(pixels, labels, padding=1, flip=True, views=self.views).to(self.place.device)

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
        state = {name: tensor.detach().clone() for name, tensor in self.engine.state().items()}
        history = self.engine.history
        return state if history is None else state | history.state()


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        # An image that was never scored has inf for its score.
        assert not tensor.isnan().any() if name.endswith(("score", "fresh")) else tensor.isfinite().all(), (
            name
        )
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


Make = Callable[..., Run]


@pytest.fixture
def make(place: Place, tmp_path: Path) -> Iterator[Make]:
    """Makes runs; one that mixes stored answers has a store of its own."""
    with contextlib.ExitStack() as stores:

        def made(*, views: int | None = None, **changes: Any) -> Run:
            if not changes.get("method", kd()).mixes_answers:
                return Run(place, views=views, **changes)
            folder = tmp_path / f"store-{changes['graph']}"
            store = AnswerStore.open(folder, {"teacher": "a"}, images=IMAGES, views=2, classes=CLASSES)
            return Run(place, views=2, store=stores.enter_context(store), **changes)

        yield made


@pytest.mark.parametrize("name", CASES)
def test_a_captured_run_is_the_eager_one(make: Make, name: str) -> None:
    captured, eager = (make(**CASES[name], graph=graph) for graph in (True, False))
    (mine, my_steps), (theirs, their_steps) = captured.outcome(), eager.outcome()
    assert captured.notes == []
    assert captured.stepper.captured is not None
    assert eager.stepper.captured is None
    assert my_steps == their_steps
    assert 0 not in my_steps
    assert_same(mine, theirs)


def test_dropout_draws_what_it_draws_eagerly(place: Place) -> None:
    captured, eager = (Run(place, unix(), graph=graph, extra=dropout()) for graph in (True, False))
    (mine, _), (theirs, _) = captured.outcome(), eager.outcome()
    assert captured.stepper.captured is not None
    assert_same(mine, theirs)


@pytest.mark.parametrize("method", [kd(), replace(unix(), curve=StepCurve(0.5))], ids=["kd", "step curve"])
def test_stored_answers_fetched_ahead(place: Place, method: Method, tmp_path: Path) -> None:
    """The first epoch fills the store, the second reads some of it back."""
    outcomes = []
    for graph in (True, False):
        folder = tmp_path / str(graph)
        with AnswerStore.open(folder, {"teacher": "a"}, images=IMAGES, views=2, classes=CLASSES) as store:
            answered = Run(place, method, graph=graph, views=2, store=store)
            outcomes.append(answered.outcome()[0])
            assert (answered.stepper.captured is not None) == graph
            assert store.filled() > IMAGES
    assert_same(*outcomes)


def test_a_graph_that_reads_another_row_differs(place: Place) -> None:
    late, eager = Run(place, unix()), Run(place, unix(), graph=False)
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
def test_a_failed_capture_leaves_no_trace(place: Place, changes: dict[str, Any], reason: str) -> None:
    refused, eager = (Run(place, unix(), graph=graph, **changes) for graph in (True, False))
    stream = place.stream()
    (mine, _), (theirs, _) = refused.outcome(), eager.outcome()
    assert place.stream() == stream
    assert refused.stepper.captured is None
    (note,) = refused.notes
    assert note.startswith(REFUSED)
    assert reason in note
    assert "\n" not in note
    assert_same(mine, theirs)


def test_other_runs_can_be_captured_after_a_failure(place: Place) -> None:
    Run(place, unix(), extra=Uncapturable(0.3)).outcome()
    captured, eager = (Run(place, unix(), graph=graph, extra=dropout()) for graph in (True, False))
    assert_same(captured.outcome()[0], eager.outcome()[0])
    assert captured.stepper.captured is not None


@pytest.mark.parametrize("name", CASES)
def test_an_eager_step_never_waits(place: Place, make: Make, name: str) -> None:
    eager = make(**CASES[name], graph=False)
    inputs, split = eager.stepper.inputs(0), eager.stepper.split
    assert isinstance(split, MemorySplit)
    index, draws = inputs.rows.order[:BATCH].to(place.device), inputs.draws.rows(0, BATCH)
    known = {column: values[:BATCH] for column, values in inputs.known.items()}
    for number in range(3):
        with place.refuse_waiting() if number else contextlib.nullcontext():  # the first may set things up
            batch = replace(split.batch(index, split.epoch_views(0, index)), **known)
            eager.engine.set_learning_rate(0.01)
            eager.engine.step(batch, draws)
    place.finish()


def test_a_step_that_waits_is_found(place: Place) -> None:
    eager = Run(place, losses=(Waiting(),), graph=False)
    batch: Batch = next(eager.stepper.split.train_batches(0, torch.arange(BATCH), BATCH))
    with pytest.raises(RuntimeError, match="synchronizing"), place.refuse_waiting():
        eager.engine.step(batch, make_draws(BATCH, seed=0, step=0, device=place.device))
    if place.is_cuda:  # a mode of CUDA's
        assert torch.cuda.get_sync_debug_mode() == 0


def test_a_run_goes_on_when_another_one_ends(place: Place) -> None:
    """An ended run's graph must not take memory away from the others, as only a GPU's could."""
    left, ended = Run(place, unix()), Run(place, unix())
    steps = left.steps()
    next(steps)
    ended.outcome()
    del ended
    gc.collect()
    place.finish()
    list(steps)
    assert_same(left.state(), Run(place, unix(), graph=False).outcome()[0])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet8 trained on the CPU, whose answers are the same everywhere."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    short = TrainConfig(epochs=1, device="cpu")
    run(
        RunConfig(ModelConfig("resnet8"), None, MethodConfig("student-alone"), data=DATA, train=short), folder
    )
    return folder


def configured(teacher: Path, device: torch.device, method: str, precision: str, graph: bool) -> RunConfig:
    """A resnet8 distilled from the teacher."""
    train = TrainConfig(
        epochs=1,
        batch_size=BATCH,
        device=device.type,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        graph=graph,
    )
    student, asked = ModelConfig("resnet8"), ModelConfig(str(teacher))
    return RunConfig(student, asked, MethodConfig(method), data=DATA, train=train)


def on_both(place: Place, teacher: Path, folder: Path, method: str, precision: str = "fp32") -> list[Path]:
    """Folders of an eager run on the CPU, and of one as captured where it is tested."""
    eager = configured(teacher, torch.device("cpu"), method, "fp32", graph=False)
    captured = configured(teacher, place.device, method, precision, graph=True)
    for name, config in (("eager", eager), ("captured", captured)):
        run(config, folder / name)
    return [folder / "eager", folder / "captured"]


def test_the_trainer_keeps_its_data_on_the_device_and_captures(
    place: Place, teacher: Path, tmp_path: Path
) -> None:
    config = configured(teacher, place.device, "unix", "auto", graph=True)
    trainer = start(config, RunFolder(tmp_path / "run"), "new", silent)
    data = trainer.resolved.data.train
    assert isinstance(data, MemorySplit)
    assert data.images.device.type == place.kind
    assert data.images.dtype == torch.uint8
    for _ in epoch_steps(trainer):
        pass
    assert trainer.stepper.captured is not None
    assert trainer.engine.tally.times_kept.device.type == place.kind
    assert trainer.engine.tally.losses()["loss"] > 0


def test_same_samples_are_chosen_on_both_devices(place: Place, teacher: Path, tmp_path: Path) -> None:
    """Draws are made on the CPU, so a random choice does not depend on the device."""
    kept = [
        json.loads((folder / "selection.json").read_text())
        for folder in on_both(place, teacher, tmp_path, "random")
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_run_follows_the_cpu_run(place: Place, precision: str, teacher: Path, tmp_path: Path) -> None:
    """The first epoch's loss agrees to the precision's rounding."""
    losses = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for folder in on_both(place, teacher, tmp_path, "kd", precision)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01 if precision == "fp32" else 0.1)


def test_unix_charges_every_image_on_a_gpu(place: Place, teacher: Path, tmp_path: Path) -> None:
    """The ledger counts what the step did: of 32 images in each of 4 batches, 24 are kept."""
    summary = run(configured(teacher, place.device, "unix", "fp32", graph=True), tmp_path / "run")
    assert summary["cost"]["images"]["scored"] == 128
    assert summary["cost"]["images"]["teacher_forwarded"] == 4 * 24


@pytest.mark.parametrize("workers", [0, 2])
def test_images_from_disk_become_the_same_pixels_on_the_device(
    place: Place, workers: int, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        noise = torch.randint(0, 256, (30 + i, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / f"{i}.png")
    split = load_data(DataConfig(f"folder:{tmp_path}", size=24, in_memory=False, workers=workers)).train
    order = torch.tensor([4, 1, 5, 0, 3])
    moved = split.to(place.device)
    pairs = zip(split.train_batches(2, order, 2), moved.train_batches(2, order, 2), strict=True)
    for expected, batch in pairs:
        assert batch.images.device.type == batch.index.device.type == batch.view.device.type == place.kind
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(batch.images.cpu(), expected.images, rtol=1e-6, atol=0)
        assert torch.equal(batch.index.cpu(), expected.index)
        assert torch.equal(batch.view.cpu(), expected.view)
