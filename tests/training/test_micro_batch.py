"""Steps in parts: the gradient of the whole, less memory, the same bill."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from running import alone, distilled, make_teacher, metrics, summary
from slow import RowCounter, TinyNet, images_of, labels_of
from unixkd.config import TrainConfig
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import Batch
from unixkd.method.draws import make_draws
from unixkd.method.losses import KD, AttentionTransfer, CrossEntropy
from unixkd.method.method import Method
from unixkd.method.objective import Term
from unixkd.method.unix import kd, mixup, random, unix
from unixkd.training.checks import check_train
from unixkd.training.engine import Engine
from unixkd.training.epoch_stats import EpochStats
from unixkd.training.run import run

N = 10
ROW_BY_ROW = [
    Term("kd", KD()),
    Term("ce", CrossEntropy(0.1), 0.5),
    Term("at", AttentionTransfer(("stem", "body"), ("stem", "body")), 0.5),
]


def engine_of(method: Method, micro_batch: int | None, *, frozen: bool) -> Engine:
    student, teacher = TinyNet(seed=1).double(), TinyNet(width=6, seed=2).double()
    distiller = Distiller(student, teacher, method, ROW_BY_ROW, batch_size=N)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    engine = Engine(
        distiller,
        optimizer,
        EpochStats(torch.zeros(N, dtype=torch.int32)),
        clip_norm=1.0,
        micro_batch=micro_batch,
    )
    distiller.measure((3, 8, 8))
    for module in student.modules():
        if frozen and isinstance(module, nn.BatchNorm2d):
            module.eval()
    return engine


def steps(engine: Engine) -> None:
    for step in range(3):
        batch = Batch(images_of(N, step).double(), labels_of(N, seed=step), torch.arange(N))
        engine.tally.count(engine.step(batch, make_draws(N, seed=0, step=step)).counts)


@pytest.mark.parametrize("method", [kd(), unix(), random(), mixup()], ids=lambda method: method.name)
def test_losses_of_rows_add_up_to_those_of_the_batch(method):
    """BatchNorm, which looks across rows, by its running statistics."""
    whole, parts = (engine_of(method, size, frozen=True) for size in (None, 4))
    steps(whole)
    steps(parts)
    for name, value in whole.student.state_dict().items():
        torch.testing.assert_close(parts.student.state_dict()[name], value, rtol=1e-10, atol=1e-12, msg=name)
    assert parts.tally.losses() == {
        name: pytest.approx(value, rel=1e-9) for name, value in whole.tally.losses().items()
    }
    assert parts.tally.times_kept.tolist() == whole.tally.times_kept.tolist()


def test_parts_are_even_and_each_is_normalised_by_itself():
    engine = engine_of(kd(), 4, frozen=False)
    rows = RowCounter(engine.student)
    slow = engine_of(kd(), None, frozen=False)
    batch = Batch(images_of(N).double(), labels_of(N), torch.arange(N))
    engine.step(batch, make_draws(N, seed=0, step=0))
    assert rows.rows == [4, 3, 3]
    slow.optimizer.zero_grad()
    for start, stop in ((0, 4), (4, 7), (7, 10)):
        part = Batch(batch.images[start:stop], batch.labels[start:stop], batch.index[start:stop])
        loss = slow.distiller.run(part, make_draws(stop - start, seed=0, step=0)).loss
        (loss * (stop - start) / N).backward()
    torch.nn.utils.clip_grad_norm_(slow.student.parameters(), 1.0)
    slow.optimizer.step()
    for name, value in slow.student.state_dict().items():
        torch.testing.assert_close(engine.student.state_dict()[name], value, msg=name)


def test_activations_of_a_part_are_gone_before_the_next_one():
    """Of 10 rows in parts of at most 4, never more than 4 are held for a backward."""
    engine = engine_of(kd(), 4, frozen=False)
    rows = []

    def pack(tensor):
        if tensor.shape[-2:] == (8, 8):
            rows.append(len(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        steps(engine)
    assert max(rows) == 4


def test_a_run_in_parts_has_the_same_bill(tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    for name, size in (("whole", None), ("parts", 8)):
        run(distilled(teacher, "unix", micro_batch=size), tmp_path / name)
    whole, parts = (summary(tmp_path / name) for name in ("whole", "parts"))
    assert parts["cost"] == whole["cost"]
    assert metrics(tmp_path / "parts")[-1]["loss"] != metrics(tmp_path / "whole")[-1]["loss"]  # BatchNorm
    assert metrics(tmp_path / "parts")[-1]["loss"] == pytest.approx(
        metrics(tmp_path / "whole")[-1]["loss"], rel=0.2
    )


def test_too_small_a_part_is_refused():
    assert alone(micro_batch=4).train.micro_batch == 4
    with pytest.raises(UserError, match="micro_batch must be at least 4, got 3"):
        check_train(TrainConfig(micro_batch=3))
