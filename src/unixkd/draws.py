"""Every random choice of a step, drawn beforehand from (seed, step, rank) and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from unixkd.batch import Draws


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

    They are made on the CPU, so a run's choices do not depend on the device it runs on.

    >>> a, b = (make_draws(4, seed=0, step=7) for _ in range(2))
    >>> bool((a.partner == b.partner).all() and (a.lam == b.lam).all())
    True
    """
    # step and rank as spawn_key: in one tuple, a seed of 2**32 would run into the step.
    state = np.random.SeedSequence(seed, spawn_key=(step, rank)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state))
    partner = torch.randperm(num_images, generator=generator)
    lam = torch.rand(num_images if per_sample_lambda else 1, generator=generator).expand(num_images)
    noise = torch.rand(num_images, generator=generator)
    return Draws(partner.to(device), lam.to(device), noise.to(device))


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
    """The draws of an epoch's steps, one after the other `[num_images]`, with one transfer to the device.

    >>> epoch = epoch_draws(6, 4, seed=0, first_step=7)
    >>> torch.equal(epoch.part(0, 4).noise, make_draws(4, seed=0, step=7).noise)
    True
    """
    steps = [
        make_draws(
            min(batch_size, num_images - start),
            seed=seed,
            step=first_step + number,
            rank=rank,
            per_sample_lambda=per_sample_lambda,
        )
        for number, start in enumerate(range(0, num_images, batch_size))
    ]
    partner, lam, noise = (
        torch.cat([getattr(step, name) for step in steps]).to(device) for name in ("partner", "lam", "noise")
    )
    return Draws(partner, lam, noise)
