"""A network as the step sees it: inputs, outputs, precision, train and eval mode, layers that losses read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unixkd.errors import UsageError, UserError, unknown_name
from unixkd.method.batch import Outputs
from unixkd.method.named_inputs import PARTNER, SHARE, TOKENS, NamedInputs


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

    def __call__(self, inputs: Shaped[Tensor, "n ..."] | NamedInputs) -> Outputs:
        with self.autocast(inputs.device.type), FeatureTap(self.module, self.layers) as tap:
            return Outputs(self.logits(inputs), tap.take())

    def logits(self, inputs: Shaped[Tensor, "n ..."] | NamedInputs) -> Float[Tensor, "n classes"]:
        """The forward alone, on a copy of the inputs: a module may normalise in place, others need them after it."""
        inputs = inputs.clone()
        if isinstance(inputs, Tensor):
            return logits_of(self.module(inputs), self.module)
        tensors = dict(inputs.of(self.prefix).tensors)
        partner, share = (tensors.pop(TOKENS + end, None) for end in (PARTNER, SHARE))
        with mixing_embeddings(self.module, partner, share):
            return logits_of(self.module(**tensors), self.module)

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
    """The logits in what a module returned: a tensor, or something that has them as `.logits` or `["logits"]`."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.ndim == 2:
        if logits.shape[1] == 1:
            raise UserError(
                f"{type(unwrap(module)).__name__} gives one logit [N, 1], of which softmax makes 1 whatever it is: "
                "give a network of two classes two logits (0 and z, where it has one z)"
            )
        return logits
    what = f"logits of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(output).__name__
    raise UserError(
        f"{type(unwrap(module)).__name__} gives {what}, not logits [N, classes] or an object that has them as .logits"
    )


@contextlib.contextmanager
def mixing_embeddings(module: nn.Module, partner: Tensor | None, share: Tensor | None) -> Iterator[None]:
    """Inside, the module mixes its embeddings of the partner's tokens into those of the tokens it looks up, once."""
    if partner is None or share is None:
        yield
        return
    times = 0

    def mix(embedding: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        nonlocal times
        times += 1
        other = embedding.forward(partner)  # not its call, which would come here again
        return output + share[..., None].to(output.dtype) * (other - output)

    with embedding_of(module).register_forward_hook(mix):
        yield
    if times != 1:
        raise UserError(
            f"{type(unwrap(module)).__name__} looked its tokens up {times} times in a forward, so that texts cannot be "
            "mixed: choose a method without mixing (kd, random, hard)"
        )


def embedding_of(module: nn.Module) -> nn.Module:
    """Where a module looks its tokens up: what `get_input_embeddings` gives, or its only `nn.Embedding`."""
    inner = unwrap(module)
    getter = getattr(inner, "get_input_embeddings", None)
    if callable(getter) and isinstance(embedding := getter(), nn.Module):
        return embedding
    embeddings = [child for child in inner.modules() if isinstance(child, nn.Embedding)]
    if len(embeddings) == 1:
        return embeddings[0]
    raise UserError(
        f"{type(inner).__name__} has {len(embeddings) or 'no'} embeddings: give it a method get_input_embeddings() "
        "that returns that of its tokens"
    )


def is_sharded(module: nn.Module) -> bool:
    """Whether a forward of the module is one of all processes together."""
    return hasattr(module, "set_requires_gradient_sync")


def has_statistics(module: nn.Module) -> bool:
    """Whether a module keeps running statistics of its batches."""
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in module.modules()
    )


def set_train(module: nn.Module, *, freeze_batchnorm: bool = False) -> None:
    """Train mode; frozen, BatchNorm goes on with its running statistics, and they stay."""
    module.train()
    for m in module.modules():
        if freeze_batchnorm and isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats:
            m.training = False


def set_eval(module: nn.Module) -> None:
    """Eval mode; programs of torch.export, which have no modes, stay as they are."""
    try:
        module.eval()
    except NotImplementedError:
        for child in module.children():
            set_eval(child)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule has exactly the flag it had."""
    # Flags alone: an overridden `eval()` may merge weights, and that of an exported program raises. Frozen TorchScript
    # has no flag.
    flags = [(m, m.training) for m in module.modules() if hasattr(m, "training")]
    for m, _ in flags:
        m.training = False
    try:
        yield
    finally:
        for m, training in flags:
            m.training = training


class FeatureTap(contextlib.ExitStack):
    """Catches the outputs of named layers each time the network runs inside the context.

    What was caught last stays in `features`, with its graph, until the next forward or `take()`.

    Args:
        module: any network, wrapped or not
        names: qualified names of layers, or ends of them, see `resolve_layer`

    Raises:
        UsageError: for an unknown or ambiguous layer
        UserError: in the forward, where a layer's output is no tensor; in `take`, where a layer has not run

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    >>> with FeatureTap(net, ["0"]) as tap:
    ...     _ = net(torch.ones(2, 3))
    >>> tap.features["0"].shape
    torch.Size([2, 4])
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.features: dict[str, Tensor] = {}
        self._layers = {name: module.get_submodule(resolve_layer(module, name)) for name in names}

    def __enter__(self) -> FeatureTap:
        for name, layer in self._layers.items():
            self.enter_context(layer.register_forward_hook(partial(self._catch, name)))
        return self

    def take(self) -> dict[str, Tensor]:
        """Hand out what was caught, in the order of the names, and forget it."""
        for name in self._layers:
            if name not in self.features:
                raise UserError(f"layer '{name}' did not run: choose a layer that every forward uses")
        return {name: self.features.pop(name) for name in self._layers}

    def _catch(self, name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise UserError(
                f"layer '{name}' gives a {type(output).__name__}, not a tensor: choose another layer"
            )
        self.features[name] = output.clone()  # the next layer may work in place


def resolve_layer(module: nn.Module, name: str) -> str:
    """Qualified name of the layer that `name` means: itself, or the end of a qualified name.

    Args:
        module: any network
        name: exact name or dotted end; where several end so, the one nearest to the root is meant

    Raises:
        UsageError: for an unknown or ambiguous name

    >>> resolve_layer(nn.ModuleDict({"net": nn.Sequential(nn.Linear(1, 1))}), "0")
    'net.0'
    """
    names = [qualified for qualified, _ in module.named_modules() if qualified]
    if name in names:
        return name
    matches = [qualified for qualified in names if qualified.endswith(f".{name}")]
    if not matches:
        inner = module
        while len(children := list(inner.children())) == 1:  # wrappers, whose names nobody types
            inner = children[0]
        depth = name.count(".") + 1  # deeper ones would bury the useful ones in a list of hundreds
        shown = [n for n, _ in inner.named_modules() if n and n.count(".") < depth]
        raise unknown_name("layer", name, shown or names)
    depth = min(match.count(".") for match in matches)
    nearest = [match for match in matches if match.count(".") == depth]
    if len(nearest) > 1:
        raise UsageError(f"layer '{name}' is ambiguous: {', '.join(nearest[:4])}; give the full name")
    return nearest[0]


def default_layers(module: nn.Module) -> tuple[str, ...]:
    """Qualified names of the stage outputs of a network of the CIFAR family, wrapped or not, stem first.

    Raises:
        UserError: for other networks, whose layers must be named

    >>> from unixkd.models.registry import create_model
    >>> default_layers(nn.Sequential(create_model("resnet8")))
    ('0.relu', '0.layer1', '0.layer2', '0.layer3')
    """
    for name, submodule in module.named_modules():
        stages = getattr(submodule, "stage_layers", None)
        if stages is not None:
            return tuple(f"{name}.{stage}".lstrip(".") for stage in stages)
    raise UserError(
        f"{type(module).__name__} does not say which layers its stages are: name them with "
        "--loss.student_layers and --loss.teacher_layers"
    )


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside wrappers that keep it as `.module` (DDP, DataParallel, Fabric), however many.

    >>> net = nn.Linear(1, 1)
    >>> unwrap(nn.DataParallel(nn.DataParallel(net))) is net
    True
    """
    while isinstance(inner := getattr(module, "module", None), nn.Module):
        tensors, inner_tensors = (sum(1 for _ in (*m.parameters(), *m.buffers())) for m in (module, inner))
        if tensors > inner_tensors:
            break  # no wrapper, but a network with a part that happens to be called so
        module = inner
    return module
