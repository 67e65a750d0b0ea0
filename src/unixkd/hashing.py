"""Counter-based random numbers: a hash of what is drawn for, so nothing depends on order or workers.

The mixing function is that of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014). Tensors hold the 64 bits as int64; its wrap-around arithmetic is that of uint64.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_xor(z: Tensor, shift: int) -> Tensor:
    # int64 shifts copy the sign bit; the mask makes the shift logical
    return z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))


def mix64(z: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """SplitMix64's finaliser: a bijection of 64-bit words in which every input bit stirs every output bit.

    >>> mix64(torch.tensor([1234567 + 0x9E3779B97F4A7C15 - 2**64])).item() # 6457827717110365317 as uint64
    6457827717110365317
    """
    z = _shift_xor(z, 30) * _signed(_MULTIPLIERS[0])
    z = _shift_xor(z, 27) * _signed(_MULTIPLIERS[1])
    return _shift_xor(z, 31)


def draw_words(key: tuple[int | Int[Tensor, " n"], ...], index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """63 random bits for each index under a key of integers; the same key and index give the same bits.

    Each part of the key, then the index, is one absorbed word: h <- mix64(h XOR word + gamma).

    Args:
        key: what the draw is for, e.g. (purpose, seed, epoch); the order of its parts matters; a part may
            be a tensor with a value for each index `[N]`, int64
        index: counters `[N]`, int64

    Returns:
        Uniform integers in [0, 2^63) `[N]`, on the device of `index`.

    >>> words = draw_words((0, 1), torch.arange(3))
    >>> torch.equal(words[2:], draw_words((0, 1), torch.tensor([2])))
    True
    """
    state = torch.zeros(1, dtype=torch.int64, device=index.device)
    for word in key:
        state = mix64((state ^ (_signed(word) if isinstance(word, int) else word)) + _signed(_GAMMA))
    words = mix64((state ^ index) + _signed(_GAMMA))
    return words & ((1 << 63) - 1)
