"""The HTML page: self-contained, escaped, the same every time, and whole whatever is missing."""

from __future__ import annotations

import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from run_folders import HOSTILE, epoch_line, epoch_lines, selection_file, write_run
from unixkd.errors import UserError
from unixkd.method.unix import METHODS
from unixkd.report import report
from unixkd.report.charts import styles_of
from unixkd.report.page import page, write_page
from unixkd.report.runs import find_runs, group_runs
from unixkd.report.selection import kept_shares
from unixkd.report.wording import explain

pytest.importorskip("matplotlib", reason="report pages need matplotlib")


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    for seed in (0, 1):
        write_run(
            tmp_path / f"kd-seed{seed}",
            "kd",
            seed,
            0.9 + seed / 50,
            1.0,
            [epoch_line(1, 0.5), epoch_line(2, 0.9)],
        )
        folder = write_run(tmp_path / f"unix-seed{seed}", "unix", seed, 0.9, lines=epoch_lines())
        (folder / "selection.json").write_text(json.dumps(selection_file()))
    for folder in tmp_path.iterdir():
        (folder / "run.yaml").write_text("data:\n  name: digits\n  holdout: 0.1\n")
    return tmp_path


class _Balance(HTMLParser):
    """Checks that every element is closed in order and collects ids, references and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "clip-path"):
                self.references.append((value or "").removeprefix("url(").removesuffix(")"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_whole_and_self_contained(comparison: Path) -> None:
    text = page(find_runs([comparison]), "Report")
    parsed = _Balance(text)
    assert len(parsed.ids) == len(set(parsed.ids)), "ids of the charts collide"
    inside = [reference.removeprefix("#") for reference in parsed.references if reference.startswith("#")]
    assert set(inside) <= set(parsed.ids)
    outside = [reference for reference in parsed.references if not reference.startswith("#")]
    assert all(reference.startswith("data:image/png;base64,") for reference in outside)
    assert len(outside) == 2
    for address in ("http:", "https:", "//", "@import", "<script"):
        assert address not in re.sub(r"base64,[^\"]*", "", text).replace("<!DOCTYPE", "")
    for title in (
        "Results", "Accuracy against computation", "Training", "What was kept",
        "How often each image was kept", "Configuration", "How to read this",
    ):  # fmt: skip
        assert title in parsed.text
    assert text.count("<svg") == text.count('<svg role="img" aria-labelledby="') == 11
    assert "held-out training images" in parsed.text


def test_same_runs_same_bytes(comparison: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_page(find_runs([comparison]), tmp_path / "out" / name)
    assert (tmp_path / "out/a.html").read_bytes() == (tmp_path / "out/b.html").read_bytes()


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    environment = {"torch": HOSTILE, HOSTILE: 1}
    folder = write_run(tmp_path / "a", f"$x_{HOSTILE}", lines=epoch_lines(), environment=environment)
    (folder / "selection.json").write_text(json.dumps(selection_file(HOSTILE)))
    (folder / "run.yaml").write_text(f"name: '{HOSTILE}'\n")
    text = page(find_runs([tmp_path]), HOSTILE)
    parsed = _Balance(text)
    assert "script" not in parsed.tags
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in parsed.references)
    assert f"{HOSTILE} · 1 run · 1 method" in parsed.text
    assert f"{HOSTILE} · 3×" in parsed.text
    assert f"$x_{HOSTILE}"[:17] in parsed.text


def test_control_characters_of_names_are_shown(tmp_path: Path) -> None:
    """In the method, the data, the environment, the title and the folder that tells two runs apart; table and page."""
    name, escaped = "x\n\x1b[31m[b]:cat:\udcff", r"x\n\x1b[31m[b]:cat:\udcff"
    for place in ("a", f"b{name}"):
        folder = write_run(tmp_path / place, name, lines=epoch_lines(), environment={"torch": name, name: 1})
        (folder / "selection.json").write_text(json.dumps(selection_file(name)))
        (folder / "run.yaml").write_text(json.dumps({"data": {"name": name + place}}))
    console = Console(file=io.StringIO(), width=200)
    report([tmp_path], tmp_path / "report.html", console)
    for text in ((tmp_path / "report.html").read_text(encoding="utf-8"), console.file.getvalue()):
        assert not set(re.findall(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text)) - {"\n"}
        assert f"{escaped} (1)" in text
    text = page(find_runs([tmp_path]), name)
    assert f"<title>{escaped}</title>" in text
    assert f"<dt>{escaped}</dt><dd>1</dd>" in text
    assert "last epoch\naccuracy %</th>" in text


def test_pictures_must_be_png(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    selection = selection_file()
    selection["most_kept"][0]["png"] = '"><script>'
    (folder / "selection.json").write_text(json.dumps(selection))
    with pytest.raises(UserError, match="'most_kept\\[0\\]': this is no base64 PNG"):
        find_runs([tmp_path])


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"cost": None}, "Accuracy against computation"),
        ({"lines": None}, "Training"),
        ({"lines": [epoch_line(1, 0.5)]}, "Training"),
        ({"lines": [epoch_line(1), epoch_line(2)]}, "Training"),
        (
            {"last": None, "agreement": None, "accuracy": {"last": None, "best": None, "teacher": None}},
            "points",
        ),
        (
            {"accuracy": {"last": 0.5, "best": None, "teacher": None}, "environment": None},
            "Teacher’s accuracy",
        ),
    ],
)
def test_missing_pieces_give_a_shorter_page(tmp_path: Path, changes: dict[str, Any], absent: str) -> None:
    write_run(tmp_path / "a", **({"lines": epoch_lines()} | changes))
    parsed = _Balance(page(find_runs([tmp_path]), "t"))
    headings = parsed.text.partition("How to read this")[0]
    assert not re.search(rf"\b{absent}(?! time)", headings)
    assert "How often each image was kept" not in headings


def test_runs_without_labels_are_judged_by_agreement(tmp_path: Path) -> None:
    nothing = {"last": None, "best": None, "teacher": None}
    lines = [epoch_line(number, agreement=number / 10) for number in (1, 2, 3)]
    write_run(tmp_path / "a", last=None, lines=lines, accuracy=nothing, agreement=0.3)
    parsed = _Balance(page(find_runs([tmp_path]), "t"))
    assert "agreed with the teacher on 30.0\u00a0%" in parsed.text
    assert "Agreement with the teacher against computation" in parsed.text
    assert "best epoch\naccuracy" not in parsed.text


def test_a_teacher_alone_is_reported_like_any_run(tmp_path: Path) -> None:
    write_run(tmp_path / "teacher", "student-alone", cost=None, lines=epoch_lines())
    assert "student-alone reached 90.0\u00a0%." in page(find_runs([tmp_path / "teacher"]), "t")


@pytest.mark.parametrize("teacher", [None, 0.5])
def test_curves_that_are_all_level_have_a_chart(teacher: float | None, tmp_path: Path) -> None:
    accuracy = {"last": 0.5, "best": 0.5, "teacher": teacher}
    for method in ("kd", "unix"):
        lines = [epoch_line(number, 0.5) for number in (1, 2)]
        write_run(tmp_path / method, method, lines=lines, accuracy=accuracy)
    assert "kd ends at 50.0" in page(find_runs([tmp_path]), "t")


def test_kept_shares_are_means_over_runs(tmp_path: Path) -> None:
    for seed, images in enumerate(([1, 1, 2], [4, 0, 0])):
        folder = write_run(tmp_path / str(seed), seed=seed)
        histogram = {"times_kept": [0, 2, 3], "images": images}
        (folder / "selection.json").write_text(json.dumps({"histogram": histogram, "epochs": 4}))
    (group,) = group_runs(find_runs([tmp_path]))
    assert kept_shares(group) == [0.625, 0.0, 0.125, 0.25, 0.0]


def test_styles_are_fixed_for_known_methods_and_differ(tmp_path: Path) -> None:
    for method in ("unix", "kd", "zebra", "ant", "mixup"):
        write_run(tmp_path / method, method)
    groups = group_runs(find_runs([tmp_path]))
    styles = styles_of(groups)
    assert len({(style.colour, style.marks["marker"]) for style in styles.values()}) == 5
    alone = [group for group in groups if group.method == "unix"]
    assert styles_of(alone)["unix"] == styles["unix"]


def test_missing_matplotlib_is_named(
    comparison: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"unixkd\[plots\]"):
        write_page(find_runs([comparison]), tmp_path / "x.html")


def test_report_says_where_the_page_is(comparison: Path, tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w") as file:
        report([comparison], tmp_path / "report.html", Console(width=80, file=file))
    assert f"Report written to {tmp_path / 'report.html'}" in (tmp_path / "out.txt").read_text()
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_every_method_is_explained() -> None:
    assert all(explain(name) for name in METHODS)
    assert explain("unix").startswith("keeps the images of each batch")
    assert explain("own") == ""
