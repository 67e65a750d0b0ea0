"""Runs that take turns in one process are the runs they would have been alone."""

from __future__ import annotations

from functools import partial

import pytest

from running import alone, everything
from unixkd.errors import UserError
from unixkd.training.compare import take_turns
from unixkd.training.run import run, steps


def test_three_runs_two_at_a_time_end_as_alone(tmp_path):
    configs = [alone(seed=seed) for seed in range(3)]
    for seed, config in enumerate(configs):
        run(config, tmp_path / f"alone{seed}")
    begin = [partial(steps, config, tmp_path / f"turns{seed}") for seed, config in enumerate(configs)]
    summaries = take_turns(begin, at_once=2)
    assert [summary["seed"] for summary in summaries] == [0, 1, 2]
    for seed in range(3):
        assert everything(tmp_path / f"turns{seed}") == everything(tmp_path / f"alone{seed}")


def counting(name: str, to: int, log: list[str], fail_at: int | None = None):
    for number in range(to):
        if number == fail_at:
            raise UserError(f"{name} failed")
        log.append(f"{name}{number}")
        yield
    return name


def test_turns_are_taken_in_order_and_a_free_place_is_filled():
    log: list[str] = []
    begin = [partial(counting, name, to, log) for name, to in (("a", 3), ("b", 1), ("c", 1))]
    assert take_turns(begin, at_once=2) == ["a", "b", "c"]
    assert log == ["a0", "b0", "a1", "a2", "c0"]


def test_after_a_failure_the_others_end_but_none_begins():
    log: list[str] = []
    begin = [
        partial(counting, "a", 2, log, fail_at=1),
        partial(counting, "b", 3, log),
        partial(counting, "c", 1, log),
    ]
    with pytest.raises(UserError, match="a failed"):
        take_turns(begin, at_once=2)
    assert log == ["a0", "b0", "b1", "b2"]


def test_every_turn_of_a_run_lies_in_its_own_lane():
    entered: list[int] = []

    class Lane:
        made = 0

        def __init__(self) -> None:
            self.number, Lane.made = Lane.made, Lane.made + 1

        def __enter__(self) -> None:
            entered.append(self.number)

        def __exit__(self, *error: object) -> None:
            entered.append(-1)

    take_turns([partial(counting, name, 1, []) for name in "ab"], at_once=2, lane=Lane)
    assert entered == [0, -1, 1, -1, 0, -1, 1, -1]
