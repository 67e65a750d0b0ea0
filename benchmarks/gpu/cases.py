"""What is run: how much of it, on which images, with which networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from unixkd.data import MemorySplit
from unixkd.data.split import Split
from unixkd.models import ModelCard, PixelModel, create_model
from unixkd.training.cuda_graph import Recorder

CHANNELS, PADDING = 3, 4
MEAN, STD = (0.5,) * CHANNELS, (0.25,) * CHANNELS
SETTLING = 20
"""Batches that set the teacher's BatchNorm statistics: with those of a new network its logits explode."""


@dataclass(frozen=True)
class Scale:
    """How much is measured, and on what.

    Args:
        device: where it runs
        pairs: teacher and student
        images: training images
        size: their side in pixels
        classes: width of both classifiers
        batch_sizes: the usual one and an extra one
        check_steps: steps of which captured and eager losses are compared
        window: steps between two looks at the clock
        rounds: windows of each contender
        side_by_side: runs that share the device
        backend: of torch.compile
        compile_seconds: that compiling may take
        compiled: precisions in which compiled steps are timed
        photos: JPEGs on disk
        photo_size: side that they are cut to, in pixels
        photo_pair: teacher and student that see them
        record: stands in for a CUDA graph; None: a real one
    """

    device: torch.device
    pairs: tuple[tuple[str, str], ...]
    images: int
    size: int
    classes: int
    batch_sizes: tuple[int, int]
    check_steps: int
    window: int
    rounds: int
    side_by_side: int
    backend: str
    compile_seconds: float
    compiled: tuple[str, ...]
    photos: int
    photo_size: int
    photo_pair: tuple[str, str]
    record: Recorder | None = None


@dataclass(frozen=True)
class Case:
    """One kind of run."""

    teacher: str
    student: str
    method: str
    precision: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.teacher} -> {self.student}, {self.method}, {self.precision}, {self.batch_size}"


def make_split(scale: Scale) -> MemorySplit:
    """Random images on the device, of 4 × 4 blocks of one colour so that they differ as photographs do."""
    generator = torch.Generator(scale.device).manual_seed(0)
    block = scale.size // 4
    shape = (scale.images, 4, 4, CHANNELS)
    colours = torch.randint(256, shape, dtype=torch.uint8, device=scale.device, generator=generator)
    images = colours.repeat_interleave(block, dim=1).repeat_interleave(block, dim=2)
    labels = torch.arange(scale.images, device=scale.device) % scale.classes
    return MemorySplit(images, labels, PADDING, flip=True)


def make_network(name: str, scale: Scale) -> PixelModel:
    """A network with random weights, the same ones at every call."""
    torch.manual_seed(0)
    card = ModelCard(name, scale.classes, CHANNELS, MEAN, STD)
    network = PixelModel(create_model(name, scale.classes, CHANNELS), card).to(scale.device)
    return network.to(memory_format=torch.channels_last)


def settle_statistics(network: nn.Module, split: Split, batch_size: int) -> None:
    """Let BatchNorm see some batches."""
    network.train()
    order = torch.arange(SETTLING * batch_size) % len(split)
    with torch.no_grad():
        for batch in split.train_batches(0, order, batch_size):
            network(batch.images)
