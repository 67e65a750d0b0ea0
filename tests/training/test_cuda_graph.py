"""A captured step does what an eager one does, bit for bit, and making it leaves no trace.

There is no CUDA graph on a CPU, so a tape stands in for one: it records a step's operations once and
repeats them on the same memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from running import alone, distilled, metrics, untimed
from tape import Tape, with_rate_as_tensor
from unixkd.config import AnswersConfig, LossConfig, MethodConfig, RunConfig, TrainConfig
from unixkd.errors import UserError
from unixkd.method.draws import epoch_draws
from unixkd.training import build as training_build
from unixkd.training import cuda_graph, loss_scale
from unixkd.training.cuda_graph import CapturedStep, tables_of_epoch
from unixkd.training.display import Event, Note
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.optimizer import build_optimizer, learning_rate
from unixkd.training.run import end_epoch, epoch_steps, fit, run, start
from unixkd.training.run_folder import Mode, RunFolder
from unixkd.training.state import Run as TrainingRun

IMAGES, BATCH, EPOCHS = 68, 32, 2
"""Steps of 32, 32 and 4 images: fewer full ones than the warm-up has."""
EAGER = "steps run one by one, not as a CUDA graph: "


@dataclass
class Run:
    """A run whose learning rate is a tensor, as it is on a GPU, and what it noted."""

    config: RunConfig
    folder: Path
    record: Any = None
    mode: Mode = "new"
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trainer = start(self.config, RunFolder(self.folder), self.mode, self.keep)
        self.trainer.stepper.record = self.record
        self.engine = self.trainer.engine

    def keep(self, event: Event) -> None:
        if isinstance(event, Note) and event.text.startswith(EAGER):
            self.notes.append(event.text.removeprefix(EAGER))

    def finish(self) -> Run:
        fit(self.trainer)
        return self

    def outcome(self) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """All tensors that training has changed, and all figures."""
        state = {name: tensor.detach().clone() for name, tensor in self.engine.state().items()}
        records = [untimed(line) for line in metrics(self.trainer.folder.path)]
        return state, (records, self.trainer.ledger.state_dict(), self.engine.distiller.steps)


def differences(a: Run, b: Run) -> list[str]:
    """Names of what two runs do not have in common."""
    (mine, my_figures), (theirs, their_figures) = a.outcome(), b.outcome()
    assert mine.keys() == theirs.keys()
    names = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    return names + ["figures"] * (my_figures != their_figures)


@pytest.fixture(autouse=True)
def rate_as_tensor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `build_optimizer` makes it for a GPU; afterwards the process is as it was."""

    def build(config: TrainConfig, *rest: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(config, *rest)
        return with_rate_as_tensor(optimizer) if config.fused else optimizer

    monkeypatch.setattr(training_build, "build_optimizer", build)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    run(alone(epochs=1, lr=0.02), folder)
    return folder


def short(config: RunConfig, **changes: Any) -> RunConfig:
    data = replace(config.data, limit=IMAGES)
    train = replace(config.train, epochs=EPOCHS, batch_size=BATCH, eval_every=EPOCHS)
    return replace(config, data=data, train=train, **changes)


def limited(config: RunConfig, images: int) -> RunConfig:
    return replace(config, data=replace(config.data, limit=images))


def plain(teacher: Path, **train: Any) -> RunConfig:
    return short(distilled(teacher, "kd", **train))


def stored(config: RunConfig, fill: str) -> RunConfig:
    """With two views of each image, answered from a store of its own; `RUN` is the run's folder."""
    answers = AnswersConfig("RUN", fill=fill)  # type: ignore[arg-type]
    return replace(config, answers=answers, data=replace(config.data, views=2))


def placed(config: RunConfig, folder: Path) -> RunConfig:
    """The same with its store beside its folder."""
    if config.answers.path is None:
        return config
    return replace(config, answers=replace(config.answers, path=f"{folder}-answers"))


STEP_CURVE = MethodConfig(curve="step", mix_from=0.25)
EVERY_LOSS = LossConfig(kd=1.0, ce=0.5, dkd=0.25, dist=2.0, at=10.0, sp=30.0)
FULL = 2 * BATCH
"""Images of an epoch without a short last batch."""
CASES: dict[str, Callable[[Path], RunConfig]] = {
    "kd": plain,
    "kd, nesterov, onecycle": lambda t: plain(t, nesterov=True, schedule="onecycle", clip_norm=0.5),
    "kd, no momentum": lambda t: plain(t, momentum=0.0, channels_last=False),
    "kd, answers": lambda t: stored(plain(t), "epoch"),
    "unix, micro-batches": lambda t: short(distilled(t, micro_batch=10, clip_norm=1.0)),
    "unix": lambda t: short(distilled(t)),
    "unix, adamw, averaged": lambda t: short(
        distilled(t, optimizer="adamw", lr=1e-3, warmup_epochs=1.5, ema_decay=0.75)
    ),
    "unix, answers": lambda t: stored(short(distilled(t, STEP_CURVE, clip_norm=1.0)), "epoch"),
    "unix, bf16": lambda t: short(distilled(t, precision="bf16", teacher_precision="bf16")),
    "unix, every loss": lambda t: short(
        distilled(t, MethodConfig(per_sample_lambda=True, scoring_mode="eval")), loss=EVERY_LOSS
    ),
    "hard": lambda t: short(distilled(t, "hard", nesterov=True)),
    "kd, full batches, answers": lambda t: stored(limited(plain(t), FULL), "epoch"),
    "random": lambda t: short(distilled(t, "random", schedule="multistep")),
    "unix, ramp": lambda t: short(distilled(t, MethodConfig("unix", keep_end=0.25, steepness_end=100.0))),
    "random, ramp": lambda t: short(distilled(t, MethodConfig("random", keep_end=0.74))),
    "stale": lambda t: short(distilled(t, "stale")),
    "unix, scored small": lambda t: short(distilled(t, MethodConfig(scoring_mode="eval", scoring_size=0.5))),
    "kd, smaller at first": lambda t: short(distilled(t, MethodConfig("kd", size=0.5, size_end=1.0))),
    "mixup, mixed answers": lambda t: stored(
        short(distilled(t, MethodConfig("mixup", mixes_answers=True))), "epoch"
    ),
    "infobatch, answers": lambda t: stored(short(distilled(t, "infobatch")), "epoch"),
    "student-alone": lambda _: short(alone(optimizer="adamw", lr=1e-3, clip_norm=0.1)),
}

FAST = ("kd, answers", "unix, adamw", "unix, every loss", "hard, averaged", "unix, ramp", "student-alone")
"""Between them they have most of what the others have one by one."""


def pair(config: RunConfig, tmp_path: Path) -> Iterator[Run]:
    """The same run eagerly and captured, not yet begun."""
    for name, record in (("eager", None), ("captured", Tape())):
        yield Run(placed(config, tmp_path / name), tmp_path / name, record)


# Captured is eager


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_captured_run_is_the_eager_one(name, teacher, tmp_path):
    eager, captured = (r.finish() for r in pair(CASES[name](teacher), tmp_path))
    assert differences(captured, eager) == []
    twice = ("unix, ramp", "kd, smaller at first")
    assert captured.record.recordings == (EPOCHS if name in twice else 1)
    visited = [
        line["selection"]["visited"] if line["selection"] else 1
        for line in metrics(captured.trainer.folder.path)
    ]
    assert captured.record.replays == sum(round(share * IMAGES) // BATCH for share in visited)
    assert captured.notes == eager.notes == []
    if "answers" in name:
        assert captured.trainer.ledger.images.teacher_cached > 0


def test_a_captured_run_in_fp16_skips_the_steps_that_the_eager_one_skips(teacher, tmp_path, monkeypatch):
    """UNIX, clipped and averaged, from a scale at which the first of the 10 steps overflow."""
    start_at = 2.0**26
    monkeypatch.setattr(loss_scale, "INITIAL", start_at)
    halves = {"precision": "fp16", "teacher_precision": "fp16"}
    config = short(distilled(teacher, **halves, ema_decay=0.75, clip_norm=1.0))
    config = replace(config, train=replace(config.train, batch_size=16))
    eager, captured = (r.finish() for r in pair(config, tmp_path))
    assert differences(captured, eager) == []
    assert captured.notes == []
    skipped = sum(line["skipped_steps"] for line in metrics(captured.folder))
    assert 1 <= skipped < 9
    assert captured.engine.scale is not None
    assert captured.engine.scale.scale == start_at / 2**skipped


def test_a_step_is_captured_once_for_each_size(teacher, tmp_path):
    config = short(distilled(teacher, MethodConfig("kd", size=0.5, size_end=1.0)))  # 4, 6 and 8 pixels
    config = limited(replace(config, train=replace(config.train, epochs=8, eval_every=8)), BATCH)
    captured = Run(config, tmp_path / "run", Tape()).finish()
    assert captured.record.recordings == 3


@pytest.mark.parametrize("name", ["unix, adamw, averaged", "kd, answers"])
def test_a_captured_run_goes_on_from_a_checkpoint_like_an_eager_one(name, teacher, tmp_path):
    config = CASES[name](teacher)
    # One view, so that the part of an epoch that is lost has asked the teacher for nothing.
    config = replace(config, train=replace(config.train, epochs=3), data=replace(config.data, views=1))
    eager, captured = pair(config, tmp_path)
    eager.finish()
    for _ in epoch_steps(captured.trainer):
        pass
    end_epoch(captured.trainer)
    steps = epoch_steps(captured.trainer)
    for _ in range(2):  # into the second epoch
        next(steps)
    again = Run(captured.config, captured.folder, Tape(), "resume").finish()
    assert differences(again, eager) == []
    assert (again.record.recordings, again.record.replays) == (1, 2 * 2)


def test_what_a_capture_takes_is_no_training_time(teacher, tmp_path, monkeypatch):
    """On a clock that hardly moves but while the step is recorded."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: 1e-6 * next(ticks))

    class Slow(Tape):
        def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
            nonlocal ticks
            ticks = itertools.count(40_000_000)
            return super().__call__(body)

    trainer = Run(plain(teacher), tmp_path / "run", Slow()).finish().trainer
    assert trainer.seconds == pytest.approx({"setup": 40, "train": 0, "evaluate": 0, "teacher": 0}, abs=0.01)


def test_each_replay_has_the_learning_rate_of_its_step(teacher, tmp_path):
    captured = Run(plain(teacher, schedule="onecycle"), tmp_path / "run", Tape())
    rates = []
    for _ in range(EPOCHS):
        for _ in epoch_steps(captured.trainer):
            (group,) = captured.engine.optimizer.param_groups
            rates.append(group["lr"].item())
        end_epoch(captured.trainer)
    expected = [learning_rate(captured.config.train, step, 3) for step in range(3 * EPOCHS)]
    assert rates == torch.tensor(expected).tolist()
    assert len(set(rates)) == len(rates)


def test_the_epochs_tables_by_hand():
    draws = epoch_draws(5, 2, seed=0, first_step=0, per_sample_lambda=True)
    index, view, answers = torch.tensor([4, 0, 3, 1, 2]), torch.arange(5), torch.rand(5, 3)
    columns = {"index": index, "view": view, **vars(draws), "answers": answers}
    tables = tables_of_epoch(columns, [0.5, 0.25], 2)
    assert tables["index"].tolist() == [[4, 0], [3, 1]]
    assert tables["view"].tolist() == [[0, 1], [2, 3]]
    assert tables["lr"].tolist() == [0.5, 0.25]
    assert torch.equal(tables["noise"], draws.noise[:4].view(2, 2))
    assert torch.equal(tables["answers"], answers[:4].view(2, 2, 3))


def test_another_epoch_of_fewer_steps_is_loaded_in_place(tmp_path):
    made = Run(short(alone()), tmp_path / "run")
    step = captured_step(made.engine, made.trainer, Tape())
    before, memory = step.tables["index"].clone(), step.tables["index"].data_ptr()
    index = torch.arange(BATCH).flip(0)
    columns = {"index": index, "view": index, **vars(epoch_draws(BATCH, BATCH, seed=1, first_step=0))}
    step.load(tables_of_epoch(columns, [0.2], BATCH), done=1)
    assert step.tables["index"].data_ptr() == memory
    assert torch.equal(step.tables["index"], torch.stack([index, before[1]]))
    assert step.tables["lr"].tolist() == torch.tensor([0.2, 0.05]).tolist()
    assert step.counter.item() == 1


# No trace


def snapshot(engine: Engine) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in engine.state().items()}


def captured_step(engine: Engine, trainer: TrainingRun, record: Any) -> CapturedStep:
    """A captured step of a run's first epoch."""
    index = torch.arange(2 * BATCH)
    draws = epoch_draws(len(index), BATCH, seed=0, first_step=0)
    split = trainer.resolved.data.train
    columns = {"index": index, "view": split.epoch_views(0, index), **vars(draws)}
    return CapturedStep(engine, split, tables_of_epoch(columns, [0.1, 0.05], BATCH), record)


@pytest.mark.parametrize("stepped", [False, True], ids=["fresh", "after an epoch"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_making_a_captured_step_leaves_no_trace(optimizer, stepped, tmp_path):
    made = Run(short(alone(optimizer=optimizer)), tmp_path / "run")
    if stepped:
        for _ in epoch_steps(made.trainer):
            pass
    before = snapshot(made.engine)
    step = captured_step(made.engine, made.trainer, Tape())
    after = snapshot(made.engine)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(not after[name].any() for name in after.keys() - before.keys())
    assert (after.keys() == before.keys()) == stepped
    assert not step.counter.any()
    assert all(p.grad is None for p in made.engine.student.parameters())
    step.replay()
    moved = [name for name, tensor in snapshot(made.engine).items() if not torch.equal(tensor, after[name])]
    assert {"net.fc.weight", "net.bn1.running_mean", "tally.loss", "times_kept"} <= set(moved)
    assert step.counter.item() == 1


def test_a_replay_adds_to_the_same_histogram(teacher, tmp_path):
    """Tables made in the warm-up begin at 0 and stay the same objects; two replays count their images."""
    made = Run(short(distilled(teacher, "unix")), tmp_path / "run")
    step = captured_step(made.engine, made.trainer, Tape())
    tables = {name: made.engine.tally.sums[f"histogram.{name}"] for name in ("seen", "kept")}
    assert not any(table.any() for table in tables.values())
    for number in (1, 2):
        step.replay()
        assert tables["seen"].sum() == number * BATCH
        assert tables["kept"].sum() == number * BATCH * 3 // 4
    made.engine.tally.start_epoch()
    assert all(made.engine.tally.sums[f"histogram.{name}"] is table for name, table in tables.items())
    assert not any(table.any() for table in tables.values())


def test_without_restoring_the_runs_differ(teacher, tmp_path, monkeypatch):
    """The negative control of all comparisons here."""
    monkeypatch.setattr(CapturedStep, "restore", lambda step, before: step.counter.zero_())
    eager, captured = (r.finish() for r in pair(plain(teacher), tmp_path))
    found = differences(captured, eager)
    assert {"net.fc.weight", "net.bn1.running_mean", "optimizer.0.momentum_buffer", "times_kept"} <= set(
        found
    )
    assert "figures" in found


def test_a_learning_rate_on_the_host_would_stand_still(teacher, tmp_path, monkeypatch):
    """The negative control of the tape."""
    monkeypatch.setattr(cuda_graph, "refuses_changes", lambda body, _device: body)
    monkeypatch.setattr(training_build, "build_optimizer", build_optimizer)
    eager, captured = (r.finish() for r in pair(plain(teacher), tmp_path))
    assert "net.fc.weight" in differences(captured, eager)


def test_a_learning_rate_on_the_host_is_seen_to_change(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(training_build, "build_optimizer", build_optimizer)
    eager, other = (r.finish() for r in pair(plain(teacher, schedule="onecycle"), tmp_path))
    assert differences(other, eager) == []
    (note,) = other.notes
    assert note.startswith(
        "the step's operations change from step to step: aten._fused_sgd_.default takes 0."
    )


# Where it cannot be


def failing(error: BaseException) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A recorder that gives up after two steps."""

    def record(body: Callable[[], None]) -> Callable[[], None]:
        body()
        body()
        raise error

    return record


def eager_after(record: Any, config: RunConfig, tmp_path: Path) -> Run:
    """A run that could not be captured and is the eager one all the same."""
    eager, other = (Run(placed(config, tmp_path / n), tmp_path / n) for n in ("eager", "other"))
    other.trainer.stepper.record = record
    assert differences(other.finish(), eager.finish()) == []
    assert eager.notes == []
    return other


@pytest.mark.parametrize(
    ("message", "reason"),
    [("not permitted when capturing\nmore\nof it", "not permitted when capturing"), ("", "RuntimeError")],
)
def test_an_error_in_the_recording_is_one_line_and_the_run_goes_on(message, reason, teacher, tmp_path):
    other = eager_after(failing(RuntimeError(message)), short(distilled(teacher)), tmp_path)
    assert other.notes == [reason]


def test_an_error_in_the_middle_of_a_step_is_undone(teacher, tmp_path, monkeypatch):
    """After the second step's optimiser, before its sums."""
    add, calls = EpochStats.add, []

    def broken(tally: EpochStats, *rest: Any) -> None:
        if tally is other.engine.tally:
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("broken")
        add(tally, *rest)

    eager, other = pair(plain(teacher), tmp_path)
    monkeypatch.setattr(EpochStats, "add", broken)
    assert differences(other.finish(), eager.finish()) == []
    assert other.notes == ["broken"]
    assert len(calls) == 2 + 3 * EPOCHS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("the scores are not finite")])
def test_other_errors_pass_through_and_leave_the_state_as_it_was(error, tmp_path):
    made = Run(short(alone()), tmp_path / "run", failing(error))
    before = snapshot(made.engine)
    with pytest.raises(type(error)):
        next(epoch_steps(made.trainer))
    after = snapshot(made.engine)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert made.notes == []


OBSTACLES: dict[str, Callable[[Path], RunConfig]] = {
    "without the fused optimiser the learning rate lies on the host": lambda t: plain(t, fused=False),
    "the teacher's stored answers are filled as they are needed": lambda t: stored(plain(t), "lazy"),
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_what_cannot_be_captured_runs_eagerly_and_says_why_once(reason, teacher, tmp_path):
    tape = Tape()
    other = eager_after(tape, OBSTACLES[reason](teacher), tmp_path)
    assert other.notes == [reason]
    assert tape.recordings == 0


@pytest.mark.parametrize(("graph", "recorded"), [(False, True), (True, False)], ids=["not wanted", "a CPU"])
def test_no_graph_is_made_nor_a_word_said_where_none_is_wanted(graph, recorded, teacher, tmp_path):
    tape = Tape()
    made = Run(plain(teacher, graph=graph), tmp_path / "run", tape if recorded else None).finish()
    assert made.notes == []
    assert tape.recordings == 0
    assert made.trainer.stepper.captured is None
