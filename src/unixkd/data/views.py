"""Augmentations as integer codes: which view of an image is shown is data, not the state of a generator.

A view is a crop of the zero-padded image, flipped or not. With padding p there are (2p + 1)^2 crops, and
    code = flip * (2p + 1)^2 + top * (2p + 1) + left,
where top and left in 0..2p are the corner of the crop in the padded image. The crops' codes do not
depend on whether flips are allowed, and the unaugmented image is the middle crop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unixkd.method.draws import draw_words

# what is drawn for; the order of an epoch has number 2
_CODE, _SEQUENCE, _TURN = 1, 3, 4
_CHUNK = 1 << 20  # codes shuffled at a time


def num_views(padding: int, flip: bool) -> int:
    """How many views an image has.

    >>> num_views(4, flip=True), num_views(1, flip=False), num_views(0, flip=False)
    (162, 9, 1)
    """
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def identity_view(padding: int) -> int:
    """The code of the view that is the image itself.

    >>> identity_view(4)
    40
    """
    return 2 * padding * (padding + 1)


def view_codes(
    view_seed: int, epoch: int, index: Int[Tensor, " n"], views: int | None = None
) -> Int[Tensor, " n"]:
    """The view of each image in an epoch: a function of its arguments only, so order cannot change it.

    Args:
        view_seed: seed of the augmentations
        epoch: number of the epoch
        index: position of each image in its data set `[N]`, int64
        views: how many views there are (`num_views`); None: any number in [0, 2^63), a seed per image

    Returns:
        Codes `[N]`, int64, uniform in [0, views) and independent over epochs and indices.

    >>> codes = view_codes(0, epoch=3, index=torch.arange(1000), views=162)
    >>> bool((codes >= 0).all()), bool((codes < 162).all())
    (True, True)
    >>> torch.equal(codes[[7, 5]], view_codes(0, 3, torch.tensor([7, 5]), 162))
    True
    """
    words = draw_words((_CODE, view_seed, epoch), index)
    return words if views is None else words % views


def balanced_views(view_seed: int, epoch: int, index: Int[Tensor, " n"], limit: int) -> Int[Tensor, " n"]:
    """Which of its `limit` views each image shows in an epoch: in turn, from a random one on.

    >>> [int(balanced_views(0, epoch, torch.tensor([5]), 3)) for epoch in range(4)]
    [0, 1, 2, 0]
    """
    start = draw_words((_TURN, view_seed), index) % limit
    return (start + epoch) % limit


def first_codes(view_seed: int, index: Int[Tensor, " n"], views: int, limit: int) -> Int[Tensor, "n v"]:
    """The first codes of a random order of all views, one order for each image; any device.

    It is the shuffle of Fisher and Yates, stopped after `limit` steps: fewer are the beginning of more.

    Args:
        view_seed: seed of the augmentations
        index: position of each image in its data set `[N]`, int64
        views: how many views there are (`num_views`)
        limit: how many are wanted, 1..views

    Returns:
        Codes `[N, limit]`, distinct in each row, uniform in [0, views); int16, or int32 where they need it.

    >>> first_codes(0, torch.arange(2), views=9, limit=4).shape
    torch.Size([2, 4])
    >>> first_codes(0, torch.arange(1), views=9, limit=9).sort().values.tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    """
    dtype = torch.int16 if views <= 1 << 15 else torch.int32
    ordered = torch.arange(views, dtype=dtype, device=index.device)
    chunks = []
    for chunk in index.split(max(_CHUNK // views, 1)):
        codes = ordered.repeat(len(chunk), 1)
        for place in range(limit):
            left = views - place
            other = place + draw_words((_SEQUENCE, view_seed, place), chunk)[:, None] % left
            here, there = codes[:, place : place + 1].clone(), codes.gather(1, other)
            codes.scatter_(1, other, here)
            codes[:, place : place + 1] = there
        chunks.append(codes[:, :limit].clone())
    return torch.cat(chunks)


def numbered_seeds(view_seed: int, index: Int[Tensor, " n"], view: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The seed of each image's numbered view, where views are unbounded: integers in [0, 2^63) `[N]`."""
    return draw_words((_SEQUENCE, view_seed, view), index)


def apply_views(
    images: UInt8[Tensor, "n h w c"], codes: Int[Tensor, " n"], padding: int, flip: bool
) -> UInt8[Tensor, "n h w c"]:
    """Cut the coded view out of every image of a batch by one gather; any device, no synchronisation.

    Args:
        images: pixels `[N, H, W, C]`, uint8
        codes: view of each image `[N]`, int64 in [0, num_views(padding, flip)); not checked
        padding: zero padding p in pixels
        flip: whether codes may say that the view is mirrored

    Returns:
        Pixels `[N, H, W, C]`, uint8; permuted to `[N, C, H, W]` they are contiguous in channels_last.

    >>> image = torch.tensor([[[[1], [2]], [[3], [4]]]], dtype=torch.uint8)
    >>> apply_views(image, torch.tensor([0]), padding=1, flip=False)[0, :, :, 0]  # the top left crop
    tensor([[0, 0],
            [0, 1]], dtype=torch.uint8)
    """
    n, height, width, channels = images.shape
    side = 2 * padding + 1
    mirrored = codes.div(side * side, rounding_mode="floor")
    crop = codes % (side * side)
    top, left = crop.div(side, rounding_mode="floor"), crop % side
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    rows = torch.arange(height, device=images.device) + top[:, None]
    columns = torch.arange(width, device=images.device).expand(n, width)
    if flip:
        columns = torch.where(mirrored[:, None] > 0, width - 1 - columns, columns)
    columns = columns + left[:, None]
    start = torch.arange(n, device=images.device)[:, None] * (height + 2 * padding)
    pixel = (start + rows)[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    gathered = padded.reshape(-1, channels).index_select(0, pixel.reshape(-1))
    return gathered.view(n, height, width, channels)


def to_pixels(images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n c h w"]:
    """uint8 `[N, H, W, C]` to float32 in [0, 1] `[N, C, H, W]`, which is contiguous in channels_last."""
    return images.to(torch.float32).div_(255).permute(0, 3, 1, 2)
