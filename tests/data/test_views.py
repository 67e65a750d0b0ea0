"""Views: codes are uniform, independent and depend on their arguments only; gathers equal plain slicing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unixkd.data import apply_views, epoch_order, identity_view, num_views, to_pixels, view_codes
from unixkd.data.views import balanced_views, first_codes, numbered_seeds
from unixkd.method.draws import draw_words, mix64

MASK = (1 << 64) - 1


def slow_mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_word(key, index):
    gamma, state = 0x9E3779B97F4A7C15, 0
    for word in key:
        state = slow_mix(((state ^ (word & MASK)) + gamma) & MASK)
    return slow_mix(((state ^ index) + gamma) & MASK) & (MASK >> 1)


def slow_first_codes(seed, index, views, limit):
    """Draw one of the codes that are left, put the first of them in its place, and so on."""
    left, drawn = list(range(views)), []
    for place in range(limit):
        at = slow_word((3, seed, place), index) % len(left)
        drawn.append(left[at])
        left[at] = left[0]
        del left[0]
    return drawn


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
    assert draw_words(key, torch.tensor(index)).tolist() == [slow_word(key, i) for i in index]


def test_a_key_may_have_a_part_of_its_own_for_each_index():
    index, part = torch.arange(6), torch.tensor([2, 0, -1, 1, 2, 7])
    words = draw_words((4, part, 9), index)
    assert words.tolist() == [slow_word((4, p, 9), i) for i, p in enumerate(part.tolist())]


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


@given(st.integers(0, 5), st.integers(1, 60), st.data())
def test_sequences_equal_a_plain_shuffle_and_shorter_ones_begin_longer_ones(seed, views, data):
    limit = data.draw(st.integers(1, views))
    index = torch.tensor(data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=4)))
    codes = first_codes(seed, index, views, limit)
    assert codes.tolist() == [slow_first_codes(seed, i, views, limit) for i in index.tolist()]
    assert all(len(set(row)) == limit for row in codes.tolist())
    assert torch.equal(codes, first_codes(seed, index, views, views)[:, :limit])


def test_sequences_are_uniform_over_images_in_every_pair_of_places():
    codes = first_codes(3, torch.arange(60_000), 6, 4).long()
    for a, b in ((0, 1), (1, 2), (0, 3)):
        counts = np.bincount((codes[:, a] * 6 + codes[:, b]).numpy(), minlength=36).reshape(6, 6)
        assert not counts.diagonal().any()
        assert_uniform(counts[~np.eye(6, dtype=bool)])


def test_sequences_differ_by_seed_and_by_image():
    index = torch.arange(20_000)
    first, second = (first_codes(seed, index, 10, 1)[:, 0].long() for seed in (0, 1))
    assert_uniform(np.bincount((first * 10 + second).numpy(), minlength=100))
    assert_uniform(np.bincount((first[1:] * 10 + first[:-1]).numpy(), minlength=100))


def test_sequences_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    index = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    whole = first_codes(1, index, 18, 5)
    monkeypatch.setattr("unixkd.data.views._CHUNK", 100)
    assert torch.equal(first_codes(1, index, 18, 5), whole)


@pytest.mark.parametrize(("views", "dtype"), [(1 << 15, torch.int16), ((1 << 15) + 1, torch.int32)])
def test_sequences_take_the_smallest_integers_that_hold_every_code(views, dtype):
    codes = first_codes(0, torch.arange(300), views, 2)
    assert codes.dtype == dtype
    assert codes.min() >= 0
    assert views - 1000 < int(codes.max()) < views


@given(st.integers(0, 9), st.integers(1, 12), st.integers(0, 10_000))
def test_views_take_turns(seed, limit, epoch):
    index = torch.arange(40)
    shown = torch.stack([balanced_views(seed, e, index, limit) for e in range(epoch, epoch + limit)])
    assert torch.equal(shown.sort(0).values, torch.arange(limit)[:, None].expand(limit, 40))


def test_each_epoch_shows_all_numbers_of_views_alike():
    assert_uniform(np.bincount(balanced_views(2, 5, torch.arange(9_000), 9).numpy(), minlength=9))


def test_turns_are_independent_of_the_sequences():
    index = torch.arange(50_000)
    first, turn = first_codes(0, index, 9, 1)[:, 0].long(), balanced_views(0, 0, index, 9)
    assert_uniform(np.bincount((first * 9 + turn).numpy(), minlength=81))


def test_numbered_seeds_are_distinct_and_belong_to_image_and_number():
    index = torch.arange(3_000)
    columns = [numbered_seeds(0, index, torch.full_like(index, view)) for view in range(3)]
    assert torch.stack(columns).unique().numel() == 9_000
    mixed = index % 3
    assert torch.equal(numbered_seeds(0, index, mixed), torch.stack(columns)[mixed, index])
    assert not (numbered_seeds(1, index, mixed) == numbered_seeds(0, index, mixed)).any()


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
