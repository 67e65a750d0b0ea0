"""fp16's small range: the loss is scaled up before the backward, and gradients are scaled down after it.

A step whose gradients overflow all the same changes nothing but the scale. What decides that lies on the device, so
that a captured step can hold it. torch's GradScaler is made of the same operations, and keeps what it found to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

INITIAL, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
"""The first scale; what it is multiplied by after so many steps without overflow in a row, and after one with it."""
LEAST = 1.0
"""Below this scale it is the gradients themselves that are too large, or not finite: no scale would help."""


class LossScale:
    """The scale of a run's losses, always a power of 2, and the steps that were skipped.

    Args:
        device: where the run's steps are taken
        interval: steps without overflow in a row after which the scale grows

    >>> weight = nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
    >>> scale = LossScale(torch.device("cpu"))
    >>> for factor in (0.25, float("inf")):
    ...     optimizer.zero_grad()
    ...     scale.scaled(factor * weight.sum()).backward()
    ...     scale.unscale([weight])
    ...     scale.step(optimizer)
    >>> weight.item(), scale.scale.item(), scale.skipped.item()
    (0.75, 32768.0, 1)
    """

    def __init__(self, device: torch.device, interval: int = INTERVAL) -> None:
        self.interval = interval
        self.scale: Float[Tensor, ""] = torch.full((), INITIAL, device=device)
        self.clean: Int32[Tensor, ""] = torch.zeros((), dtype=torch.int32, device=device)
        """Steps since the last overflow or growth"""
        self.skipped: Int64[Tensor, ""] = torch.zeros((), dtype=torch.int64, device=device)
        """Steps of the whole run that were skipped"""
        self.found: Float[Tensor, ""] = torch.zeros((), device=device)
        """1 where the step at work is skipped, else 0"""

    def scaled(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss to go backward from."""
        return loss * self.scale

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide gradients by the scale, in place, and find out whether all are finite."""
        self.found.zero_()
        if gradients := [p.grad for p in parameters if p.grad is not None]:
            # of a power of 2 the reciprocal is exact
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.found, self.scale.reciprocal())

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimiser's step, unless gradients were not finite, and set the scale of the next one.

        A fused optimiser decides on the device, any other one makes the host wait.
        """
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            begin_momentum(optimizer)
            optimizer.grad_scale, optimizer.found_inf = None, self.found  # type: ignore[attr-defined]
            try:
                optimizer.step()
            finally:
                del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        elif not self.found.item():
            optimizer.step()
        torch._amp_update_scale_(self.scale, self.clean, self.found, GROWTH, BACKOFF, self.interval)
        self.skipped += self.found.to(self.skipped.dtype)

    def usable(self) -> bool:
        """Whether the scale is one that training can go on with. Waits for the device."""
        return bool(self.scale >= LEAST)

    def state(self) -> dict[str, Tensor]:
        """What has to be saved, by name; the tensors are the same in every step."""
        return {"scale": self.scale, "clean": self.clean, "skipped": self.skipped}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on with what `state` gave; without it, of a run that had no scale, this one stays as it is."""
        for name, tensor in self.state().items():
            if name in tensors:
                tensor.copy_(tensors[name])


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let SGD's momentum begin at 0 where it has not begun.

    The fused step makes memory for it and would leave that as it is where the first step is skipped. From 0 the first
    step that is taken comes to the same.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


class Snapshot:
    """Tensors as they are now: of each dtype one copy.

    >>> counts = [torch.tensor(1), torch.tensor([2, 3])]
    >>> before = Snapshot(counts)
    >>> for count in counts:
    ...     _ = count.add_(1)
    >>> before.restore(torch.tensor(0.0))
    >>> counts[1].tolist()
    [3, 4]
    >>> before.restore(torch.tensor(1.0))
    >>> counts[0].item(), counts[1].tolist()
    (1, [2, 3])
    """

    @torch.no_grad()
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        dtypes = dict.fromkeys(tensor.dtype for tensor in tensors)
        self.alike = [[tensor for tensor in tensors if tensor.dtype == dtype] for dtype in dtypes]
        self.before = [flat(alike) for alike in self.alike]

    @torch.no_grad()
    def restore(self, undo: Float[Tensor, ""]) -> None:
        """Put the tensors back where `undo` is 1 rather than 0; the host does not look at it."""
        for alike, before in zip(self.alike, self.before, strict=True):
            kept = torch.where(undo.bool(), before, flat(alike))
            pieces = kept.split([tensor.numel() for tensor in alike])
            for tensor, piece in zip(alike, pieces, strict=True):
                tensor.copy_(piece.view(tensor.shape))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values of some tensors, one after the other `[n]`."""
    return torch.cat([tensor.flatten() for tensor in tensors])
