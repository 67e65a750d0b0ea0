"""The paper's analyses in a report: images by score, the effect of one option, what no other method beats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from run_folders import epoch_line, write_run
from unixkd.config import MethodConfig
from unixkd.errors import UserError
from unixkd.method.from_config import build_method
from unixkd.method.mixing import SigmoidCurve
from unixkd.names import OPTIONS, label_of, parse_variant
from unixkd.report.cost_chart import front
from unixkd.report.effects import DEFAULTS, find_series
from unixkd.report.page import page
from unixkd.report.runs import Spread, find_runs, group_runs
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
        ({"kept": [1, -2]}, "'kept' must be a list of whole numbers"),
        ({"kept_hard": "many"}, "'kept_hard' must be a list"),
        ({"low": 2.0}, "do not fit together"),
        ({"score": None}, "'score' must be a text"),
    ],
)
def test_a_faulty_histogram_is_named_with_its_line(
    changed: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", lines=[selection(1, histogram([1, 2], [1, 0]) | changed)])
    with pytest.raises(UserError, match=rf"metrics.jsonl line 1: .*{told}"):
        find_runs([tmp_path])


# The effect of one option


def variant(
    folder: Path, word: str, seed: int = 0, last: float = 0.9, cost: float = 0.8, **train: Any
) -> None:
    config = parse_variant(word)
    options = {name: getattr(config, name) for name in ("name", *OPTIONS)}
    write_run(folder, label_of(config), seed, last, cost)
    values = {"method": options, "train": {"epochs": 10, "seed": seed} | train, "label": label_of(config)}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))


def found(folder: Path, option: str) -> list[tuple[str, list[Any]]]:
    return [(s.name, [at for at, _ in s.runs]) for s in find_series(find_runs([folder]), option)]


def test_runs_that_differ_in_one_option_make_a_line(tmp_path: Path) -> None:
    for seed, last in ((0, 0.8), (1, 0.9)):
        variant(tmp_path / f"a{seed}", "unix", seed, last)
        variant(tmp_path / f"b{seed}", "unix:keep=0.5", seed, last - 0.1, 0.6)
    variant(tmp_path / "c", "unix:keep=0.5:steepness=1000")
    variant(tmp_path / "d", "unix:keep=0.25", epochs=5)  # not the same protocol
    (series,) = find_series(find_runs([tmp_path]), "keep")
    assert [at for at, _ in series.runs] == [0.5, 0.75]  # the default is known
    assert series.spreads(lambda run: run.accuracy) == [
        (0.5, Spread(pytest.approx(0.75), pytest.approx(0.1 / 2**0.5), 2)),
        (0.75, Spread(pytest.approx(0.85), pytest.approx(0.1 / 2**0.5), 2)),
    ]
    assert series.spreads(lambda run: run.cost_2x)[0][1].mean == pytest.approx(0.6)
    assert found(tmp_path, "steepness") == [("unix:keep=0.5", [10.0, 1000.0])]
    assert found(tmp_path, "scorer") == found(tmp_path, "curve") == found(tmp_path, "mix_from") == []
    text = page(find_runs([tmp_path]), "t")
    assert ">accuracy in % by share kept, k/N</title>" in text
    assert ">unix: 75.00 ± 7.07 at 0.5, 85.00 ± 7.07 at 0.75</desc>" in text
    assert "computation in % by steepness of the curve, w" in text


def test_names_for_settings_of_one_step_make_lines_too(tmp_path: Path) -> None:
    for word in ("kd", "unix", "unix-random", "random", "hard", "unix:scorer=margin", "unix:curve=step"):
        variant(tmp_path / word.replace(":", ","), word)
    assert found(tmp_path, "keep") == [("random/kd", [0.75, 1.0])]
    scorers = [("hard/random", ["entropy", "random"]), ("unix/unix-random", ["entropy", "margin", "random"])]
    assert sorted(found(tmp_path, "scorer")) == scorers
    assert sorted(found(tmp_path, "curve")) == [
        ("unix-random/random", ["sigmoid", "none"]),
        ("unix/hard", ["sigmoid", "step", "none"]),
    ]


def test_other_options_are_not_hidden_in_a_line(tmp_path: Path) -> None:
    """Two values of what a curve or a score needs must not be averaged where another one does without."""
    for word in ("unix", "unix:steepness=1000", "hard", "unix:scoring_mode=eval", "unix-random"):
        variant(tmp_path / word.replace(":", ","), word)
    assert found(tmp_path, "curve") == [("unix/hard", ["sigmoid", "none"])]
    assert found(tmp_path, "scorer") == [("unix/unix-random", ["entropy", "random"])]
    for series in find_series(find_runs([tmp_path]), "curve"):
        assert [len(runs) for _, runs in series.runs] == [1, 1]


def test_stale_has_an_option_of_the_same_name_and_a_line_of_its_own(tmp_path: Path) -> None:
    for word in ("stale", "stale:keep=0.5", "random", "random:keep=0.5", "infobatch", "infobatch:prune=0.2"):
        variant(tmp_path / word.replace(":", ","), word)
    assert sorted(found(tmp_path, "keep")) == [("random", [0.5, 0.75]), ("stale", [0.5, 0.75])]


def test_where_nothing_varies_there_is_no_section(tmp_path: Path) -> None:
    variant(tmp_path / "a", "unix")
    variant(tmp_path / "b", "stale")
    write_run(tmp_path / "c", "own")  # without a configuration
    assert "Effect of one option" not in page(find_runs([tmp_path]), "t")


def test_the_defaults_are_those_of_the_methods() -> None:
    names = {value: name for name, value in _scorers().items()}
    for name, options in DEFAULTS.items():
        method = build_method(MethodConfig(name))
        built: dict[str, Any] = {"keep": method.keep, "scoring_mode": method.scoring.mode, "curve": "none"}
        if method.choice is not None:
            built["keep"] = method.choice.keep
            remembered = method.choice.row_score
            built["scorer"] = names[remembered.scorer] if remembered else None
        else:
            built["scorer"] = names[method.scorer]
        if isinstance(method.curve, SigmoidCurve):
            built |= {"curve": "sigmoid", **vars(method.curve)}
        assert options == {key: built[key] for key in options}, name


def _scorers() -> dict[str, Any]:
    from unixkd.method.from_config import SCORERS

    return dict(SCORERS)


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
