"""Distillation with the Trainer of transformers, for images and for text."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unixkd.distiller import Distiller
from unixkd.errors import UserError, missing_extra, read_json
from unixkd.integrations import costs, train_through
from unixkd.method.ledger import Ledger
from unixkd.method.method import Method
from unixkd.method.named_inputs import TEACHERS
from unixkd.method.objective import Objective
from unixkd.run_files import write

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise missing_extra("transformers", "transformers", "Trainers that distil") from error

STATE_NAME = "distiller.json"
"""The file beside saved weights with the distiller's steps and ledger."""

_AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}


class DistillationTrainer(Trainer):
    """A Trainer that distils, or a mixin for your own: `class Mine(DistillationTrainer, MyTrainer)`.

    Training goes through a `Distiller`; evaluation, prediction and saving are the Trainer's own. Logs get the parts of
    the loss and the cost so far. The loss is a mean over a batch's kept rows; accumulated batches count alike.

    Args:
        *args, **kwargs: of the Trainer
        teacher, method, objective: as of `unixkd.Distiller`; the teacher moves to the Trainer's device and is not saved
        distiller_options: further arguments of `unixkd.Distiller`; default: the Trainer's seed, and its mixed precision
            for the teacher too

    Raises:
        UserError: as `Distiller` does; a loss that the objective would replace; a checkpoint of an ordinary Trainer
    """

    def __init__(
        self,
        *args: Any,
        teacher: nn.Module | None = None,
        method: Method | None = None,
        objective: Objective | None = None,
        distiller_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise UserError(
                "compute_loss_func and label_smoothing_factor would have no effect: put your losses into objective"
            )
        # So that the Trainer divides the loss, each batch's mean, by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False
        if teacher is not None:
            teacher.to(self.args.device)
        self._teacher = teacher
        self._options = {
            "method": method,
            "objective": objective,
            "seed": self.args.seed,
            "teacher_dtype": _AMP.get(str(self.accelerator.mixed_precision)),
            **(distiller_options or {}),
        }
        self._start: dict[str, Any] | None = None
        self._parts: Counter[str] = Counter()
        self._unlogged_steps = 0
        self._build_distiller()
        self.add_callback(_Begin(self))

    def _build_distiller(self) -> None:
        self._student = self.model
        self.distiller = Distiller(self.model, self._teacher, **self._options)
        self.distiller.check_method()

    @property
    def ledger(self) -> Ledger:
        """Images that this process scored, asked of the teacher and trained; cost against plain KD."""
        return self.distiller.ledger

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint with its draws and its ledger."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        is_path = isinstance(resume_from_checkpoint, str)
        self._start = read_state(Path(str(resume_from_checkpoint))) if is_path else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def begin(self) -> None:
        """Start, also anew with smaller batches after running out of memory: what was tried before is not charged."""
        if self._student is not self.model:  # made anew by model_init: another run
            self._build_distiller()
        if self._start is None:
            self._start = self.distiller.state_dict()
        else:
            self.distiller.load_state_dict(self._start)
        processes = self.args.world_size if self.accelerator.split_batches else 1
        self.distiller.expect_batches(self._train_batch_size // processes)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A step of the method in training, its outputs those of the k rows trained on; else the student's own loss."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        train_through(self.distiller, model, self.args.process_index)
        result = self.distiller.step(inputs)
        self._parts.update(result.parts)
        self._unlogged_steps += 1
        outputs = {"loss": result.loss, "logits": result.outputs.logits}
        return (result.loss, outputs) if return_outputs else result.loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, without the inputs that are the teacher's alone."""
        inputs = {name: tensor for name, tensor in inputs.items() if not name.startswith(TEACHERS)}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        """The Trainer drops columns of the data that are no argument of the student; keep those of the teacher."""
        is_first_call = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if is_first_call and self._teacher is not None:
            arguments = inspect.signature(self._teacher.forward).parameters
            self._signature_columns += [TEACHERS + name for name in arguments]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the training loss its parts, as means since the last log, and the cost so far."""
        if "loss" in logs and self._unlogged_steps:
            logs |= {
                f"loss_{name}": float(value) / self._unlogged_steps for name, value in self._parts.items()
            }
            self._parts.clear()
            self._unlogged_steps = 0
        if "loss" in logs or "train_loss" in logs:
            logs |= costs(self.ledger)
        super().log(logs, *args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise where a checkpoint lacks weights: the Trainer only warns, and goes on with random ones."""
        super()._issue_warnings_after_load(load_result)
        not_saved = getattr(self.model, "_keys_to_ignore_on_save", None) or ()
        if missing := set(load_result.missing_keys) - set(not_saved):
            raise UserError(
                f"the checkpoint lacks {len(missing)} of the student's weights, such as {min(missing)}: it is of "
                "another network, or transformers has saved it under names that its Trainer does not read"
            )

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save the student, and beside it the distiller's steps and ledger."""
        super().save_model(output_dir, *args, **kwargs)
        if self.args.should_save:
            state = json.dumps(self.distiller.state_dict())
            write(Path(output_dir or self.args.output_dir) / STATE_NAME, state)


class _Begin(TrainerCallback):
    """Tells a trainer that its training begins; the Trainer has no method for this."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The distiller's state in a checkpoint's folder; an error where it is missing or cannot be read."""
    try:
        return read_json(checkpoint / STATE_NAME)
    except UserError as error:
        raise UserError(
            f"{error}; only checkpoints of a DistillationTrainer can be resumed: load others as the student's weights"
        ) from None
