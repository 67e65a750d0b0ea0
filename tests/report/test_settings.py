"""Runs of other data, students or teachers: never averaged, never set against each other, told apart in a column."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from run_folders import write_run
from unixkd.report.runs import Group, find_runs, group_runs
from unixkd.report.table import columns_of, render_table, teacher_line
from unixkd.report.wording import baseline_of, headline, protocol_notes


def configured(folder: Path, config: dict[str, Any], *args: Any, **changed: Any) -> Path:
    write_run(folder, *args, **changed)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


BASE: dict[str, Any] = {
    "data": {"name": "digits", "limit": 100},
    "student": {"name": "resnet8"},
    "teacher": {"name": "runs/a", "pretrained": False},
}
OTHERS = {
    "data": ({"data": {"name": "cifar100", "size": 16}}, "cifar100, size 16, 100 images"),
    "size": ({"data": {"name": "digits", "limit": 100, "size": 4}}, "digits, size 4, limit 100, 100 images"),
    "student": ({"student": {"name": "vgg8"}}, "vgg8, 78,042 parameters"),
    "teacher": ({"teacher": {"name": "runs/b"}}, "runs/b"),
}


def two(tmp_path: Path, changed: dict[str, Any]) -> list[Group]:
    """unix 0.9 and kd 0.8 with BASE in seeds 0 and 1, unix 0.5 (seed 2) and kd 0.6 (seeds 0, 2) with what changed."""
    for seed in (0, 1):
        configured(tmp_path / f"unix{seed}", BASE, "unix", seed, 0.9)
        configured(tmp_path / f"kd{seed}", BASE, "kd", seed, 0.8, 1.0)
    configured(tmp_path / "other/unix", BASE | changed, "unix", 2, 0.5)
    for seed in (0, 2):
        configured(tmp_path / f"other/kd{seed}", BASE | changed, "kd", seed, 0.6, 1.0)
    return group_runs(find_runs([tmp_path]))


@pytest.mark.parametrize("what", OTHERS)
def test_unlike_runs_have_rows_and_a_column_of_their_own(what: str, tmp_path: Path) -> None:
    changed, said = OTHERS[what]
    groups = two(tmp_path, changed)
    columns = {column.key: column for column in columns_of(groups)}
    rows = {
        (column.cell(group), columns["result"].cell(group), columns["difference"].cell(group))
        for group in groups
        for column in [columns["data" if what == "size" else what]]
    }
    usual = {"size": "data"}.get(what, what)
    other = {
        "data": "digits, limit 100, 100 images",
        "student": "resnet8, 78,042 parameters",
        "teacher": "runs/a",
    }
    assert rows == {
        (other[usual], "80.00 ± 0.00", "–"),
        (other[usual], "90.00 ± 0.00", "+10.00 ± 0.00"),
        (said, "60.00 ± 0.00", "–"),
        (said, "50.00", "−10.00"),
    }
    assert not {"data", "student", "teacher"} - {usual} & set(columns)
    (note,) = protocol_notes(groups)
    assert note.startswith(f"The runs differ in their {usual} (")
    assert said in note


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_column_is_there_in_a_narrow_terminal_too(width: int, tmp_path: Path) -> None:
    two(tmp_path, OTHERS["teacher"][0])
    out = io.StringIO()
    runs = find_runs([tmp_path])
    Console(width=width, file=out).print(render_table(runs, width))
    assert "runs/a" in out.getvalue()
    assert "runs/b" in out.getvalue()
    assert teacher_line(runs) == ""  # one accuracy would be the mean of two teachers


def test_only_rivals_of_the_same_setting_are_named(tmp_path: Path) -> None:
    two(tmp_path, OTHERS["data"][0])
    configured(tmp_path / "random", BASE, "random", 0, 0.99, 0.1)  # the report is about cifar100, the first
    text = " ".join(headline(group_runs(find_runs([tmp_path]))))
    assert "random" not in text


def test_where_all_runs_are_alike_no_column_is_added(tmp_path: Path) -> None:
    """A run that does not say its teacher, as it was trained on labels, is told apart by nothing."""
    configured(tmp_path / "a", BASE, "unix")
    configured(tmp_path / "b", {"data": BASE["data"], "model": BASE["student"]}, "student-alone", cost=None)
    groups = group_runs(find_runs([tmp_path]))
    assert [group.method for group in groups] == ["unix", "student-alone"]
    assert not {"data", "student", "teacher"} & {column.key for column in columns_of(groups)}
    assert protocol_notes(groups) == []


def test_plain_kd_is_known_by_its_configuration_under_a_label(tmp_path: Path) -> None:
    """Also beside a shorter one at another method's cost, which is no plain KD."""
    method = {"name": "kd", "keep": None}
    configured(tmp_path / "a", BASE | {"method": method}, "baseline", 0, 0.8, 1.0)
    configured(tmp_path / "c", BASE | {"method": method}, "kd@unix", 0, 0.7, 0.5, epochs=5)
    configured(tmp_path / "b", BASE | {"method": {"name": "unix"}}, "unix", 0, 0.9)
    groups = group_runs(find_runs([tmp_path]))
    unix = next(group for group in groups if group.method == "unix")
    found = baseline_of(groups, unix)
    assert found is not None
    assert found.method == "baseline"
    assert "not among" not in " ".join(headline(groups))


def test_plain_kd_that_was_run_twice_is_not_said_to_be_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "slow/kd", "kd", last=0.8)
    write_run(tmp_path / "fast/kd", "kd", last=0.9)
    write_run(tmp_path / "unix", "unix")
    text = " ".join(headline(group_runs(find_runs([tmp_path]))))
    assert "plain KD is there more than once: kd (fast/kd), kd (slow/kd)" in text
    assert text.startswith("unix reached")


def test_plain_kd_of_other_data_is_no_baseline(tmp_path: Path) -> None:
    configured(tmp_path / "unix", BASE, "unix")
    configured(tmp_path / "kd", BASE | OTHERS["data"][0], "kd", cost=1.0)
    text = " ".join(headline(group_runs(find_runs([tmp_path]))))
    assert "plain KD is not among these runs with its data, student and teacher" in text
