"""The short version of benchmarks/robustness/kill_resume.py: a real process, killed and resumed."""

from __future__ import annotations

import pytest

from kill_resume import control, differences, torture


@pytest.mark.slow
def test_killed_and_resumed_a_run_is_the_same_and_a_forgetful_one_is_found_out(tmp_path):
    found = torture(tmp_path, 4, seed=3)
    assert sum(found["kills"].values()) == 4
    assert found["differences"] == []
    assert {"weights", "checkpoint", "metrics"} <= set(control(tmp_path, seed=0))


def test_what_differs_is_named():
    one = {"weights": "a", "metrics": [1, 2]}
    assert differences(one, {"weights": "a", "metrics": [1, 3]}) == ["metrics"]
    assert differences(one, dict(one)) == []
