"""The adapter for Lightning does what `Distiller.step` does by hand, and leaves the teacher out of everything saved."""

from __future__ import annotations

import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder
from torch import nn
from torch.utils.data import DataLoader

from several import together
from small import as_lists, assert_same, bert, images, named, net, rows, texts, trained_by_hand, vit
from unixkd.errors import UserError
from unixkd.integrations.lightning import DistillationModule, LedgerCallback
from unixkd.method.ledger import ImageCounts
from unixkd.method.unix import kd, stale, unix
from unixkd.models import load_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(
        "ignore:.isinstance.treespec, LeafSpec.. is deprecated"
    ),  # of Lightning, to torch
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
RATE = 0.5
sgd = partial(torch.optim.SGD, lr=RATE)


def loader(batch: Any, size: int = 4) -> DataLoader:
    """Batches of this many samples, in order."""
    data = rows(batch) if isinstance(batch, dict) else list(zip(*batch, strict=True))
    return DataLoader(data, batch_size=size)


def fit(
    module: DistillationModule, batches: Any, checkpoint: Path | None = None, **settings: Any
) -> L.Trainer:
    settings = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **settings}
    trainer = L.Trainer(accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **settings)
    trainer.fit(module, batches, ckpt_path=checkpoint)
    return trainer


def split(batch: Any, size: int = 4) -> list[tuple[Any, ...]]:
    """The loader's batches as arguments of `Distiller.step`."""
    return [(each,) if isinstance(each, dict) else tuple(each) for each in loader(batch, size)]


@pytest.mark.parametrize(
    ("make", "batch"), [(net, images()), (vit, named()), (bert, texts())], ids=["images", "vit", "bert"]
)
def test_training_is_the_distillers_steps(make, batch):
    student, teacher = make(1), make(2)
    expected, distiller = trained_by_hand(student, teacher, split(batch), RATE, seed=3)
    module = DistillationModule(student, teacher, seed=3, optimizer=sgd)
    trainer = fit(module, loader(batch))
    assert_same(student, expected)
    assert module.distiller.ledger == distiller.ledger
    assert trainer.logged_metrics["train_kd"] == trainer.logged_metrics["train_loss"] > 0


def test_accumulated_batches_are_averaged():
    student, teacher = net(1), net(2)
    expected, _ = trained_by_hand(student, teacher, split(images()), RATE, together=2)
    fit(DistillationModule(student, teacher, optimizer=sgd), loader(images()), accumulate_grad_batches=2)
    assert_same(student, expected)


def test_a_checkpoint_holds_the_student_alone_and_goes_on_exactly(tmp_path):
    student, teacher = net(1), net(2)
    unbroken = DistillationModule(copy.deepcopy(student), teacher, optimizer=sgd)
    fit(unbroken, loader(images()), max_epochs=2)
    first = DistillationModule(copy.deepcopy(student), teacher, optimizer=sgd)
    fit(first, loader(images())).save_checkpoint(tmp_path / "first.ckpt")
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"student.{name}" for name in student.state_dict()}
    assert saved["distiller"]["steps"] == 4
    assert len(list(first.parameters())) == len(list(student.parameters()))
    loaded = net(6)
    load_weights(loaded, tmp_path / "first.ckpt")  # as a teacher, say
    assert_same(loaded, first.student)

    resumed = DistillationModule(net(5), teacher, optimizer=sgd)
    fit(resumed, loader(images()), tmp_path / "first.ckpt", max_epochs=2)
    assert_same(resumed.student, unbroken.student)
    assert resumed.distiller.ledger == unbroken.distiller.ledger
    assert resumed.distiller.steps == 8

    class Forgetful(DistillationModule):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            pass

    other = Forgetful(net(5), teacher, optimizer=sgd)
    fit(other, loader(images()), tmp_path / "first.ckpt", max_epochs=2)
    with pytest.raises(AssertionError):  # other draws
        assert_same(other.student, unbroken.student)


class Tuned(DistillationModule):
    """Its loader takes the batch size that a tuner finds."""

    batch_size = 2

    def train_dataloader(self) -> DataLoader:
        return loader(images(64), self.batch_size)

    def val_dataloader(self) -> DataLoader:  # which the tuner wants
        return loader(images(4))


@pytest.mark.filterwarnings("ignore:batches have")  # between trials
def test_shares_are_of_the_batch_size_that_a_tuner_finds_and_its_trials_are_not_charged():
    module = Tuned(net(1), net(2), unix(), optimizer=sgd)
    finder = BatchSizeFinder(max_trials=3, steps_per_trial=1)
    fit(module, None, callbacks=[finder])
    assert (module.batch_size, module.distiller.batch_size) == (8, 8)
    assert module.distiller.ledger.images == ImageCounts(scored=64, teacher_forwarded=48, trained=48)


def test_resumed_with_another_batch_size_shares_are_of_it(tmp_path):
    teacher = net(2)
    first = DistillationModule(net(1), teacher, optimizer=sgd)
    fit(first, loader(images(), 8)).save_checkpoint(tmp_path / "first.ckpt")
    resumed = DistillationModule(net(1), teacher, optimizer=sgd)
    with pytest.warns(match="batches have 4 rows now, 8 before"):
        fit(resumed, loader(images(), 4), tmp_path / "first.ckpt", max_epochs=2)
    assert resumed.distiller.ledger.images.trained == 12 + 12


def test_the_ledger_is_logged_each_epoch_and_printed_at_the_end(capsys):
    module = DistillationModule(net(1), net(2), unix(), optimizer=sgd)
    trainer = fit(module, loader(images()), callbacks=[LedgerCallback()])
    assert trainer.callback_metrics["images_scored"] == 16
    assert trainer.callback_metrics["images_trained"] == 12
    cost = module.distiller.ledger.relative_to_kd()["backward_1x"]
    assert float(trainer.callback_metrics["cost_backward_1x"]) == pytest.approx(cost)
    assert "16 images seen: 16 scored, 12 asked of the teacher, 12 trained" in capsys.readouterr().out


@pytest.mark.parametrize(("make", "batch"), [(net, images()), (vit, named())], ids=["images", "vit"])
def test_validation_and_prediction_are_the_students(make, batch):
    student = make(1)
    module = DistillationModule(student, make(2), kd(), optimizer=sgd)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (scores,) = trainer.validate(module, loader(batch, size=5), verbose=False)
    answers = torch.cat(trainer.predict(module, loader(batch, size=5)))
    student.eval()
    with torch.no_grad():
        inputs = images()[0]
        expected = student(inputs) if make is net else student(pixel_values=inputs).logits
    torch.testing.assert_close(answers, expected)
    right = (expected.argmax(1) == images()[1]).double().mean().item()
    assert scores["val_accuracy"] == pytest.approx(right)
    assert scores["val_loss"] == pytest.approx(nn.functional.cross_entropy(expected, images()[1]).item())


@pytest.mark.filterwarnings("ignore:Found 1 module")
def test_a_student_in_eval_mode_is_trained_and_frozen_parts_stay_frozen():
    whole, part = net(1).eval(), net(1)  # as from_pretrained gives it; as someone froze it
    part[1].eval()
    before = copy.deepcopy(part[1].running_mean)
    for student in (whole, part):
        fit(DistillationModule(student, net(2), kd(), optimizer=sgd), loader(images()))
    assert whole.training
    assert whole[1].training
    assert not part[1].training
    assert torch.equal(part[1].running_mean, before)


def test_the_teacher_follows_to_the_precision_of_the_student():
    module = DistillationModule(net(1), net(2), optimizer=sgd)
    fit(module, loader(images()), precision="bf16-true")
    assert module.distiller.teacher.network.module[0].weight.dtype == torch.bfloat16


def test_mistakes_are_named(tmp_path):
    student, teacher = net(1), net(2)
    with pytest.raises(UserError, match="needs a teacher"):
        DistillationModule(student)
    with pytest.raises(UserError, match="give optimizer= or override configure_optimizers"):
        fit(DistillationModule(student, teacher), loader(images()))
    with pytest.raises(UserError, match=r"a batch is a tensor, a mapping or .* not a tuple: override unpack"):
        DistillationModule(student, teacher).unpack((1, 2, 3))
    with pytest.raises(UserError, match="chooses each epoch's images before they are loaded"):
        DistillationModule(student, teacher, stale())
    with pytest.raises(UserError, match="not one of a DistillationModule"):
        DistillationModule(student, teacher).on_load_checkpoint({"state_dict": {}})
    with pytest.raises(UserError, match="validation needs labels"):
        DistillationModule(student, teacher).validation_step(images()[0], 0)


HALVES = (slice(0, 8), slice(8, 16))


def two_processes() -> tuple[dict[str, list], int]:
    """Train a student together on a batch each; its weights, and the images that this process saw."""
    module = DistillationModule(net(1), net(2), optimizer=sgd)
    own = loader([each[HALVES[int(os.environ["RANK"])]] for each in images()], 8)
    fit(module, own, strategy="ddp", devices=2, use_distributed_sampler=False)  # which would shuffle
    return as_lists(module.student), module.distiller.ledger.seen


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_their_own_draws():
    (first, seen), (second, _) = together(2, two_processes)
    assert seen == 8
    student, teacher = net(1), net(2)
    pixels, labels = images()
    trained = [
        trained_by_hand(student, teacher, [(pixels[half], labels[half])], RATE, rank=rank)[0]
        for rank, half in enumerate(HALVES)
    ]
    for name, weight in student.named_parameters():
        mean = (trained[0].state_dict()[name] + trained[1].state_dict()[name]) / 2
        torch.testing.assert_close(torch.tensor(first[name]), mean)
        assert first[name] == second[name] != weight.tolist()
