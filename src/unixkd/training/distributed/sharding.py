"""Networks whose weights are sharded over the processes of a run: each holds a shard of every tensor (FSDP2).

torch's `fully_shard` does the work: each unit of a network gathers its weights for its forward and its backward, and
frees them after each. A process has the gradients and the optimiser's state of its own shards alone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from unixkd.config import RunConfig, TrainConfig
from unixkd.errors import UserError, first_line
from unixkd.training.distributed.world import World

LARGE_SHARE = 1 / 8
"""A layer with a larger share of the network's parameters is a unit; a larger stage is divided into its blocks."""
STAGE_SHARE = 3 / 4
"""A module with at least this share of its parameters in blocks of one class is a stage, and no block itself."""
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Layers whose weights are read in their own forward alone; a subclass may differ."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_sharded_role(train: TrainConfig, role: Literal["student", "teacher"]) -> bool:
    """Whether a run shards this network's weights over its processes.

    >>> [is_sharded_role(TrainConfig(sharding="student"), role) for role in ("student", "teacher")]
    [True, False]
    """
    return train.sharding == "both" or train.sharding == role


def check_sharding(config: RunConfig, world: World) -> None:
    """Raise for what a run with sharded weights cannot do.

    Raises:
        UserError: there is one process, or an option needs a whole network in one place
    """
    train = config.train
    if train.sharding == "none":
        return
    option, both = f"--train.sharding {train.sharding}", train.sharding == "both"
    obstacles = {
        " shards weights over several processes, and there is one: start with torchrun": world.size == 1,
        " has no gradient scale for fp16: leave --train.precision fp16 out": train.precision == "fp16",
        " has no moving average of the weights: leave --train.ema_decay out": train.ema_decay is not None,
        " has not been tried with compiled networks: leave --train.compile out": train.compile,
        ": there is no teacher, give --train.sharding student": both and config.teacher is None,
        ": with stored answers one process may ask the teacher where another one does not, and all have to for a "
        "forward: give --train.sharding student, or no --answers": both and config.answers.path is not None,
    }
    for obstacle, holds in obstacles.items():
        if holds:
            raise UserError(option + obstacle)


def shard(network: nn.Module, world: World, device: torch.device) -> None:
    """Shard a network's weights over all processes, in place; every process has to call it.

    The weights are the leader's, in the default memory layout. Afterwards `parameters()` are DTensors, the network
    cannot be copied, and all processes have to run a forward together.

    Args:
        network: of the same architecture in all processes
        world: the processes
        device: where each keeps its shard

    Raises:
        UserError: torch does not shard such weights
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.contiguous()
        world.take_from_leader([tensor.data])
    mesh = init_device_mesh(device.type, (world.size,))
    try:
        for unit in (*units(network), network):
            # The root too: weights that stay gathered after a forward without backward could outlive a step.
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"torch cannot shard this network ({first_line(error)}): leave --train.sharding out"
        ) from error


def units(network: nn.Module) -> list[nn.Module]:
    """The modules of a network that gather their weights one at a time; weights outside are gathered with the root.

    Units are blocks, which are modules with layers inside whose class occurs more than once, and layers above
    `LARGE_SHARE`. A stage above that share is divided into its blocks. A module that shares a parameter with another
    one, as a tied embedding does, is no unit.

    >>> block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> [type(unit).__name__ for unit in units(nn.TransformerEncoder(block, num_layers=3))]
    ['TransformerEncoderLayer', 'TransformerEncoderLayer', 'TransformerEncoderLayer']
    >>> units(nn.Sequential(nn.Linear(9, 90), nn.Linear(90, 1)))
    [Linear(in_features=9, out_features=90, bias=True)]
    """
    kinds = Counter(type(module) for module in network.modules() if is_block(module))
    uses = Counter(map(id, parameters_of_modules(network)))
    limit = LARGE_SHARE * size(network)

    def is_stage(module: nn.Module) -> bool:
        blocks = [block for block in module.modules() if block is not module and kinds[type(block)] > 1]
        return any(
            number > 1 and sum(size(b) for b in blocks if type(b) is kind) >= STAGE_SHARE * size(module)
            for kind, number in Counter(map(type, blocks)).items()
        )

    def is_unit(module: nn.Module) -> bool:
        large = size(module) > limit
        block = kinds[type(module)] > 1 and not (large and is_stage(module))
        inside = Counter(map(id, parameters_of_modules(module)))
        shared = any(uses[key] > count for key, count in inside.items())
        return (block or (large and type(module) in _LAYERS)) and not shared

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if is_unit(child):
                yield child
            else:
                yield from visit(child)

    return list(visit(network))


def parameters_of_modules(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of every module inside; one that several modules share occurs several times."""
    return [p for module in network.modules() for p in module._parameters.values() if p is not None]


def is_block(module: nn.Module) -> bool:
    """Whether a module has layers inside and is no container."""
    return not isinstance(module, _CONTAINERS) and any(size(child) for child in module.children())


def size(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def skeleton(network: nn.Module) -> nn.Module:
    """A copy on the meta device, which has shapes and no values, to count FLOPs on.

    >>> skeleton(nn.Linear(3, 2)).weight
    Parameter containing:
    tensor(..., device='meta', size=(2, 3), requires_grad=True)
    """
    empty: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in network.parameters()
    }
    return copy.deepcopy(network, empty | {id(b): b.to("meta") for b in network.buffers()})


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor: all of it, unless it is a DTensor."""
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole tensors, by name: sharded ones on the CPU and in the leader alone, the others as they are.

    Every process has to call it, with the same names in the same order.
    """
    whole = {}
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):
            tensor = tensor.full_tensor()  # one at a time: all together may not fit
            if not world.leads:
                continue
            tensor = tensor.cpu()
        whole[name] = tensor
    return whole


def shard_like(whole: Tensor, other: Tensor) -> Tensor:
    """A whole tensor sharded as another one is. Every process has the whole tensor: nothing is sent."""
    if not hasattr(other, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(whole.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def load_whole(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a network that may be sharded."""
    state = network.state_dict()
    network.load_state_dict(
        {name: shard_like(t, state[name]) if name in state else t for name, t in tensors.items()}
    )
