"""The paper's analyses in a report: images by score, and what no other method beats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from run_folders import epoch_line, write_run
from unixkd.errors import UserError
from unixkd.report.cost_chart import front
from unixkd.report.page import page
from unixkd.report.runs import find_runs, group_runs
from unixkd.report.selection import bars_over_time

pytest.importorskip("matplotlib", reason="report pages need matplotlib")


def histogram(kept: list[int], dropped: list[int], **more: Any) -> dict[str, Any]:
    bins = {"score": "entropy", "low": 0.0, "high": 2.0, "remembered": False}
    return bins | {"kept": kept, "dropped": dropped, "kept_hard": None, "dropped_hard": None} | more


def selection(number: int, bins: dict[str, Any] | None) -> dict[str, Any]:
    return epoch_line(number, 0.5, selection={"kept": 0.75, "histogram": bins})


# Images by their score


def test_histograms_are_shares_of_the_epochs_images_averaged_over_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0, lines=[selection(1, histogram([1, 2], [1, 0], kept_hard=[0, 2]))])
    write_run(tmp_path / "b", seed=1, lines=[selection(1, histogram([4, 4], [0, 2], kept_hard=[1, 0]))])
    (bars,) = bars_over_time(group_runs(find_runs([tmp_path]))[0])
    assert bars.epoch == 1
    assert bars.kept == pytest.approx(((1 / 4 + 4 / 10) / 2, (2 / 4 + 4 / 10) / 2))
    assert bars.dropped == pytest.approx((1 / 8, 2 / 20))
    assert bars.kept_hard == pytest.approx((1 / 20, 2 / 8))
    assert bars.dropped_hard == (0.0, 0.0)


def test_begin_middle_and_end_are_of_the_epochs_that_every_run_has(tmp_path: Path) -> None:
    def lines(epochs: set[int]) -> list[dict[str, Any]]:
        return [selection(n, histogram([3, 0], [0, 1]) if n in epochs else None) for n in range(1, 9)]

    write_run(tmp_path / "a", seed=0, lines=lines({2, 3, 4, 5, 6, 7}))
    write_run(tmp_path / "b", seed=1, lines=lines({1, 2, 3, 4, 5, 6}))
    (group,) = group_runs(find_runs([tmp_path]))
    assert [bars.epoch for bars in bars_over_time(group)] == [2, 4, 6]
    text = page(find_runs([tmp_path]), "t")
    assert text.count("images by entropy</title>") == 3
    assert text.count(">75 % kept, 0 % kept and hard, 25 % dropped") == 3


def test_runs_with_other_bins_are_not_averaged(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0, lines=[selection(1, histogram([1, 2], [1, 0]))])
    write_run(tmp_path / "b", seed=1, lines=[selection(1, histogram([1, 2], [1, 0], high=3.0))])
    assert bars_over_time(group_runs(find_runs([tmp_path]))[0]) == []


def test_runs_of_an_earlier_version_have_no_histograms(tmp_path: Path) -> None:
    kept = {"kept": 0.75, "score_kept": 1.0, "score_dropped": 0.5}
    write_run(tmp_path / "a", lines=[epoch_line(n, 0.5, selection=kept) for n in (1, 2)])
    text = page(find_runs([tmp_path]), "t")
    assert "Mean score" in text
    assert "by their score" not in text.partition("How to read this")[0]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"kept": [1, 2, 3]}, "do not fit together"),
        ({"kept": [1, -2]}, r"selection.histogram.kept\[1\]': Expected `int` >= 0"),
        ({"kept_hard": "many"}, "kept_hard': Expected `array | null`, got `str`"),
        ({"low": 2.0}, "do not fit together"),
        ({"score": None}, "missing required field `score`"),
    ],
)
def test_a_faulty_histogram_is_named_with_its_line(
    changed: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", lines=[selection(1, histogram([1, 2], [1, 0]) | changed)])
    with pytest.raises(UserError, match=rf"metrics.jsonl line 1: .*{told}"):
        find_runs([tmp_path])


# What no other method beats


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([], []),
        ([(1.0, 0.9)], [0]),
        ([(1.0, 0.9), (0.5, 0.8), (0.6, 0.7)], [1, 0]),  # the third is dearer and worse than the second
        ([(1.0, 0.9), (0.5, 0.9)], [1]),
        ([(0.5, 0.8), (0.5, 0.9)], [1]),
        ([(0.5, 0.9), (0.5, 0.9), (0.4, 0.95)], [2]),
        ([(0.5, 0.9), (0.5, 0.9)], [0, 1]),
    ],
)
def test_the_front_by_hand(points: list[tuple[float, float]], best: list[int]) -> None:
    assert front(points) == best


def test_the_page_says_which_methods_are_not_beaten(tmp_path: Path) -> None:
    for method, last, cost, seconds in (
        ("kd", 0.9, 1.0, 20),
        ("unix", 0.9, 0.8, 30),
        ("random", 0.8, 0.7, 10),
    ):
        time = {"train_seconds": seconds, "evaluate_seconds": 1}
        write_run(tmp_path / method, method, last=last, cost=cost, time=time)
    text = page(find_runs([tmp_path]), "t")
    assert (
        text.count("kd 90.00 at 100.0, unix 90.00 at 80.0, random 80.00 at 70.0; not beaten: random, unix")
        == 1
    )
    by_time = text.partition("(training time)</title>")[2].partition("</desc>")[0]
    assert by_time.endswith(
        ">kd 90.00 at 20.0, unix 90.00 at 30.0, random 80.00 at 10.0; not beaten: random, kd"
    )


def test_of_many_methods_only_some_are_named_in_the_chart(tmp_path: Path) -> None:
    for number in range(12):  # rising in price, and all but the first two worse than the second
        write_run(
            tmp_path / str(number), f"own{number}", last=0.9 - number % 11 / 100, cost=0.5 + number / 100
        )
    chart = page(find_runs([tmp_path]), "t").partition("backward = 1 forward <span>")[2]
    chart = chart.partition("</svg>")[0]
    assert ">own0<" in chart
    assert ">own5<" not in chart


def test_variants_follow_their_method(tmp_path: Path) -> None:
    names = ("hard", "unix-random", "kd@unix:keep=0.5", "unix:keep=0.5", "kd", "unix", "kd@unix")
    for name in names:
        write_run(tmp_path / name.replace(":", ","), name)
    assert [group.method for group in group_runs(find_runs([tmp_path]))] == [
        *("kd", "unix", "kd@unix", "unix:keep=0.5", "kd@unix:keep=0.5", "unix-random", "hard")
    ]
