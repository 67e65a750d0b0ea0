"""Whether a teacher's outputs are other classes than the data's: the best one-to-one relabelling, if clearly better.

The best of all relabellings always looks better on the images that it was chosen by. So it is chosen by every other
image of each class and judged by the rest, and the other way round. Classes weigh the same, however many images they
have: relabelling a teacher that always says the same gains nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

CLEAR = 3.5
"""Standard errors by which a relabelling has to be better on images that it was not chosen by."""


def displaced(said: Int[Tensor, " n"], labels: Int[Tensor, " n"], classes: int) -> dict[int, int]:
    """For each output that is clearly another class, that class, one to one; empty where the outputs are in order.

    >>> import torch
    >>> labels = torch.arange(40) % 4
    >>> displaced(torch.tensor([0, 2, 1, 3])[labels], labels, 4), displaced(labels, labels, 4)
    ({1: 2, 2: 1}, {})
    """
    right, outputs = labels.numpy(), said.numpy()
    counts = np.zeros((2, classes, classes))  # of images by half, class and output
    order = np.argsort(right, kind="stable")
    np.add.at(counts, (np.arange(len(order)) % 2, right[order], outputs[order]), 1)
    images = np.maximum(counts.sum(axis=(0, 2)), 1)
    gain = square = 0.0
    for chosen, judged in (counts, counts[::-1]):
        moves = _best(chosen / images[:, None])
        output, to = list(moves), list(moves.values())
        won, lost = judged[to, output], judged[output, output]
        gain += (won / images[to] - lost / images[output]).sum()
        square += (won / images[to] ** 2 + lost / images[output] ** 2).sum()
    return _best(counts.sum(axis=0) / images[:, None]) if gain > CLEAR * square**0.5 else {}


def _best(shares: NDArray[np.float64]) -> dict[int, int]:
    """The relabelling of each output as the class that it is said of most, if nothing is said of that more often.

    A class whose output is taken so gets, through a cycle, the output that is left over: the relabelling is one to one.
    """
    shares = shares + 1e-9 * np.eye(len(shares))  # ties stay in place
    to, of = shares.argmax(axis=0).tolist(), shares.argmax(axis=1).tolist()
    moves = {output: to[output] for output in range(len(to)) if output == of[to[output]] != to[output]}
    back = {to: output for output, to in moves.items()}
    for end in back.keys() - moves.keys():
        start = back[end]
        while start in back:
            start = back[start]
        moves[end] = start
    return dict(sorted(moves.items()))
