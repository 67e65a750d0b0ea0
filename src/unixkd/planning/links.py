"""What processes that train together send each other in a step, and how long that takes; imports no torch.

Formulas of collective operations as in Thakur, Rabenseifner & Gropp, *Optimization of Collective Communication
Operations in MPICH* (2005), and NVIDIA's nccl-tests, whose "bus bandwidth" is the bandwidth meant here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MIB = 2**20
FIRST_BUCKET, BUCKET = 1 * MIB, 25 * MIB
"""Bytes of gradients that DistributedDataParallel reduces as one message: the first, and each after it."""


@dataclass(frozen=True)
class Link:
    """What a process sends through to the next one, and receives through at the same time.

    Args:
        bandwidth: bytes per second, each way
        latency: seconds that a message takes however short it is
    """

    bandwidth: float
    latency: float = 10e-6


WITHIN = Link(20e9)
"""Between the GPUs of a machine where nothing is given: PCIe 4 with 16 lanes, with a little lost."""
BETWEEN = Link(1.25e9)
"""Between machines where nothing is given: Ethernet of 10 Gbit/s."""


@dataclass(frozen=True)
class Cluster:
    """Nodes alike, each with as many GPUs, one process on each GPU.

    Args:
        gpus: of a node, G
        nodes: M
        within: what GPUs of a node send through
        between: what a node sends through, shared by its GPUs

    >>> Cluster(gpus=8, nodes=2).processes, Cluster(gpus=8).link == WITHIN, Cluster(gpus=8, nodes=2).link == BETWEEN
    (16, True, True)
    """

    gpus: int = 1
    nodes: int = 1
    within: Link = WITHIN
    between: Link = BETWEEN

    @property
    def processes(self) -> int:
        """P = G · M."""
        return self.gpus * self.nodes

    @property
    def link(self) -> Link:
        """The slowest that a ring through all processes passes; it enters and leaves each node once."""
        if self.nodes == 1:
            return self.within
        if self.gpus == 1:
            return self.between
        return Link(
            min(self.within.bandwidth, self.between.bandwidth),
            max(self.within.latency, self.between.latency),
        )


def all_reduce_bytes(size: float, processes: int) -> float:
    """Bytes that each process sends, and receives, to sum up so many over all: 2 (P − 1) / P of them.

    >>> all_reduce_bytes(100, 1), all_reduce_bytes(100, 2), all_reduce_bytes(100, 4)
    (0.0, 100.0, 150.0)
    """
    return 2 * (processes - 1) / processes * size


def all_reduce_seconds(size: float, processes: int, link: Link, messages: int = 1) -> float:
    """Seconds to sum up so many bytes over all processes in a ring, each message in 2 (P − 1) turns.

    Args:
        size: bytes, in all messages together
        processes: P
        link: between neighbours of the ring
        messages: that the bytes are sent as
    """
    turns = 2 * (processes - 1)
    return all_reduce_bytes(size, processes) / link.bandwidth + messages * turns * link.latency


def all_gather_seconds(size: float, processes: int, link: Link) -> float:
    """Seconds until all have everyone's part of so many bytes, in a ring: P − 1 turns of a P-th of them."""
    turns = processes - 1
    return turns * (size / processes / link.bandwidth + link.latency)


def broadcast_seconds(size: float, processes: int, link: Link, messages: int = 1) -> float:
    """Seconds until all have the first process's bytes: a tree's turns, with the bytes flowing through it."""
    if processes == 1:
        return 0.0
    return size / link.bandwidth + messages * math.ceil(math.log2(processes)) * link.latency


def buckets(size: int) -> int:
    """Messages that DistributedDataParallel reduces so many bytes of gradients as.

    >>> buckets(MIB), buckets(MIB + 1), buckets(26 * MIB), buckets(46_758_048)  # the last: a ResNet-18 in fp32
    (1, 2, 2, 3)
    """
    return 1 + math.ceil(max(0, size - FIRST_BUCKET) / BUCKET)


def moved_rows(batch_size: int, kept: int, processes: int) -> float:
    """Rows that change their process, in expectation, for all to train on as many of those kept of a whole batch.

    What a process holds of the kept rows is hypergeometric; half its mean deviation is too many, σ / √(2π) by the
    normal approximation.

    Args:
        batch_size: N, of all processes together
        kept: K of them, which lie anywhere
        processes: P, each with N / P rows

    >>> moved_rows(256, 192, 1), moved_rows(256, 256, 8), f"{moved_rows(256, 192, 8):.1f}"
    (0.0, 0.0, '7.3')
    """
    if processes == 1:
        return 0.0
    own, share = batch_size / processes, kept / batch_size
    variance = own * share * (1 - share) * (batch_size - own) / (batch_size - 1)
    return processes * math.sqrt(variance / (2 * math.pi))


@dataclass(frozen=True)
class Traffic:
    """What a step sends.

    Args:
        gradients: bytes of the student's gradients
        buffers: bytes of its buffers, BatchNorm's statistics for one, that all take from the first process
        buffer_types: of numbers among them: a message each
        image: bytes of an image where rows change their process
        selection: local (each process keeps its share of its own rows) | global (the most uncertain of the whole batch)
    """

    gradients: int
    buffers: int = 0
    buffer_types: int = 0
    image: int = 0
    selection: Literal["local", "global"] = "local"

    def gradient_seconds(self, cluster: Cluster) -> float:
        """To average the gradients."""
        return all_reduce_seconds(
            self.gradients, cluster.processes, cluster.link, messages=buckets(self.gradients)
        )

    def buffer_seconds(self, cluster: Cluster) -> float:
        """To hand out the buffers."""
        return broadcast_seconds(self.buffers, cluster.processes, cluster.link, messages=self.buffer_types)

    def exchange_seconds(self, cluster: Cluster, batch_size: int, kept: int) -> float:
        """To rank the whole batch and even out what each process trains on; at most, as if all rows took one link.

        Args:
            cluster: the processes
            batch_size: N, of all processes together
            kept: K of them
        """
        if self.selection == "local" or cluster.processes == 1:
            return 0.0
        rows = moved_rows(batch_size, kept, cluster.processes)
        moving = rows * self.image / cluster.link.bandwidth
        return all_gather_seconds(4 * batch_size, cluster.processes, cluster.link) + moving
