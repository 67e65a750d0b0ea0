"""A module as the step sees it: its precision, and the layers whose outputs the losses want."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unixkd.batch import Outputs
from unixkd.models.features import FeatureTap, unwrap


@dataclass(frozen=True)
class Network:
    """A module and how it is run: images `[N, C, H, W]` -> `Outputs`.

    Args:
        module: any module from images to logits, wrapped by DDP or not
        layers: qualified names of the layers whose outputs are wanted
        dtype: precision of the forward by autocast (weights stay as they are); None: leave it as it is
    """

    module: nn.Module
    layers: tuple[str, ...] = ()
    dtype: torch.dtype | None = None

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Outputs:
        with self.autocast(images.device.type):
            if not self.layers:
                return Outputs(self.module(images))
            with FeatureTap(self.module, self.layers) as tap:
                logits = self.module(images)
        return Outputs(logits, tap.take())

    def autocast(self, device: str) -> contextlib.AbstractContextManager[object]:
        """The context that gives a forward its precision."""
        if self.dtype is None:
            return contextlib.nullcontext()
        # No cache of casts: each weight is used once a forward, one filled under no_grad would cut the
        # training forward off from the weights (pytorch issue 112583), and a CUDA graph allows none.
        return torch.autocast(device, self.dtype, cache_enabled=False)

    def bare(self) -> Network:
        """The module inside a wrapper such as DDP, without layers: for passes that need no gradient."""
        return replace(self, module=unwrap(self.module), layers=())


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule has exactly the flag it had."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training
