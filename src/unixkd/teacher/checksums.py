"""Checksums of stored answers: a row that a kill or a second writer has torn does not match its own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from unixkd.hashing import mix64


def checksum_weights(width: int) -> NDArray[np.uint64]:
    """Fixed weights of `checksums` `[1 + width]`: SplitMix64's finaliser of 1, 2, 3 …"""
    return mix64(torch.arange(1, 2 + width)).numpy().view(np.uint64)


def checksums(rows: NDArray[np.number], weights: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """A checksum of each row `[N]`, never 0.

    The upper half of w_0 + Σ w_c · x_c modulo 2^64, where x_c is the row's c-th number as bits: two rows
    that differ in any way agree for one draw of the weights in 2^32 (multilinear hashing; Lemire & Kaser,
    "Strongly universal string hashing is fast", 2014).

    Args:
        rows: numbers of 2 or 4 bytes `[N, width]`, contiguous
        weights: `checksum_weights(width)`
    """
    words: NDArray[np.unsignedinteger] = rows.view(f"u{rows.itemsize}")
    sums = weights[0] + np.einsum("nc,c->n", words, weights[1:], dtype=np.uint64, casting="safe")
    return np.maximum(sums >> np.uint64(32), 1).astype(np.uint32)
