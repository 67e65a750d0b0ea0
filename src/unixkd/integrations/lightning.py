"""Distillation with Lightning: a module to train, and a callback that shows what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from unixkd.distiller import Distiller
from unixkd.errors import UserError, missing_extra
from unixkd.integrations import costs
from unixkd.method.method import Method
from unixkd.method.named_inputs import as_inputs
from unixkd.method.objective import Objective

try:
    import lightning as L
except ImportError as error:
    raise missing_extra("lightning", "lightning", "Lightning modules") from error


class DistillationModule(L.LightningModule):
    """A student and how it is distilled; `trainer.fit(module, loader)` trains it.

    Batches are a tensor of images, a mapping as transformers' networks take it, or a pair of one of these and labels;
    override `unpack` for others. Logged are `train_loss`, each of its parts, and in validation `val_loss`
    (cross-entropy) and `val_accuracy`.

    Args:
        student: what is trained, and all that a checkpoint holds
        teacher: is frozen, follows the student to its device and precision, and is no part of this module
        method: default `unix()`
        objective: default KD at temperature 4
        optimizer: makes the optimiser from the parameters, such as `partial(torch.optim.AdamW, lr=1e-3)`; None: a
            subclass overrides `configure_optimizers`
        **options: further arguments of `unixkd.Distiller`; `rank` is set here

    Raises:
        UserError: as `Distiller` does; no optimiser; a batch of another form
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: Method | None = None,
        objective: Objective | None = None,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.student = student
        self.optimizer = optimizer
        # The teacher is in the distiller, which is no nn.Module: no checkpoint, no optimiser and no DDP finds it.
        self.distiller = Distiller(student, teacher, method, objective, **options)
        self.distiller.check_method()

    def configure_optimizers(self) -> Any:
        """What the factory makes of the student's parameters."""
        if self.optimizer is None:
            raise UserError(
                "DistillationModule has no optimiser: give optimizer= or override configure_optimizers"
            )
        return self.optimizer(self.student.parameters())

    def unpack(self, batch: Any) -> dict[str, Any]:
        """A batch as arguments of `Distiller.step`: inputs, labels, and where a method asks index and view."""
        if isinstance(batch, Tensor | Mapping):
            return {"inputs": batch}
        if isinstance(batch, tuple | list) and len(batch) in (1, 2):
            return dict(zip(("inputs", "labels"), batch, strict=False))
        raise UserError(
            f"a batch is a tensor, a mapping or (inputs, labels), not a {type(batch).__name__}: override unpack"
        )

    def on_fit_start(self) -> None:
        """Take the teacher along, and let each process draw for itself."""
        self.distiller.rank = self.global_rank
        if self.distiller.teacher is not None:
            self.distiller.teacher.network.module.to(self.device, self.dtype)
        # from_pretrained gives networks in eval mode, and Lightning leaves modes alone; so do we where only some
        # parts are in eval mode, for these were frozen on purpose.
        if not any(module.training for module in self.student.modules()):
            self.student.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of the method; Lightning does the backward, the optimiser and the accumulation."""
        result = self.distiller.step(**self.unpack(batch))
        parts = {f"train_{name}": value for name, value in result.parts.items()}
        self.log_dict({"train_loss": result.loss.detach(), **parts}, batch_size=result.counts.trained)
        return result.loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The student alone on labelled inputs."""
        logits, labels = self._answer(batch)
        if labels is None:
            raise UserError("validation needs labels, and the batch has none")
        values = {
            "val_loss": F.cross_entropy(logits.float(), labels),
            "val_accuracy": (logits.argmax(1) == labels).float().mean(),
        }
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(labels))

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """The student's logits `[N, classes]`."""
        return self._answer(batch)[0]

    def _answer(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """The student's logits on a batch, and its labels."""
        given = self.unpack(batch)
        inputs, labels = as_inputs(given["inputs"])
        return self.distiller.student.bare()(inputs).logits, given.get("labels", labels)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The student, as it is."""
        return self.student(*inputs, **named)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Steps and ledger, so that a resumed run draws and counts on."""
        checkpoint["distiller"] = self.distiller.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint stood."""
        if "distiller" not in checkpoint:
            raise UserError(
                "this checkpoint is none of a DistillationModule: it does not say how far its run was"
            )
        self.distiller.load_state_dict(checkpoint["distiller"])


class LedgerCallback(L.Callback):
    """Shows what distillation costs: to the loggers after each epoch, on the terminal at the end.

    Works with any module that has a `Distiller` as its `distiller`, one of your own too.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the images through each forward and the cost relative to plain KD's."""
        pl_module.log_dict(costs(pl_module.distiller.ledger))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the ledger of the first process."""
        trainer.print(pl_module.distiller.ledger)
