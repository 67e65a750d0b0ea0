"""Reading run folders, grouping them, and the table: against numbers worked out by hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from run_folders import epoch_line, write_run
from unixkd.errors import UserError
from unixkd.report import report
from unixkd.report.records import Run
from unixkd.report.runs import (
    MeanStd,
    curve,
    find_runs,
    find_unfinished,
    group_runs,
    paired_difference,
    teacher_runs,
)
from unixkd.report.table import columns_of, render_table, teacher_accuracy
from unixkd.report.wording import headline, protocol_notes


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """kd: 0.90, 0.92, 0.97 (mean 0.93, sd sqrt(0.0013)); unix: 0.91, 0.90 on seeds 0 and 2."""
    for seed, last in enumerate((0.90, 0.92, 0.97)):
        write_run(tmp_path / f"runs/kd-seed{seed}", "kd", seed, last, 1.0)
    write_run(tmp_path / "runs/unix-seed0", "unix", 0, 0.91)
    write_run(tmp_path / "runs/unix-seed2", "unix", 2, 0.90)
    write_run(tmp_path / "teacher", "student-alone", 0, 0.98, None, parameters=2_000_000)
    return tmp_path


def test_means_deviations_and_paired_differences(comparison: Path) -> None:
    runs = find_runs([comparison])
    kd, unix = group_runs(runs)
    assert [run.folder.name for run in teacher_runs(runs)] == ["teacher"]
    result = kd.mean_std(lambda run: run.accuracy)
    assert result is not None
    assert (result.mean, result.sd, result.n) == (pytest.approx(0.93), pytest.approx(0.0013**0.5), 3)
    # seeds 0 and 2 both ran: +0.01 and -0.07; mean -0.03, sd 0.08 / sqrt(2)
    difference = paired_difference(unix, kd, lambda run: run.accuracy)
    assert difference is not None
    assert difference == MeanStd(pytest.approx(-0.03), pytest.approx(0.08 / 2**0.5), 2)
    assert paired_difference(kd, kd, lambda run: run.accuracy) is None
    assert teacher_accuracy(runs) == MeanStd(pytest.approx(0.99), None, 5)


def test_one_run_has_no_deviation(tmp_path: Path) -> None:
    runs = find_runs([write_run(tmp_path / "a")])
    assert group_runs(runs)[0].mean_std(lambda run: run.accuracy) == MeanStd(0.9, None, 1)
    assert not [cell for row in rows_of(runs) for cell in row if "±" in cell]


def rows_of(runs: list[Run]) -> list[list[str]]:
    """The cells of all columns, a row for each method."""
    groups = group_runs(runs)
    return [[column.cell(group) for column in columns_of(groups)] for group in groups]


def test_rows_of_the_table(comparison: Path) -> None:
    _, unix = rows_of(find_runs([comparison]))
    assert unix == [
        "unix", "90.50 ± 0.71", "91.50", "−3.00 ± 5.66",
        "1.00k", "700 (50)", "750", "85.0", "80.0", "20.0", "2",
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "last_header"), [(120, "n"), (80, "n"), (60, "back ×2"), (40, "back ×2")])
def test_table_fits_its_terminal(comparison: Path, width: int, last_header: str) -> None:
    out = io.StringIO()
    Console(width=width, file=out).print(render_table(find_runs([comparison]), width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.splitlines()[2].rstrip().endswith(last_header)
    assert ("images" in text) == (width == 120)
    for value in ("kd", "unix", "93.00 ± 3.61", "90.50 ± 0.71"):
        assert value in text


def test_headline_says_when_the_method_lost_or_won_nothing(comparison: Path) -> None:
    first, verdict, *_ = headline(group_runs(find_runs([comparison])))
    assert first == (
        "unix reached 90.5 % at 80.0 % of plain KD’s computation (backward = 2 forwards); "
        "plain KD reached 93.0 %."
    )
    assert "−3.00 ± 5.66 points over 2 seeds" in verdict
    assert "no more than it varies from seed to seed" in verdict


def test_headline_names_a_cheaper_control_that_is_as_good(comparison: Path) -> None:
    write_run(comparison / "runs/random-seed0", "random", 0, 0.95, 0.75)
    sentences = " ".join(headline(group_runs(find_runs([comparison]))))
    assert "At least as good for the same computation or less: random (95.0 % at 75.0 %)." in sentences


def test_headline_says_that_nothing_was_saved(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "kd", cost=1.0)
    write_run(tmp_path / "b", "unix", cost=1.04)
    assert "unix saved no computation here." in headline(group_runs(find_runs([tmp_path])))


def test_methods_are_ordered_and_cost_matched_kd_follows_its_method(tmp_path: Path) -> None:
    for method in ("student-alone", "zebra", "random", "kd@random", "unix", "kd@unix", "kd"):
        write_run(tmp_path / method, method)
    methods = [group.method for group in group_runs(find_runs([tmp_path]))]
    assert methods == ["kd", "unix", "kd@unix", "random", "kd@random", "zebra", "student-alone"]


def test_runs_of_one_method_and_seed_are_not_averaged(tmp_path: Path) -> None:
    write_run(tmp_path / "slow/unix", last=0.8)
    write_run(tmp_path / "fast/unix", last=0.9)
    groups = group_runs(find_runs([tmp_path, tmp_path / "slow"]))
    assert [(group.method, len(group.runs)) for group in groups] == [
        ("unix (fast/unix)", 1),
        ("unix (slow/unix)", 1),
    ]


def test_curve_needs_every_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0, lines=[epoch_line(1, 0.5), epoch_line(2), epoch_line(3, 0.7)])
    write_run(tmp_path / "b", seed=1, lines=[epoch_line(1, 0.6), epoch_line(2, 0.6), epoch_line(3, 0.9)])
    points = curve(group_runs(find_runs([tmp_path]))[0], lambda epoch: epoch.accuracy)
    assert [(epoch, round(spread.mean, 6)) for epoch, spread in points] == [(1, 0.55), (3, 0.8)]


def test_the_share_that_was_kept_is_of_all_training_images(tmp_path: Path) -> None:
    kept = {"visited": 0.5, "kept": 0.75}
    write_run(tmp_path / "a", lines=[epoch_line(1, 0.5, selection=kept)])
    write_run(tmp_path / "b", seed=1, lines=[epoch_line(1, 0.5, selection={"kept": 0.75})])
    assert [run.history[0].selection.kept_of_all for run in find_runs([tmp_path])] == [0.375, 0.75]


def test_killed_runs_are_tolerated_and_unfinished_ones_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", lines=[epoch_line(1, 0.5), epoch_line(1, 0.6)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "accur')
    (tmp_path / "b").mkdir()
    (tmp_path / "b/run.yaml").write_text("train: {}\n")
    (run,) = find_runs([tmp_path])
    assert [line.accuracy for line in run.history] == [0.6]
    assert find_unfinished([tmp_path]) == [tmp_path / "b"]
    out = io.StringIO()
    report([tmp_path], None, Console(width=100, file=out))
    assert "1 unfinished run was left out" in out.getvalue()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("summary.json", "{", "summary.json is no readable JSON"),
        ("summary.json", "[]", "holds no JSON object"),
        ("summary.json", '{"schema": 2}', "schema 2"),
        ("summary.json", '{"schema": 1, "method": "kd"}', "missing required field `seed`"),
        ("metrics.jsonl", '{"epoch": 1}\nnonsense\n{"epoch": 3}\n', "metrics.jsonl line 2"),
        ("metrics.jsonl", '{"epoch": 1, "accuracy": 97.9}\n', "line 1: 'accuracy': Expected `float` <= 1.0"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "accuracy": "high"}\n',
            "'accuracy': Expected `float | null`, got `str`",
        ),
        ("run.yaml", "a: [1", "run.yaml is no readable YAML"),
        ("selection.json", '{"epochs": 2}', "missing required field `histogram`"),
        (
            "selection.json",
            '{"epochs": 2, "histogram": {"times_kept": [0], "images": [1, 2]}}',
            "'histogram': 1 times_kept for 2",
        ),
        (
            "selection.json",
            '{"epochs": 2, "histogram": {"times_kept": [0], "images": [1]}, '
            '"most_kept": [{"index": 0, "times": 1, "png": "R0lGODlh"}]}',
            "'most_kept\\[0\\]': this is no base64 PNG",
        ),
        (
            "selection.json",
            '{"epochs": 2, "histogram": {"times_kept": [1000000000000], "images": [1]}}',
            "'histogram.times_kept\\[0\\]': Expected `int` <= 100000",
        ),
        (
            "metrics.jsonl",
            f'{{"epoch": 1, "selection": {{"histogram": {{"kept": {[1] * 1001}}}}}}}\n',
            "Expected `array` of length <= 1000",
        ),
        ("run.yaml", "train: {epochs: two}", "run.yaml: train.epochs: Expected `int`, got `str`"),
        ("plan.json", '{"images": {}}', "'images': Object missing required field `scored`"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, file: str, text: str, said: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        find_runs([tmp_path])
    assert str(folder / file) in str(error.value)


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        find_runs([tmp_path / "nowhere"])
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no finished run \(1 unfinished\)"):
        find_runs([tmp_path])


def test_unlike_runs_are_pointed_out(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "kd")
    assert protocol_notes(group_runs(find_runs([tmp_path]))) == []
    write_run(tmp_path / "b", "unix", parameters=5)
    assert "student (5 parameters; 78,042 parameters)" in protocol_notes(group_runs(find_runs([tmp_path])))[0]
