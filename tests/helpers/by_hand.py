"""What several processes compute together, by one, rank by rank and in plain loops: shares nothing with the package.

Only the draws and the networks are given; selection, mixing, losses and the step of SGD are written out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unixkd.method.batch import Draws

TEMPERATURE, STEEPNESS = 4.0, 10.0


@dataclass
class Trained:
    """What was found on the way: of each step what each process kept (image, rank), and its mean loss."""

    student: nn.Module
    kept: list[list[list[tuple[int, int]]]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)


def parts_of(rows: Sequence[int], size: int) -> list[list[int]]:
    """So many parts, the first ones longer by one where it does not go evenly."""
    lengths = [len(rows) // size + (1 if r < len(rows) % size else 0) for r in range(size)]
    starts = [sum(lengths[:r]) for r in range(size)]
    return [list(rows[s : s + n]) for s, n in zip(starts, lengths, strict=True)]


def uncertainty(net: nn.Module, images: Tensor) -> list[float]:
    """Entropy of each image's prediction."""
    with torch.no_grad():
        p = net(images).double().softmax(1)
    return [-sum(float(x) * math.log(float(x)) for x in row if x > 0) for row in p]


def best(scores: dict[int, float], order: Sequence[int], k: int) -> list[int]:
    """The first k by falling score; of equal ones the earlier."""
    return sorted(order, key=lambda i: (-scores[i], order.index(i)))[:k]


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """T² Σ q (log q − log p), the mean over rows."""
    log_p, log_q = ((x / TEMPERATURE).log_softmax(1) for x in (student, teacher))
    return TEMPERATURE**2 * (log_q.exp() * (log_q - log_p)).sum(1).mean()


def mixed_images(images: Tensor, rows: list[tuple[int, int]], own: list[int], n: int, draws: Draws) -> Tensor:
    """Each kept row with its partner among the process's own rows, by its rank among n."""
    b = round(0.5 * n)
    found = []
    for place, (image, rank) in enumerate(rows):
        strength = 1 / (1 + math.exp(-STEEPNESS * (rank / n - (2 * b - 1) / (2 * n))))
        m = float(draws.lam[place]) * strength
        found.append((1 - m) * images[image] + m * images[own[int(draws.partner[place])]])
    return torch.stack(found)


def train(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    order: Sequence[int],
    batch: int,
    size: int,
    draws_of: Callable[[int, int, int], Draws],
    *,
    keep: float = 0.75,
    mixes: bool = True,
    rate: float = 0.1,
) -> Trained:
    """An epoch of so many processes.

    Args:
        student: a copy is trained, by SGD on the mean over the kept rows of a step
        teacher: is asked about them
        images: all of them
        order: images to visit
        batch: N of all processes together
        size: how many there are
        draws_of: (rows, step, rank) -> draws
        keep: k/N; 1 and no mixing is plain KD
        mixes: kept rows are mixed
        rate: of learning
    """
    found = Trained(copy.deepcopy(student))
    net = found.student
    weights = list(net.parameters())
    for step in range(math.ceil(len(order) / batch)):
        whole = list(order[step * batch : (step + 1) * batch])
        parts = parts_of(whole, size)
        scores = dict(zip(whole, uncertainty(net, images[whole]), strict=True))
        own = batch // size
        rows = [
            [
                (image, rank)
                for rank, image in enumerate(best(scores, part, min(round(keep * own), len(part))))
            ]
            for part in parts
        ]
        losses, shares = [], []
        for rank, (kept, part) in enumerate(zip(rows, parts, strict=True)):
            x = images[[image for image, _ in kept]]
            if mixes:
                x = mixed_images(images, kept, part, batch // size, draws_of(len(part), step, rank))
            with torch.no_grad():
                answers = teacher(x)
            losses.append(kl(net(x), answers))
            shares.append(len(part) / len(whole))
        total = torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()
        gradients = torch.autograd.grad(total, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= rate * gradient
        found.kept.append(rows)
        found.losses.append([float(loss.detach()) for loss in losses])
    return found
