"""A module as the step sees it: its inputs and outputs, its precision, and the layers whose outputs the losses want."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unixkd.batch import Outputs
from unixkd.errors import UserError
from unixkd.inputs import TOKENS, Named, Woven
from unixkd.models.features import FeatureTap, unwrap


@dataclass(frozen=True)
class Network:
    """A module and how it is run: inputs of k samples -> `Outputs`.

    Args:
        module: any module from images, or from named tensors, to logits, wrapped by DDP or not
        layers: qualified names of the layers whose outputs are wanted
        dtype: precision of the forward by autocast (weights stay as they are); None: leave it as it is
        prefix: of the names of named tensors that are this network's own
    """

    module: nn.Module
    layers: tuple[str, ...] = ()
    dtype: torch.dtype | None = None
    prefix: str = ""

    def __call__(self, inputs: Shaped[Tensor, "n ..."] | Named) -> Outputs:
        with self.autocast(inputs.device.type):
            if not self.layers:
                return Outputs(self.logits(inputs))
            with FeatureTap(self.module, self.layers) as tap:
                logits = self.logits(inputs)
        return Outputs(logits, tap.take())

    def logits(self, inputs: Shaped[Tensor, "n ..."] | Named) -> Float[Tensor, "n classes"]:
        """The forward alone."""
        if isinstance(inputs, Tensor):
            return logits_of(self.module(inputs), self.module)
        own = inputs.of(self.prefix)
        with weaving(self.module, own.woven.get(TOKENS)):
            return logits_of(self.module(**own.tensors), self.module)

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


def logits_of(output: object, module: nn.Module) -> Float[Tensor, "n classes"]:
    """The logits in what a module returned: a tensor, or something that has them as `.logits` or `["logits"]`.

    Raises:
        UserError: it has none
    """
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(found, Tensor) and found.ndim == 2:
        return found
    what = f"logits of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
    raise UserError(
        f"{type(unwrap(module)).__name__} gives {what}, not logits [N, classes] or an object that has them as .logits"
    )


@contextlib.contextmanager
def weaving(module: nn.Module, woven: Woven | None) -> Iterator[None]:
    """Inside, the module mixes another text into the embeddings of the tokens it looks up.

    Raises:
        UserError: the module has no one embedding of tokens, or did not look them up
    """
    if woven is None:
        yield
        return
    times = 0

    def mix(embedding: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        nonlocal times
        times += 1
        other = embedding.forward(woven.tokens)  # not its call, which would come here again
        return output + woven.share[..., None].to(output.dtype) * (other - output)

    handle = embedding_of(module).register_forward_hook(mix)
    try:
        yield
    finally:
        handle.remove()
    if times != 1:
        raise UserError(
            f"{type(unwrap(module)).__name__} looked its tokens up {times} times in a forward, so that texts cannot be "
            "mixed: choose a method without mixing (kd, random, hard)"
        )


def embedding_of(module: nn.Module) -> nn.Module:
    """Where a module looks its tokens up: what `get_input_embeddings` gives, or its only `nn.Embedding`.

    Raises:
        UserError: there is none, or more than one
    """
    inner = unwrap(module)
    if callable(own := getattr(inner, "get_input_embeddings", None)) and isinstance(own(), nn.Module):
        return own()
    found = [child for child in inner.modules() if isinstance(child, nn.Embedding)]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{type(inner).__name__} has {len(found) or 'no'} embeddings: give it a method get_input_embeddings() that "
        "returns that of its tokens"
    )
