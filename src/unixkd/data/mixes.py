"""Fixed mixes of two training images: which two, in which views, with which weight is a function of the mix's number.

A mix has a number as a view has, so a teacher's answer to it can be stored and used again in a later epoch. The idea
that a stored answer may be one to a mixed image: Faghri et al., "Reinforce Data, Multiply Impact" (ICCV 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from unixkd.method.draws import draw_words

# what is drawn for; 1 to 8 are the views', the steps' and the choice's
_VIEW, _PARTNER, _PARTNER_VIEW, _WEIGHT = 9, 10, 11, 12
_MANTISSA = 24  # bits that float32 holds exactly


@dataclass(frozen=True)
class FixedMixes:
    """What is mixed: (1 − weight) · view of the image + weight · view of the partner."""

    view: Int[Tensor, " n"]  # code of the image's view
    partner: Int[Tensor, " n"]  # position among the training images; it may be the image itself
    partner_view: Int[Tensor, " n"]  # code of the partner's view
    weight: Float[Tensor, " n"]  # of the partner, uniform in [0, 1)


def fixed_mixes(
    view_seed: int, index: Int[Tensor, " n"], number: Int[Tensor, " n"], images: int, views: int | None
) -> FixedMixes:
    """The mixes of these numbers; any device, no synchronisation.

    Args:
        view_seed: seed of the augmentations
        index: position of each image `[N]`, int64
        number: which of the image's mixes `[N]`, int64
        images: how many training images there are
        views: how many views an image has; None: a view's code is a seed, any number in [0, 2^63)

    >>> import torch
    >>> a, b = (fixed_mixes(0, torch.tensor([3, 5]), torch.tensor([2, 2]), images=10, views=50) for _ in range(2))
    >>> torch.equal(a.partner, b.partner), bool((a.partner < 10).all()), bool((a.weight < 1).all())
    (True, True, True)
    """

    def words(purpose: int) -> Int[Tensor, " n"]:
        return draw_words((purpose, view_seed, number), index)

    def view(purpose: int) -> Int[Tensor, " n"]:
        return words(purpose) if views is None else words(purpose) % views

    weight = (words(_WEIGHT) >> (63 - _MANTISSA)).float() / (1 << _MANTISSA)
    return FixedMixes(view(_VIEW), words(_PARTNER) % images, view(_PARTNER_VIEW), weight)
