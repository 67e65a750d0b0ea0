"""Whether a teacher's outputs are other classes than the data's: the best one-to-one relabelling, if clearly better.

The best of all relabellings always looks better on the images that it was chosen by. So it is chosen by every other
image of each class and judged by the rest, and the other way round. Classes weigh the same, however many images they
have: relabelling the only output of a teacher that always says the same gains nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

CLEAR = 3.5
"""Standard errors by which a relabelling has to be better on images it was not chosen by."""
CYCLE = 2.0
"""Those by which a cycle of classes has to be better on the images it was chosen by, to be looked at."""


def displaced(said: Int[Tensor, " n"], labels: Int[Tensor, " n"], classes: int) -> dict[int, int]:
    """For each output that is clearly another class, that class; empty where the outputs are in order.

    Args:
        said: the teacher's most probable class of each image `[N]`
        labels: the right ones `[N]`
        classes: how many there are

    >>> import torch
    >>> labels = torch.arange(40) % 4
    >>> displaced(torch.tensor([0, 2, 1, 3])[labels], labels, 4), displaced(labels, labels, 4)
    ({1: 2, 2: 1}, {})
    """
    right, outputs = labels.numpy(), said.numpy()
    halves = np.zeros((2, classes, classes))
    order = np.argsort(right, kind="stable")  # neighbours of a class go to different halves
    np.add.at(halves, (np.arange(len(order)) % 2, right[order], outputs[order]), 1)
    both = halves.sum(axis=0)
    weight = 1 / np.maximum(both.sum(axis=1), 1)
    gain, square = (
        sum(pair)
        for pair in zip(
            *(_gain(halves[1 - i], weight, _clear(halves[i], weight)) for i in (0, 1)), strict=True
        )
    )
    return _clear(both, weight) if gain > CLEAR * square**0.5 else {}


def _clear(counts: Float[np.ndarray, "c c"], weight: Float[np.ndarray, " c"]) -> dict[int, int]:
    """The cycles of the best relabelling that gain clearly, by images per class and output."""
    best, moves, seen = _assignment(counts * weight[:, None]), dict[int, int](), set[int]()
    for start in np.flatnonzero(best != np.arange(len(best))).tolist():
        cycle = dict[int, int]()
        while start not in seen:
            seen.add(start)
            cycle[start] = start = int(best[start])
        gain, square = _gain(counts, weight, cycle)
        moves |= cycle if gain > CYCLE * square**0.5 else {}
    return moves


def _gain(
    counts: NDArray[np.float64], weight: NDArray[np.float64], moves: dict[int, int]
) -> tuple[float, float]:
    """What relabelling gains, each image counted with its class's weight, and the sum of their squares."""
    before, after = list(moves), list(moves.values())
    won, lost = counts[after, before], counts[before, before]
    gain = (won * weight[after] - lost * weight[before]).sum()
    return float(gain), float((won * weight[after] ** 2 + lost * weight[before] ** 2).sum())


def _assignment(worth: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each column its row, one to one, worth most together (the Hungarian method); ties go to the diagonal."""
    n = len(worth)
    cost = -worth.T - 1e-9 * np.eye(n)  # a row for each output
    # Output and class 0 stand for "none yet", as the method is usually written.
    of_output, of_class, output_of, came_from = np.zeros(n + 1), np.zeros(n + 1), *np.zeros((2, n + 1), int)
    for output in range(1, n + 1):
        output_of[0], here = output, 0
        slack, used = np.full(n + 1, np.inf), np.zeros(n + 1, bool)
        while here == 0 or output_of[here]:
            used[here] = True
            now = np.full(n + 1, np.inf)
            now[1:] = cost[output_of[here] - 1] - of_output[output_of[here]] - of_class[1:]
            came_from[closer := ~used & (now < slack)] = here
            slack[closer] = now[closer]
            step = (free := np.where(used, np.inf, slack)).min()
            of_output[output_of[used]] += step
            of_class[used] -= step
            slack[~used] -= step
            here = int(free.argmin())
        while here:
            output_of[here] = output_of[came_from[here]]
            here = int(came_from[here])
    classes = np.empty(n, int)
    classes[output_of[1:] - 1] = np.arange(n)
    return classes
