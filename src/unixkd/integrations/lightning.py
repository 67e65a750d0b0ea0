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
    """A student and its distillation; `trainer.fit(module, loader)` trains it.

    A batch is a tensor of images, a mapping as transformers' networks take it, or a pair of one of these and labels;
    override `unpack` for others. Training logs `train_loss` and each of its parts, validation `val_loss`
    (cross-entropy) and `val_accuracy`.

    Args:
        student, teacher, method, objective: as of `unixkd.Distiller`; a checkpoint holds the student alone, the
            teacher follows it to its device and precision
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
        """The optimiser of the student's parameters."""
        if self.optimizer is None:
            raise UserError(
                "DistillationModule has no optimiser: give optimizer= or override configure_optimizers"
            )
        return self.optimizer(self.student.parameters())

    def unpack(self, batch: Any) -> dict[str, Any]:
        """A batch as arguments of `Distiller.step`: inputs, labels, and index and view for a store of answers."""
        if isinstance(batch, Tensor | Mapping):
            return {"inputs": batch}
        if isinstance(batch, tuple | list) and len(batch) in (1, 2):
            return dict(zip(("inputs", "labels"), batch, strict=False))
        raise UserError(
            f"a batch is a tensor, a mapping or (inputs, labels), not a {type(batch).__name__}: override unpack"
        )

    def on_fit_start(self) -> None:
        """Move the teacher to the student's device, and let each process draw for itself."""
        self.distiller.rank = self.global_rank
        if self.distiller.teacher is not None:
            self.distiller.teacher.network.module.to(self.device, self.dtype)
        # from_pretrained returns networks in eval mode, and Lightning leaves them so. Where only some modules are in
        # eval mode, they were frozen on purpose.
        if not any(module.training for module in self.student.modules()):
            self.student.train()

    def on_train_start(self) -> None:
        """Tell the distiller the size of the loader's batches, which a tuner may just have found."""
        rows = getattr(self.trainer.train_dataloader, "batch_size", None)
        if isinstance(rows, int):
            self.distiller.expect_batches(rows)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of the method; Lightning does the backward, the optimiser and the accumulation."""
        result = self.distiller.step(**self.unpack(batch))
        parts = {f"train_{name}": value for name, value in result.parts.items()}
        self.log_dict({"train_loss": result.loss.detach(), **parts}, batch_size=result.counts.trained)
        return result.loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The student alone on labelled inputs."""
        logits, labels = self._predict(batch)
        if labels is None:
            raise UserError("validation needs labels, and the batch has none")
        values = {
            "val_loss": F.cross_entropy(logits.float(), labels),
            "val_accuracy": (logits.argmax(1) == labels).float().mean(),
        }
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(labels))

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """The student's logits `[N, classes]`."""
        return self._predict(batch)[0]

    def _predict(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """The student's logits on a batch, and the batch's labels."""
        arguments = self.unpack(batch)
        inputs, labels = as_inputs(arguments["inputs"])
        return self.distiller.student.bare()(inputs).logits, arguments.get("labels", labels)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The student's own forward."""
        return self.student(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the distiller's steps and ledger, for a resumed run to go on from."""
        checkpoint["distiller"] = self.distiller.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint stood."""
        if "distiller" not in checkpoint:
            raise UserError("this checkpoint is not one of a DistillationModule: it has no 'distiller'")
        self.distiller.load_state_dict(checkpoint["distiller"])


class LedgerCallback(L.Callback):
    """Shows what distillation costs: in the logs after each epoch, on the terminal at the end.

    It works with any module that has a `Distiller` as its `distiller`, also one of your own.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the images through each forward and the cost relative to plain KD's."""
        pl_module.log_dict(costs(pl_module.distiller.ledger))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the ledger of the first process."""
        trainer.print(pl_module.distiller.ledger)
