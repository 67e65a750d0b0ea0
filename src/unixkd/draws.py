"""Every random choice of a step, drawn beforehand from (seed, step, rank) and nothing else."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unixkd.batch import Draws
from unixkd.hashing import draw_words

# what is drawn for; 1 to 4 are the data's
_PARTNER, _LAMBDA, _NOISE = 5, 6, 7
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
    >>> torch.equal(epoch.part(0, 4).noise, make_draws(4, seed=0, step=7).noise)
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
