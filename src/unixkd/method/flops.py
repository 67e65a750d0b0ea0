"""Forward FLOPs of a network per image, counted by running it once; None where they cannot be counted.

FLOPs are 2 × the multiply-adds of convolutions and matrix products, at full precision whatever the network runs in.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from unixkd.errors import UserError
from unixkd.method.network import evaluating
from unixkd.method.resizing import Size

aten = torch.ops.aten

VECTOR_PRODUCTS: Mapping[Any, Callable[..., int]] = {
    aten.mv: lambda matrix, *_, **__: 2 * matrix[0] * matrix[1],
    aten.addmv: lambda _, matrix, *__, **___: 2 * matrix[0] * matrix[1],
    aten.dot: lambda vector, *_, **__: 2 * vector[0],
}
"""Products that torch's counter passes over: FLOPs by the operands' shapes."""

PRODUCTS = ("mm_", "_mm", "matmul", "linear", "conv", "rnn", "lstm", "gru_", "attention", "trilinear")
"""Parts of the names of torch's operations that multiply matrices, the fused and the quantised ones among them."""

KNOWN_LIBRARIES = {"aten", "prim", "prims", "profiler", "torchvision"}


def forward_flops(model: nn.Module, image_shape: tuple[int, int, int]) -> int | None:
    """FLOPs (2 × multiply-adds of convolutions and matrix products) of one eval forward of one image.

    Args:
        model: any module from `[1, C, H, W]` to logits; its modes and buffers are left as they were
        image_shape: (C, H, W)

    Returns:
        None where the forward, or part of it, cannot be counted: quantised layers, or operations that are not torch's

    >>> forward_flops(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    120
    """
    weights = (p for p in model.parameters() if p.is_floating_point())
    first = next(weights, torch.zeros(()))
    image = torch.zeros(1, *image_shape, device=first.device, dtype=first.dtype)
    return sample_flops(model, lambda: model(image))


def flops_by_size(model: nn.Module, channels: int) -> Callable[[Size], int | None]:
    """Forward FLOPs per image by size; each size is measured once, at its first use.

    >>> flops_by_size(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), channels=3)((2, 2))
    120
    """
    return cache(lambda size: forward_flops(model, (channels, *size)))


def sample_flops(model: nn.Module, forward: Callable[[], object]) -> int | None:
    """FLOPs of a forward of the model in eval mode, None as in `forward_flops`.

    The model itself is run, as many cannot be copied (locks, cached features, old `weight_norm`).
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(VECTOR_PRODUCTS))
    uncounted = UncountedProducts()
    try:
        with (
            evaluating(model),
            buffers_kept(model),
            torch.no_grad(),
            unfused(),
            uncompiled(),
            uncounted,
            counter,
        ):
            forward()
    except AssertionError as error:
        if "Guard failed" not in str(error):
            raise
        raise UserError(
            f"the network is a program for inputs of one shape ({error}): export it with a first dimension of any "
            "size, as `unixkd export` does"
        ) from None
    flops = int(counter.get_total_flops())
    return None if uncounted.found else flops or None


def structure(module: nn.Module) -> tuple[int, int]:
    """Numbers of modules and of parameters, which change where a network grows.

    >>> structure(nn.Sequential(nn.Linear(2, 3)))
    (2, 9)
    """
    modules = list(module.modules())
    # Not `module.parameters()`, which takes three times as long, and this is asked at every step.
    parameters = (p for m in modules for p in m._parameters.values() if p is not None)
    return len(modules), sum(p.numel() for p in parameters)


class UncountedProducts(TorchDispatchMode):
    """Notes operations that may multiply matrices and that torch's counter does not know."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = getattr(func, "_overloadpacket", func)
        if packet not in flop_registry and packet not in VECTOR_PRODUCTS and may_multiply(func):
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def may_multiply(operation: Any) -> bool:
    """Whether an operation may be a matrix product; one of an unknown library always may.

    >>> may_multiply(aten.relu.default), may_multiply(aten._int_mm.default)
    (False, True)
    """
    library, name = getattr(operation, "namespace", ""), str(getattr(operation, "_opname", operation))
    if library and library not in KNOWN_LIBRARIES:
        return True
    return not name.lstrip("_").startswith("upsample") and any(part in f"_{name}_" for part in PRODUCTS)


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Inside, the model may change its buffers, as observers of quantisation do; afterwards they are as before."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not buffer.is_inference()  # nobody can change these
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            if getattr(module, name) is not buffer:  # it was given another one
                setattr(module, name, buffer)
            # BatchNorm changes its statistics without a new version.
            if not buffer.is_meta and not torch.equal(buffer, value):
                buffer.copy_(value)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled modules run as they were written: the counter does not know compiled kernels."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes a second
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", ".*global hooks on modules")  # the counter's, which only watch
        yield


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Inside, attention and recurrent layers run as matrix products: the counter misses torch's fused kernels."""
    backends: Any = torch.backends
    libraries = (backends.cudnn, backends.mkldnn)
    fast, enabled = backends.mha.get_fastpath_enabled(), [library.enabled for library in libraries]
    backends.mha.set_fastpath_enabled(False)
    try:
        for library in libraries:
            library.enabled = False  # not its `flags()`, which sets TF32 too
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        backends.mha.set_fastpath_enabled(fast)
        for library, was in zip(libraries, enabled, strict=True):
            library.enabled = was
