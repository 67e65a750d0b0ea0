"""What a forward costs: FLOPs per image, counted by torch on an eager copy of a network."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unixkd.modes import evaluating
from unixkd.resizing import Size


def forward_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """FLOPs (2 × multiply-adds of convolutions and matrix products) of one eval forward of one image.

    Args:
        model: any module from `[1, C, H, W]` to logits; a copy is measured, the model is not touched
        image_shape: (C, H, W)

    >>> forward_flops(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    120
    """
    first = next(iter(model.parameters()), torch.zeros(()))
    clone = copy.deepcopy(model).eval()
    image = torch.zeros(1, *image_shape, device=first.device, dtype=first.dtype)
    return counted(lambda: clone(image))


def flops_by_size(model: nn.Module, channels: int) -> Callable[[Size], int]:
    """Forward FLOPs per image of any size, each size measured once, when it is first asked for.

    >>> flops_by_size(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), channels=3)((2, 2))
    120
    """
    return cache(lambda size: forward_flops(model, (channels, *size)))


def sample_flops(model: nn.Module, forward: Callable[[], object]) -> int:
    """FLOPs of an eval forward of the model as it is: of text a length at a time, too often for copies."""
    with evaluating(model):
        return counted(forward)


def counted(forward: Callable[[], object]) -> int:
    """FLOPs of a call without gradient."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), unfused_attention(), uncompiled(), counter:
        forward()
    return int(counter.get_total_flops())


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """What torch.compile has compiled runs as it was written: of compiled kernels the counter knows nothing."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes a second
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", ".*global hooks on modules")  # the counter's, which only watch
        yield


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Attention as matrix products, which the counter knows; of torch's fused kernels it misses some."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
