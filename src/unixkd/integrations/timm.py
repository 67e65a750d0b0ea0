"""Distillation as a task of timm, for its training script or one like it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unixkd.distiller import Distiller
from unixkd.errors import UserError, missing_extra
from unixkd.integrations import train_through
from unixkd.method.ledger import Ledger
from unixkd.method.losses import CrossEntropy
from unixkd.method.method import Method
from unixkd.method.network import unwrap
from unixkd.method.objective import Objective

try:
    from timm.task import TrainingTask
except ImportError as error:
    raise missing_extra("timm>=1.0.31", "timm", "timm tasks") from error


class DistillationTask(TrainingTask):
    """A task of timm: `task(input, target)` gives a dictionary with the loss, all else is timm's.

    Args:
        student_model, teacher_model, method, objective: as of `unixkd.Distiller`; checkpoints hold the student alone.
            Where both networks have timm's `pretrained_cfg`, the teacher gets images normalised as it wants them
        device, dtype, verbose: as in timm
        **options: further arguments of `unixkd.Distiller`; `rank` is set here

    Raises:
        UserError: as `Distiller` does; targets that are no class numbers; a checkpoint of another task

    >>> student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)) for _ in range(2))
    >>> task = DistillationTask(student, teacher)
    >>> sorted(task(torch.rand(4, 3, 2, 2), torch.arange(4)))
    ['kd_loss', 'loss', 'output']
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: nn.Module | None = None,
        method: Method | None = None,
        objective: Objective | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module = student_model
        self.teacher = None if teacher_model is None else renormalised(teacher_model, student_model)
        if self.teacher is not None:
            self.teacher.to(self.device, self.dtype)
        self.distiller = Distiller(student_model, self.teacher, method, objective, **options)
        self.distiller.check_method()

    @property
    def ledger(self) -> Ledger:
        """Images that this process scored, asked of the teacher and trained; cost against plain KD."""
        return self.distiller.ledger

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:  # timm's names
        """One step: the caller calls `backward` on the loss.

        Args:
            input: images, normalised for the student `[N, C, H, W]`
            target: class numbers `[N]`

        Returns:
            `loss`; `output`, logits of the k rows trained on `[k, classes]`, not in the batch's order; each part of
            the loss unweighted, cross-entropy as `task_loss`, others as `kd_loss` and so on
        """
        if target.is_floating_point():
            raise UserError(
                "targets must be class numbers: switch timm's mixup and cutmix off, the method mixes"
            )
        result = self.distiller.step(input, target)
        outputs = {"loss": result.loss, "output": result.outputs.logits}
        for term in self.distiller.objective:
            name = "task" if isinstance(term.loss, CrossEntropy) else term.name
            outputs[f"{name}_loss"] = result.parts[term.name]
        return outputs

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> DistillationTask:
        """Wrap the student in DDP, and let each process draw for itself."""
        self.trainable_module = DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        train_through(self.distiller, self.trainable_module, dist.get_rank())
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile both networks' forwards in place: no wrapper changes the names in checkpoints."""
        for network in (self.trainable_module, self.teacher):
            if network is not None:
                network.compile(backend=backend, mode=mode, **compile_kwargs)
        return self.trainable_module

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The distiller's steps and ledger, for a resumed run to go on from."""
        return {} if ema else {"distiller": self.distiller.state_dict()}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Go on where the checkpoint stood."""
        if state and not ema:
            self.distiller.load_state_dict(state["distiller"])
        elif strict and not ema:
            raise UserError(
                "only checkpoints of a DistillationTask can be resumed; load others as initial weights"
            )


class Renormalised(nn.Module):
    """A network for images of another normalisation: it gets x · scale + shift, by channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale.view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Any:
        """The network's output for images `[N, C, H, W]` of the other normalisation."""
        return self.network(images * self.scale + self.shift)


def renormalised(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """The teacher for images normalised for the student, by both networks' `pretrained_cfg`."""
    configs = [getattr(unwrap(network), "pretrained_cfg", {}) for network in (student, teacher)]
    if not all(config.keys() >= {"mean", "std"} for config in configs):
        return teacher
    mean, std, teacher_mean, teacher_std = (
        torch.tensor(config[name]) for config in configs for name in ("mean", "std")
    )
    if torch.equal(mean, teacher_mean) and torch.equal(std, teacher_std):
        return teacher
    return Renormalised(teacher, std / teacher_std, (mean - teacher_mean) / teacher_std)
