"""Views: codes are uniform, independent and depend on their arguments only; gathers equal plain slicing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unixkd.data import apply_views, epoch_order, identity_view, num_views, to_pixels, view_codes
from unixkd.data.hashing import draw_words, mix64

MASK = (1 << 64) - 1


def slow_mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_view(image, code, padding):
    """One view by slicing: image [H, W, C] numpy."""
    side = 2 * padding + 1
    flip, crop = divmod(code, side * side)
    top, left = divmod(crop, side)
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    cut = padded[top : top + height, left : left + width]
    return cut[:, ::-1] if flip else cut


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


def assert_uniform(counts):
    # chi-square of f degrees of freedom has mean f and variance 2f; five deviations either way
    freedom = counts.size - 1
    assert abs(chi_square(counts) - freedom) < 5 * np.sqrt(2 * freedom)


def test_mixing_function_gives_splitmix64s_published_sequence():
    # the first outputs of SplitMix64 for seed 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + i * 0x9E3779B97F4A7C15) & MASK for i in range(1, 5)]
    signed = torch.tensor(np.array(states, dtype=np.uint64).view(np.int64))
    assert [value & MASK for value in mix64(signed).tolist()] == expected


@given(
    st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 500)),
    st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
)
def test_words_equal_a_plain_integer_version(key, index):
    gamma, state = 0x9E3779B97F4A7C15, 0
    for word in key:
        state = slow_mix(((state ^ (word & MASK)) + gamma) & MASK)
    expected = [slow_mix(((state ^ i) + gamma) & MASK) & (MASK >> 1) for i in index]
    assert draw_words(key, torch.tensor(index)).tolist() == expected


def test_number_of_views_and_identity():
    assert num_views(4, True) == 162
    assert num_views(2, True) == 50
    assert num_views(0, True) == 2
    images = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    for padding in range(4):
        code = torch.full((2,), identity_view(padding))
        assert torch.equal(apply_views(images, code, padding, True), images)
        assert torch.equal(apply_views(images, code, padding, False), images)


def test_codes_are_uniform_over_images_and_over_epochs():
    codes = view_codes(7, 3, torch.arange(81_000), 162)
    assert_uniform(np.bincount(codes.numpy(), minlength=162))
    over_epochs = torch.stack([view_codes(7, epoch, torch.tensor([11]), 18) for epoch in range(1_800)])
    assert_uniform(np.bincount(over_epochs.flatten().numpy(), minlength=18))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, 0, 0), (0, 1, 0)),  # two epochs
        ((0, 0, 0), (1, 0, 0)),  # two seeds
        ((0, 1, 0), (1, 0, 0)),  # seed and epoch exchanged
        ((0, 0, 0), (0, 0, 1)),  # an image and the next one
        ((0, 0, 0), (0, 1, 1)),  # the next image in the next epoch
    ],
)
def test_pairs_of_codes_are_independent(first, second):
    index = torch.arange(50_000)
    a, b = (view_codes(seed, epoch, index + shift, 18) for seed, epoch, shift in (first, second))
    assert_uniform(np.bincount((a * 18 + b).numpy(), minlength=18 * 18))


def test_codes_do_not_depend_on_order_or_batches():
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = view_codes(1, 5, torch.arange(1000), 162)
    parts = torch.cat([view_codes(1, 5, part, 162) for part in order.split(7)])
    assert torch.equal(parts, whole[order])


def test_unbounded_codes_are_distinct_seeds():
    codes = view_codes(0, 0, torch.arange(10_000))
    assert codes.unique().numel() == 10_000
    assert codes.min() >= 0
    assert codes.max() > 2**62


def test_order_of_an_epoch_is_a_permutation_of_its_own():
    first, again, other = epoch_order(1000, 0, 1), epoch_order(1000, 0, 1), epoch_order(1000, 0, 2)
    assert first.sort().values.tolist() == list(range(1000))
    assert torch.equal(first, again)
    # two random permutations agree at one place on average
    assert (first == other).sum() < 10
    assert (first == epoch_order(1000, 1, 1)).sum() < 10
    where_zero_goes = np.array([int((epoch_order(8, 0, e) == 0).nonzero()) for e in range(800)])
    assert_uniform(np.bincount(where_zero_goes, minlength=8))


@settings(deadline=None)
@given(st.data())
def test_gather_equals_slicing_one_image_at_a_time(data):
    padding, flip = data.draw(st.integers(0, 4)), data.draw(st.booleans())
    n, height, width = (data.draw(st.integers(1, 7)) for _ in range(3))
    channels = data.draw(st.sampled_from([1, 3]))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    codes = rng.integers(0, num_views(padding, flip), n)
    got = apply_views(torch.from_numpy(images), torch.from_numpy(codes), padding, flip).numpy()
    expected = [slow_view(image, int(code), padding) for image, code in zip(images, codes, strict=True)]
    assert np.array_equal(got, np.stack(expected))


def test_pixels_are_channels_last_and_in_range():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(2, 4, 4, 1)
    pixels = to_pixels(images)
    assert pixels.shape == (2, 3, 4, 4)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels[1, :, 2, 3], torch.tensor([0.0, 0.2, 1.0]))
