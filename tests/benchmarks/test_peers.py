"""peers.py: which peer counts, which target holds, and what a missing peer says; nothing is trained."""

from __future__ import annotations

import sys

import pytest

import peers
from timing import Samples


def test_the_better_peer_is_the_faster_one() -> None:
    samples = {
        "unixkd": Samples([1.0, 2.0, 1.0], [1.0, 2.0, 1.0]),
        "timm": Samples([3.0, 6.0, 2.0], [3.0, 6.0, 2.0]),
        "torchdistill": Samples([1.5, 2.0, 9.0], [1.5, 2.0, 9.0]),
    }
    found = peers.over_ours(samples)
    assert found["timm_over_unixkd"]["median"] == 3
    assert found["better_peer_over_unixkd"] == 1.5


@pytest.mark.parametrize(
    ("out_of_the_box", "equal_terms", "expected"),
    [(1.5, 0.98, True), (1.4, 0.98, False), (2.0, 0.97, False)],
)
def test_both_targets_must_be_reached(out_of_the_box: float, equal_terms: float, expected: bool) -> None:
    pair = {
        "out_of_the_box": {"better_peer_over_unixkd": out_of_the_box},
        "equal_terms": {"better_peer_over_unixkd": equal_terms},
    }
    assert peers.reached(pair) == expected


@pytest.mark.parametrize("name", ["timm", "torchdistill"])
def test_missing_peer_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"peers_{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=f"pip install .*{name}>=") as caught:
        peers.import_peers()
    assert "\n" not in str(caught.value)
