"""The task for timm does what `Distiller.step` does by hand, and keeps timm's contract."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.task import resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from small import assert_same, images, net, trained_by_hand
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.integrations.timm import DistillationTask
from unixkd.method.losses import KD, CrossEntropy
from unixkd.method.objective import Term
from unixkd.method.unix import stale, unix

RATE = 0.5


def task(student: nn.Module | None = None, **options: object) -> DistillationTask:
    return DistillationTask(student or net(1), net(2), verbose=False, **options)


def train(task: DistillationTask, steps: int) -> None:
    """As timm's training loop: batches of 4 images, from the first."""
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), RATE)
    for start in range(0, 4 * steps, 4):
        pixels, labels = (each[start : start + 4] for each in images())
        task(pixels, labels)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_dictionary_is_the_distillers_step():
    student, teacher = net(1), net(2)
    objective = [Term("kd", KD()), Term("ce", CrossEntropy(), 0.5)]
    result = Distiller(copy.deepcopy(student), teacher, unix(), objective, seed=3).step(*images())
    given = DistillationTask(student, teacher, unix(), objective, seed=3, verbose=False)(*images())
    assert set(given) == {"loss", "output", "task_loss", "kd_loss"}
    torch.testing.assert_close(given["loss"], result.loss)
    torch.testing.assert_close(given["output"], result.outputs.logits)
    torch.testing.assert_close(given["task_loss"], result.parts["ce"])
    torch.testing.assert_close(given["kd_loss"], result.parts["kd"])


def test_training_is_the_distillers_steps():
    student, teacher = net(1), net(2)
    pixels, labels = images()
    batches = list(zip(pixels.split(4), labels.split(4), strict=True))
    expected, distiller = trained_by_hand(student, teacher, batches, RATE)
    mine = DistillationTask(student, teacher, verbose=False).train()
    train(mine, 4)
    assert_same(student, expected)
    assert mine.ledger == distiller.ledger
    assert not mine.teacher.training  # though task.train() reached it


def test_the_teacher_gets_the_normalisation_that_it_wants():
    student, teacher = net(1), net(2)
    student.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}
    teacher.pretrained_cfg = {"mean": (0.4,), "std": (0.2,)}
    seen: list[Tensor] = []
    teacher.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    mine = DistillationTask(student, teacher, verbose=False)
    pixels, labels = images()
    mine.distiller.step((pixels - 0.5) / 0.25, labels)
    mixed = Distiller(net(1), net(2)).step((pixels - 0.5) / 0.25, labels).mixed.images
    torch.testing.assert_close(seen[-1], (mixed * 0.25 + 0.5 - 0.4) / 0.2)
    assert "scale" not in mine.teacher.state_dict()

    teacher.pretrained_cfg = student.pretrained_cfg
    assert DistillationTask(student, teacher, verbose=False).teacher is teacher


def test_timms_checkpoints_hold_the_student_alone_and_go_on_exactly(tmp_path):
    unbroken = task().train()
    train(unbroken, 2)
    mine = copy.deepcopy(unbroken.get_trainable_module())
    optimizer = torch.optim.SGD(mine.parameters(), RATE)
    saver = CheckpointSaver(
        mine, optimizer, task=unbroken, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, metric=1.0)
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert set(saved["state_dict"]) == set(mine.state_dict())
    assert saved["task_state"]["distiller"]["steps"] == 2

    resumed = task(net(5)).train()
    assert resume_task_checkpoint(resumed, str(tmp_path / "last.pth.tar"), log_info=False) == 1
    train(unbroken, 2)
    train(resumed, 2)
    assert_same(resumed.get_trainable_module(), unbroken.get_trainable_module())
    assert resumed.ledger == unbroken.ledger


def test_an_average_of_the_student_is_kept():
    mine = task().train()
    mine.setup_ema(decay=0.5)
    before = copy.deepcopy(mine.get_trainable_module())
    train(mine, 1)
    mine.update_ema()
    average = mine.get_checkpoint_state(ema=True)["state_dict_ema"]
    assert set(mine.get_checkpoint_state(ema=True)) == {"state_dict_ema"}
    now = mine.get_trainable_module().state_dict()
    torch.testing.assert_close(average["0.weight"], (before[0].weight + now["0.weight"]).detach() / 2)


def test_compiled_networks_train_alike_and_cost_alike():
    plain, compiled = task().train(), task().train()
    assert compiled.compile(backend="eager") is compiled.get_eval_model()
    for mine in (plain, compiled):
        train(mine, 2)
    assert_same(plain.get_trainable_module(), compiled.get_trainable_module())
    assert plain.ledger == compiled.ledger
    assert plain.ledger.student_flops > 0


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_prepared_for_several_processes_the_wrapper_is_trained():
    plain, wrapped = task().train(), task().train()
    for mine in (plain, wrapped):
        train(mine, 1)
    assert wrapped.prepare_distributed() is wrapped
    assert isinstance(wrapped.distiller.student.module, DistributedDataParallel)
    assert wrapped.get_trainable_module() is wrapped.distiller.student.module
    for mine in (plain, wrapped):
        train(mine, 2)
    assert_same(plain.get_trainable_module(), wrapped.get_trainable_module().module)
    assert wrapped.ledger == plain.ledger
    assert wrapped.distiller.steps == 3
    assert set(wrapped.get_checkpoint_state()["state_dict"]) == set(net(1).state_dict())
    with wrapped.no_sync():
        assert not wrapped.get_trainable_module().require_backward_grad_sync


def test_mistakes_are_named():
    pixels, labels = images()
    with pytest.raises(UserError, match="targets must be class numbers: switch timm's mixup and cutmix off"):
        task()(pixels, nn.functional.one_hot(labels).float())
    with pytest.raises(UserError, match="only checkpoints of a DistillationTask can be resumed"):
        task().load_checkpoint_state(net(1).state_dict())
    with pytest.raises(UserError, match="chooses each epoch's images before they are loaded"):
        task(method=stale())
