"""Every random choice of a step, drawn beforehand from (seed, step, rank) and nothing else.

The numbers are hashes of what they are drawn for, so nothing depends on order or workers. The mixing function is that
of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Tensors hold the 64
bits as int64; its wrap-around arithmetic is that of unsigned integers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.method.batch import Draws

_PARTNER, _LAMBDA, _NOISE = 5, 6, 7  # the purpose of a draw, first word of its key; 1 to 4 are the data's
_MANTISSA = 24  # bits that float32 holds exactly


def make_draws(
    num_images: int,
    *,
    seed: int,
    step: int,
    rank: int = 0,
    per_sample_lambda: bool = False,
    device: torch.device | str = "cpu",
) -> Draws:
    """The draws of one step: partners, λ ~ Beta(1, 1) = U(0, 1), and noise for random ranking.

    They are hashes in whole numbers, so a run's choices do not depend on the device it runs on.

    >>> a, b = (make_draws(4, seed=0, step=7) for _ in range(2))
    >>> bool((a.partner == b.partner).all() and (a.lam == b.lam).all())
    True
    """
    return epoch_draws(
        num_images,
        num_images,
        seed=seed,
        first_step=step,
        rank=rank,
        per_sample_lambda=per_sample_lambda,
        device=device,
    )


def epoch_draws(
    num_images: int,
    batch_size: int,
    *,
    seed: int,
    first_step: int,
    rank: int = 0,
    per_sample_lambda: bool = False,
    device: torch.device | str = "cpu",
) -> Draws:
    """The draws of an epoch's steps, one after the other `[num_images]`, made on the device.

    >>> epoch = epoch_draws(6, 4, seed=0, first_step=7)
    >>> torch.equal(epoch.rows(0, 4).noise, make_draws(4, seed=0, step=7).noise)
    True
    """
    place = torch.arange(num_images, device=device)
    step, row = first_step + place // batch_size, place % batch_size

    def words(purpose: int, index: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
        return draw_words((purpose, seed, rank, step), index)

    order = words(_PARTNER, row)
    full = num_images // batch_size * batch_size
    steps = [order[:full].view(-1, batch_size), order[None, full:]]
    partner = torch.cat([each.argsort(dim=1, stable=True).flatten() for each in steps])
    lam = words(_LAMBDA, row if per_sample_lambda else torch.zeros_like(row))
    return Draws(partner, _unit(lam), _unit(words(_NOISE, row)))


def _unit(words: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """63 random bits to a number in [0, 1)."""
    return (words >> (63 - _MANTISSA)).float() / (1 << _MANTISSA)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shift_xor(z: Tensor, shift: int) -> Tensor:
    # int64 shifts copy the sign bit; the mask makes the shift logical
    return z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))


def mix64(z: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """SplitMix64's finaliser: a bijection of 64-bit words in which every input bit stirs every output bit.

    >>> mix64(torch.tensor([1234567 + 0x9E3779B97F4A7C15 - 2**64])).item() # 6457827717110365317 as uint64
    6457827717110365317
    """
    z = _shift_xor(z, 30) * _MULTIPLIERS[0]
    z = _shift_xor(z, 27) * _MULTIPLIERS[1]
    return _shift_xor(z, 31)


def draw_words(key: tuple[int | Int[Tensor, " n"], ...], index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """63 random bits for each index under a key of integers; the same key and index give the same bits.

    Each word of the key, then the index, is absorbed: h <- mix64(h XOR word + gamma).

    Args:
        key: what the draw is for, e.g. (purpose, seed, epoch); the order of its words matters; a word may be a tensor
            with a value for each index `[N]`, int64
        index: counters `[N]`, int64

    Returns:
        Uniform integers in [0, 2^63) `[N]`, on the device of `index`.

    >>> words = draw_words((0, 1), torch.arange(3))
    >>> torch.equal(words[2:], draw_words((0, 1), torch.tensor([2])))
    True
    """
    state = torch.zeros(1, dtype=torch.int64, device=index.device)
    for word in key:
        state = mix64((state ^ (_signed(word) if isinstance(word, int) else word)) + _GAMMA)
    words = mix64((state ^ index) + _GAMMA)
    return words & ((1 << 63) - 1)
