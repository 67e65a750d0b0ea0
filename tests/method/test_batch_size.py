"""N where a loop does not say it: sequences of batches, and the rows that are kept of each."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unixkd.method.batch_size import BatchSize
from unixkd.method.mixing import num_kept


def kept(sizes: list[int], given: int | None = None, keep: float = 0.75) -> list[int]:
    size = BatchSize(given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [num_kept(keep, size.follow(rows), rows) for rows in sizes]


@pytest.mark.parametrize(
    ("sizes", "right"),
    [
        ([16, 16, 4, 16, 16, 4], [12, 12, 4, 12, 12, 4]),  # an epoch's short last batch is kept whole
        ([4, 16, 16, 16], [3, 12, 12, 12]),  # the first is short
        ([2, 2, 64, 64], [2, 2, 48, 48]),  # a tuner's trial, then the size that it found
        ([32, 32, 16, 16, 16], [24, 24, 16, 12, 12]),  # halved after running out of memory
        ([32, 32, 8, 16, 16], [24, 24, 8, 12, 12]),
        ([32, 20, 4, 20, 20], [24, 20, 3, 15, 15]),  # every size another one
    ],
)
def test_rows_kept_by_hand(sizes, right):
    assert kept(sizes) == right


@given(st.integers(2, 64), st.integers(1, 5), st.data())
def test_epochs_of_full_batches_and_a_short_last_one_keep_what_a_given_size_keeps(size, full, data):
    last = data.draw(st.integers(1, size - 1))
    epochs = ([size] * full + [last]) * 3
    assert kept(epochs) == kept(epochs, given=size)


@given(st.lists(st.integers(4, 64), min_size=1), st.integers(4, 64))
def test_whatever_came_before_a_steady_size_has_its_own_share(before, size):
    """At the latest from the second of its batches on."""
    assert kept([*before, size, size, size])[-2:] == [round(0.75 * size)] * 2


def test_a_change_is_noted_once():
    size = BatchSize()
    size.follow(4)
    with pytest.warns(match="batches have 16 rows now, 4 before: the method's shares are of 16 from now on"):
        size.follow(16)
    size.follow(32)  # and not again: warnings are errors here


def test_a_size_that_was_given_stays_and_what_does_not_fit_is_noted():
    size = BatchSize(16)
    assert [size.follow(rows) for rows in (16, 4, 16)] == [16, 16, 16]
    with pytest.warns(match="batches have 64 rows, and .* are of the batch_size=16 that was given"):
        assert size.follow(64) == 16
    size.expect(64)
    assert size.size == 16


def test_a_loop_that_knows_the_size_need_not_wait():
    size = BatchSize()
    size.expect(32)
    assert size.follow(4) == 32
    with pytest.warns(match="batches have 16 rows now, 32 before"):
        size.expect(16)
    assert size.follow(16) == 16


def test_saved_within_short_batches_it_goes_on_alike():
    size = BatchSize()
    for rows in (16, 8):
        size.follow(rows)
    other = BatchSize()
    other.load_state_dict(size.state_dict())
    assert other.state_dict() == size.state_dict()
    with pytest.warns(match="8 rows now"):
        assert other.follow(8) == 8
