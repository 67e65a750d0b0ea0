"""BatchNorm's running statistics, estimated anew on clean images where training has shown it none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from unixkd.batch import Batch
from unixkd.methods import Method
from unixkd.network import Network
from unixkd.parallel import ALONE, World


def sees_clean_images(method: Method, epoch: int) -> bool:
    """Whether an epoch's train-mode forwards include images that are neither mixed nor shrunk.

    >>> from unixkd.methods import kd, unix, unix_random
    >>> [sees_clean_images(method, 0) for method in (kd(), unix(), unix(scoring_mode="eval"), unix_random())]
    [True, True, False, False]
    """
    scoring = method.scoring
    scored = method.scorer is not None and scoring.mode == "train" and scoring.size == 1
    return (method.curve is None and method.size == 1) or (scored and scoring.within_step(epoch))


def synchronise(student: nn.Module, world: World) -> None:
    """Let BatchNorm normalise by the images of all processes; names of weights stay what they are.

    A forward in train mode is then one of all processes. `checks.check_synchronised` has seen to the device.
    """
    if world.size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(student)


def is_synchronised(module: nn.Module) -> bool:
    """Whether a forward in train mode is one of all processes."""
    return any(isinstance(m, nn.SyncBatchNorm) for m in module.modules())


def has_statistics(module: nn.Module) -> bool:
    """Whether a module keeps running statistics of its batches."""
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in module.modules()
    )


@contextlib.contextmanager
def clean_statistics(
    module: nn.Module,
    batches: Iterable[Batch],
    dtype: torch.dtype | None,
    *,
    keep: bool,
    world: World = ALONE,
) -> Iterator[None]:
    """Inside, running statistics are the plain mean over these batches; afterwards what they were, or kept.

    Args:
        module: the network, whose other buffers a forward may not change
        batches: clean images, on the network's device
        dtype: precision by autocast
        keep: leave the new statistics in place
        world: its leader has the batches, or each process its part of them where they normalise together
    """
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    device = next(module.parameters()).device
    with torch.no_grad(), Network(module, dtype=dtype).autocast(device.type):
        update_bn((batch.images for batch in batches), module, device)
    world.take_from_leader(list(module.buffers()))
    try:
        yield
    finally:
        if not keep:
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])
