"""Networks whose weights are sharded over the processes of a run: each holds a shard of every tensor (FSDP2).

torch's `fully_shard` does the work: a unit of a network gathers its weights for its forward and its backward and lets
them go after each; gradients, and the optimiser's state, are of a process's own part alone.
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

LARGE = 1 / 8
"""Share of a network's parameters: of a layer that has more of them, and of a stage that is divided into its blocks."""
MOST = 3 / 4
"""Share of a module's parameters that lie in its blocks, where it is a stage of them and not a block itself."""
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Layers whose weights are used by their own forward; a subclass may be used in another way."""
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
        UserError: it is alone, or wants what needs a whole network in one place
    """
    train = config.train
    if train.sharding == "none":
        return
    option = f"--train.sharding {train.sharding}"
    if world.size == 1:
        raise UserError(
            f"{option} shards weights over several processes, and there is one: start with torchrun"
        )
    if train.ema_decay is not None:
        raise UserError(f"{option} has no moving average of the weights: leave --train.ema_decay out")
    if train.compile:
        raise UserError(f"{option} has not been tried with compiled networks: leave --train.compile out")
    if train.sharding != "both":
        return
    if config.teacher is None:
        raise UserError(f"{option}: there is no teacher, give --train.sharding student")
    if config.answers.path is not None:
        raise UserError(
            f"{option}: with stored answers one process may ask the teacher where another one does not, and all have "
            "to for a forward: give --train.sharding student, or no --answers"
        )


def shard(network: nn.Module, world: World, device: torch.device) -> None:
    """Spread a network's weights over all processes, in place; every process has to call it.

    It becomes the leader's, in the default memory layout, unit by unit on the device. From then on its `parameters()`
    are DTensors, it cannot be copied, and a forward is one of all processes together.

    Args:
        network: as it is called; alike in all processes
        world: the processes
        device: where each keeps its part

    Raises:
        UserError: torch does not shard such weights
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cuda":
        torch.cuda.set_device(device)
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
    """The parts of a network that gather their weights together; what is in none is gathered with the whole.

    Blocks, which are modules with layers inside whose class occurs more than once; the blocks of a stage, where that
    is one too and is larger than `LARGE`; and single layers that are larger. None of them shares a parameter with
    anything outside, as a tied embedding does.

    >>> block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> [type(unit).__name__ for unit in units(nn.TransformerEncoder(block, num_layers=3))]
    ['TransformerEncoderLayer', 'TransformerEncoderLayer', 'TransformerEncoderLayer']
    >>> units(nn.Sequential(nn.Linear(9, 90), nn.Linear(90, 1)))
    [Linear(in_features=9, out_features=90, bias=True)]
    """
    kinds = Counter(type(module) for module in network.modules() if is_block(module))
    owners = Counter(map(id, own_parameters(network)))
    limit = LARGE * size(network)

    def is_stage(block: nn.Module) -> bool:
        parts = [part for part in block.modules() if part is not block and kinds[type(part)] > 1]
        alike = [[part for part in parts if type(part) is kind] for kind in {type(part) for part in parts}]
        return any(len(each) > 1 and sum(map(size, each)) >= MOST * size(block) for each in alike)

    def is_unit(module: nn.Module) -> bool:
        large = size(module) > limit
        block = kinds[type(module)] > 1 and not (large and is_stage(module))
        shared = any(owners[key] > count for key, count in Counter(map(id, own_parameters(module))).items())
        return (block or (large and type(module) in _LAYERS)) and not shared

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if is_unit(child):
                yield child
            else:
                yield from visit(child)

    return list(visit(network))


def own_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Those of every module inside, one that modules share as often as they do."""
    return [p for module in network.modules() for p in module._parameters.values() if p is not None]


def is_block(module: nn.Module) -> bool:
    """Whether it is a module of layers with a forward of its own."""
    return not isinstance(module, _CONTAINERS) and any(size(child) for child in module.children())


def size(module: nn.Module) -> int:
    """Its parameters, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def skeleton(network: nn.Module) -> nn.Module:
    """A copy without numbers, on the meta device, that takes no memory: what is measured on it needs shapes only.

    >>> skeleton(nn.Linear(3, 2)).weight
    Parameter containing:
    tensor(..., device='meta', size=(2, 3), requires_grad=True)
    """
    empty: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in network.parameters()
    }
    return copy.deepcopy(network, empty | {id(b): b.to("meta") for b in network.buffers()})


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it where it is not sharded."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The tensors with those that are sharded whole, on the CPU, in the leader; the others get none of these.

    Every process has to call it, with the same names in the same order.
    """
    found = {}
    for name, tensor in tensors.items():
        if not hasattr(tensor, "full_tensor"):
            found[name] = tensor
            continue
        whole = tensor.full_tensor()  # one at a time: all together may not fit
        if world.leads:
            found[name] = whole.cpu()
    return found


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor sharded like another one, from what this process has: nothing is sent."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_parts(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a network that may be sharded."""
    own = network.state_dict()
    network.load_state_dict(
        {name: part_of(t, own[name]) if name in own else t for name, t in tensors.items()}
    )
