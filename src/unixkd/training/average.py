"""The moving average of the weights: all of it on the device, so that a captured step can hold it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from unixkd.method.network import unwrap


class MovingAverage(AveragedModel):
    """A copy of a network that follows its weights: average ← decay · average + (1 − decay) · weights.

    The first update copies the weights. Buffers of whole numbers (BatchNorm's count of batches) are always copied.
    Names and values of the state are those of torch's `AveragedModel`.

    Args:
        model: the network, on its device
        decay: in [0, 1]

    >>> net = nn.Linear(1, 1, bias=False)
    >>> average = MovingAverage(net, decay=0.75)
    >>> for weight in (1.0, 2.0):
    ...     _ = nn.init.constant_(net.weight, weight)
    ...     average.update_parameters(net)
    >>> average.module.weight.item()
    1.25
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, device=next(model.parameters()).device, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Follow one step; nothing is read back, and no step does other operations than the one before."""
        now = tensors_of(model)
        pairs = [(average, now[name]) for name, average in tensors_of(self.module).items() if name in now]
        averages, weights = zip(*((a, w) for a, w in pairs if a.is_floating_point()), strict=True)
        # Whether this is the first update is known on the device alone: then 0 · average + 1 · weights, before the
        # lerp; later 1 · average + 0 · weights, which is the average to the bit.
        first = (self.n_averaged == 0).to(torch.get_default_dtype())
        torch._foreach_mul_(averages, 1 - first)
        torch._foreach_add_(averages, torch._foreach_mul(weights, first))
        torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for count, value in ((a, w) for a, w in pairs if not a.is_floating_point()):
            count.copy_(value)
        self.n_averaged += 1


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a network, wrapped or not, by name, detached."""
    inner = unwrap(module)
    return {name: tensor.detach() for name, tensor in (*inner.named_parameters(), *inner.named_buffers())}
