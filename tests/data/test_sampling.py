"""Held-out parts and subsets: sizes, proportions, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unixkd.data.sampling import hold_out, subset
from unixkd.errors import UserError

labels_of = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array)


@given(labels_of, st.floats(0.01, 0.99), st.integers(0, 3))
def test_hold_out_takes_a_share_of_every_class(labels, share, seed):
    counts = np.bincount(labels, minlength=5)
    if counts.max() < 2:
        with pytest.raises(UserError, match="two images"):
            hold_out(labels, len(labels), share, seed)
        return
    train, held = hold_out(labels, len(labels), share, seed)
    assert sorted([*train, *held]) == list(range(len(labels)))
    for count, taken in zip(counts, np.bincount(labels[held], minlength=5), strict=True):
        if count < 2:
            assert taken == 0
        else:
            assert 1 <= taken <= count - 1
            assert taken in (1, count - 1) or abs(taken - share * count) <= 0.5


def test_hold_out_without_labels_is_a_plain_share_and_depends_on_the_seed():
    train, held = hold_out(None, 100, 0.25, seed=0)
    assert len(train) == 75
    assert len(held) == 25
    assert np.array_equal(held, hold_out(None, 100, 0.25, seed=0)[1])
    assert not np.array_equal(held, hold_out(None, 100, 0.25, seed=1)[1])


@given(labels_of, st.integers(0, 3), st.data())
def test_subset_is_stratified_and_nested(labels, seed, data):
    limit = data.draw(st.integers(1, len(labels)))
    chosen = subset(labels, len(labels), limit, seed)
    assert len(set(chosen.tolist())) == limit
    counts, taken = np.bincount(labels, minlength=5), np.bincount(labels[chosen], minlength=5)
    share = limit / len(labels)
    assert (np.abs(taken - share * counts) <= len(counts)).all()
    if limit >= (counts > 0).sum():
        assert (taken[counts > 0] >= 1).all()
    larger = subset(labels, len(labels), min(limit + 3, len(labels)), seed)
    assert set(chosen.tolist()) <= set(larger.tolist())


def test_subset_of_balanced_classes_is_balanced():
    labels = np.tile(np.arange(10), 50)
    chosen = subset(labels, 500, 70, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [7] * 10
    assert (np.diff(chosen) > 0).all()
    assert not np.array_equal(chosen, subset(labels, 500, 70, seed=4))


@pytest.mark.parametrize("limit", [0, -1, 11])
def test_limit_out_of_range_names_the_count(limit):
    with pytest.raises(UserError, match=f"{limit}.*10 training images"):
        subset(None, 10, limit, seed=0)
