"""The Trainer that distils does what `Distiller.step` does by hand; everything but the loss is the Trainer's own."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from small import LENGTH, assert_same, bert, named, rows, texts, trained_by_hand, vit
from unixkd.errors import UserError
from unixkd.integrations.transformers import STATE_NAME, DistillationTrainer
from unixkd.method.ledger import ImageCounts
from unixkd.method.losses import KD, CrossEntropy
from unixkd.method.objective import Term
from unixkd.method.unix import kd, random, stale, unix

RATE = 0.5
KINDS = pytest.mark.parametrize(("make", "batch"), [(vit, named()), (bert, texts())], ids=["images", "text"])
BOTH = [Term("kd", KD()), Term("ce", CrossEntropy(), 0.5)]


def trainer_of(
    folder: Path, student: nn.Module, teacher: nn.Module, data: list[dict[str, Tensor]], **options: Any
) -> DistillationTrainer:
    """A Trainer that takes the data in order, with plain SGD at a constant rate."""
    names = {"method", "objective", "distiller_options", "callbacks", "compute_loss_func"}
    settings = {name: value for name, value in options.items() if name not in names}
    arguments = TrainingArguments(
        str(folder), **{
            "num_train_epochs": 1, "per_device_train_batch_size": 4, "train_sampling_strategy": "sequential",
            "max_grad_norm": 0.0, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
            "seed": 3, **settings,
        }
    )  # fmt: skip
    sgd = torch.optim.SGD(student.parameters(), RATE)
    constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)
    return DistillationTrainer(
        student, arguments, train_dataset=data, eval_dataset=data, optimizers=(sgd, constant), teacher=teacher,
        **{name: value for name, value in options.items() if name in names},
    )  # fmt: skip


def split(batch: dict[str, Tensor], size: int = 4) -> list[tuple[dict[str, Tensor]]]:
    """Batches in order, as arguments of `Distiller.step`."""
    count = len(batch["labels"])
    return [({name: t[at : at + size] for name, t in batch.items()},) for at in range(0, count, size)]


@KINDS
def test_training_is_the_distillers_steps(make, batch, tmp_path):
    student, teacher = make(1), make(2)
    expected, distiller = trained_by_hand(student, teacher, split(batch), RATE, objective=BOTH, seed=3)
    trainer = trainer_of(tmp_path, student, teacher, rows(batch), objective=BOTH)
    trainer.train()
    assert_same(student, expected)
    assert trainer.ledger == distiller.ledger
    assert trainer.ledger.images.trained == 12


def test_accumulated_batches_are_averaged(tmp_path):
    student, teacher = vit(1), vit(2)
    expected, _ = trained_by_hand(student, teacher, split(named()), RATE, together=2, seed=3)
    trainer_of(tmp_path, student, teacher, rows(named()), gradient_accumulation_steps=2).train()
    assert_same(student, expected)


class OutOfMemory(nn.Module):
    """A student whose training fails from its second step on, as long as it gets 10 images or more."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.steps = vit(1), 0

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        if torch.is_grad_enabled():
            self.steps += 1
            if self.steps > 1 and len(pixel_values) >= 10:
                raise RuntimeError("CUDA out of memory.")
        return self.student(pixel_values, labels=labels)


def test_after_running_out_of_memory_shares_are_of_the_smaller_batches(tmp_path):
    """16 images are tried first, then 14 and 12; of 12 three quarters, 9, fit. What was tried is not charged."""
    settings = {"per_device_train_batch_size": 16, "auto_find_batch_size": True}
    trainer = trainer_of(tmp_path, OutOfMemory(), vit(2), rows(named(48)), method=unix(), **settings)
    trainer.train()
    assert trainer.distiller.batch_size == 12
    assert trainer.ledger.images == ImageCounts(scored=48, teacher_forwarded=36, trained=36)


def test_resumed_with_another_batch_size_shares_are_of_it(tmp_path):
    def prepared(size: int, epochs: int) -> DistillationTrainer:
        settings = {"num_train_epochs": epochs, "save_strategy": "epoch", "per_device_train_batch_size": size}
        return trainer_of(tmp_path, bert(1), bert(2), rows(texts()), method=unix(), **settings)

    prepared(8, 1).train()
    resumed = prepared(4, 2)
    with pytest.warns(match="batches have 4 rows now, 8 before"):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.ledger.images.trained == 3 * resumed.ledger.seen // 4


@KINDS
def test_evaluation_and_prediction_are_the_trainers_own(make, batch, tmp_path):
    mine = trainer_of(tmp_path, make(1), make(2), rows(batch))
    plain = Trainer(make(1), mine.args, eval_dataset=rows(batch))
    mine.train()
    mine.model.load_state_dict(make(1).state_dict())
    steps = mine.distiller.steps
    assert mine.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])
    a, b = mine.predict(rows(batch)).predictions, plain.predict(rows(batch)).predictions
    assert (a == b).all()
    assert mine.distiller.steps == steps


def test_a_checkpoint_holds_the_student_alone_and_goes_on_exactly(tmp_path):
    def prepared(folder: str, student: nn.Module, epochs: int) -> DistillationTrainer:
        return trainer_of(
            tmp_path / folder, student, bert(2), rows(texts()), num_train_epochs=epochs, save_strategy="epoch"
        )

    unbroken = prepared("unbroken", bert(1), 2)
    unbroken.train()
    prepared("broken", bert(1), 1).train()
    folder = tmp_path / "broken" / "checkpoint-4"
    saved = load_file(folder / "model.safetensors")
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in bert(1).parameters())
    assert json.loads((folder / STATE_NAME).read_text())["steps"] == 4

    for where in (True, str(folder)):
        resumed = prepared("broken", bert(5), 2)
        resumed.train(resume_from_checkpoint=where)
        assert_same(resumed.model, unbroken.model)
        assert resumed.ledger == unbroken.ledger
        assert resumed.distiller.steps == 8
        rmtree(tmp_path / "broken" / "checkpoint-8")

    state = json.loads((folder / STATE_NAME).read_text())
    (folder / STATE_NAME).write_text(json.dumps({**state, "steps": 0}))
    other = prepared("broken", bert(5), 2)
    other.train(resume_from_checkpoint=True)
    with pytest.raises(AssertionError):  # other draws
        assert_same(other.model, unbroken.model)


def test_checkpoints_that_cannot_be_resumed(tmp_path):
    trainer = trainer_of(tmp_path, bert(1), bert(2), rows(texts()), save_strategy="epoch")
    trainer.train()
    folder = tmp_path / "checkpoint-4"
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the student's weights, such as classifier\.bias"):
        trainer_of(tmp_path, bert(1), bert(2), rows(texts())).train(resume_from_checkpoint=True)
    (folder / STATE_NAME).unlink()
    with pytest.raises(
        UserError, match=r"distiller\.json' cannot be read: .*only checkpoints of a DistillationTrainer"
    ):
        trainer_of(tmp_path, bert(1), bert(2), rows(texts())).train(resume_from_checkpoint=str(folder))


def test_logs_have_the_parts_of_the_loss_and_the_cost(tmp_path):
    trainer = trainer_of(tmp_path, vit(1), vit(2), rows(named()), objective=BOTH, logging_steps=2)
    trainer.train()
    first, second, last = trainer.state.log_history
    for logged in (first, second):
        assert logged["loss"] == pytest.approx(logged["loss_kd"] + 0.5 * logged["loss_ce"], abs=1e-4)
    assert first["loss_ce"] != second["loss_ce"]
    assert (first["images_scored"], second["images_scored"], last["images_scored"]) == (8, 16, 16)
    assert last["cost_backward_2x"] == trainer.ledger.relative_to_kd()["backward_2x"]


def test_a_teacher_with_a_tokenizer_of_its_own(tmp_path):
    """Its inputs pass the Trainer's sieve, reach it alone, and are no trouble in evaluation."""
    batch = texts()
    own = {
        "teacher_input_ids": batch["input_ids"].flip(1),
        "teacher_attention_mask": torch.ones(16, LENGTH).long(),
    }
    both = {**batch, **own, "nobody": batch["labels"]}
    seen: list[Tensor] = []
    teacher = bert(2)
    teacher.get_input_embeddings().register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    trainer = trainer_of(tmp_path, bert(1), teacher, rows(both), method=kd())
    trainer.train()
    trainer.evaluate()
    assert torch.equal(seen[-1], own["teacher_input_ids"][-4:])


def test_a_new_student_is_another_run(tmp_path):
    """`model_init` makes a student for each `train`."""
    trainer = trainer_of(tmp_path, vit(1), vit(2), rows(named()), method=random())
    trainer = DistillationTrainer(
        args=trainer.args,
        model_init=lambda: vit(1),
        train_dataset=rows(named()),
        teacher=vit(2),
        method=random(),
    )
    for _ in range(2):
        trainer.train()
        assert trainer.ledger.seen == 16
        assert trainer.distiller.student.bare().module is trainer.model


def test_mixed_precision_is_the_same_for_scoring_training_and_the_teacher(tmp_path):
    student, teacher = vit(1), vit(2)
    kinds: list[tuple[bool, torch.dtype]] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            student.classifier.register_forward_hook(lambda m, g, output: kinds.append((True, output.dtype)))
            teacher.classifier.register_forward_hook(lambda m, g, output: kinds.append((False, output.dtype)))

    trainer = trainer_of(tmp_path, student, teacher, rows(named(4)), bf16=True, callbacks=[Watch()])
    trainer.train()
    assert kinds[-3:] == [(True, torch.bfloat16), (False, torch.bfloat16), (True, torch.bfloat16)]


def test_mistakes_are_named(tmp_path):
    data = rows(named())
    with pytest.raises(UserError, match="label_smoothing_factor would have no effect"):
        trainer_of(tmp_path, vit(1), vit(2), data, label_smoothing_factor=0.1)
    with pytest.raises(UserError, match=r"compute_loss_func .* would have no effect"):
        trainer_of(tmp_path, vit(1), vit(2), data, compute_loss_func=lambda *a, **b: None)
    with pytest.raises(UserError, match="chooses each epoch's images before they are loaded"):
        trainer_of(tmp_path, vit(1), vit(2), data, method=stale())
    with pytest.raises(UserError, match="needs a teacher"):
        DistillationTrainer(vit(1), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
