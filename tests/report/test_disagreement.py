"""The report's section on disagreements, photographs among its pictures, and what it says of the teacher's cost."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pages import read_page, section, table, words
from run_folders import HOSTILE, epoch_lines, grey_png, selection_file, write_run
from unixkd.errors import UserError
from unixkd.report.disagreement import teachers_cost
from unixkd.report.page import page
from unixkd.report.runs import find_runs, group_runs

pytest.importorskip("matplotlib", reason="report pages need matplotlib")

TITLE, CAPTION = "Where student and teacher disagree", "On how many images student and teacher disagree"


def jpeg() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def left(**changed: Any) -> dict[str, Any]:
    shown = {
        "index": 7, "label": "bees", "file": "7.jpg", "student": "ants", "student_confidence": 0.974,
        "teacher": "bees", "teacher_confidence": 0.5, "jpeg": jpeg(),
    }  # fmt: skip
    counts = {"images": 100, "differ": 10, "teacher_right": 6, "student_right": 3}
    return counts | {"shown": [shown | changed.pop("shown", {})]} | changed


def add(folder: Path, values: dict[str, Any], name: str = "disagreements.json") -> Path:
    (folder / name).write_text(json.dumps(values))
    return folder


def test_counts_are_means_over_runs_and_pictures_are_of_one(tmp_path):
    add(write_run(tmp_path / "a", seed=0), left())
    add(write_run(tmp_path / "b", seed=1), left(differ=13))
    write_run(tmp_path / "old", "kd")  # of an earlier version
    whole = read_page(page(find_runs([tmp_path]), "t"))
    assert table(whole, CAPTION)[1:] == [["unix", "100", "11.5", "6", "3", "2.5"]]
    part = section(whole, TITLE)
    assert "1 of 10, first those that the teacher gets right (unix, seed 0)" in words(part)
    (figure,) = part.iter("figure")
    assert words(figure.find("figcaption")) == "bees teacher 50 %: bees student 97 %: ants"
    marked = [words(each) for each in figure.iter("span") if each.get("class") == "right"]
    assert marked == ["teacher 50 %: bees"]
    image = figure.find("img")
    assert image.get("src").startswith("data:image/jpeg;base64,")
    assert image.get("class") is None
    said = "evaluation image 7, 7.jpg, bees: the teacher says bees (50 %); the student says ants (97 %)"
    assert image.get("alt") == said


def test_without_labels_nobody_is_right(tmp_path):
    values = left(shown={"label": None}, teacher_right=None, student_right=None)
    add(write_run(tmp_path / "a", last=None), values)
    part = section(read_page(page(find_runs([tmp_path]), "t")), TITLE)
    assert "unix 100 10 – – –" in words(part)
    assert "1 of 10 (unix, seed 0)" in words(part)
    assert "#7" in words(part)
    assert not [each for each in part.iter("span") if each.get("class") == "right"]


def test_names_of_classes_and_files_are_no_markup(tmp_path):
    hostile = dict.fromkeys(("label", "file", "student", "teacher"), HOSTILE)
    add(write_run(tmp_path / "a", lines=epoch_lines()), left(shown=hostile))
    selection = selection_file(HOSTILE)
    selection["most_kept"][0] |= {"file": HOSTILE}
    add(tmp_path / "a", selection, "selection.json")
    text = page(find_runs([tmp_path]), "t")
    assert "<script" not in text
    whole = read_page(text)
    assert not list(whole.iter("script"))
    assert HOSTILE in "".join(section(whole, TITLE).itertext())


@pytest.mark.parametrize(
    ("shown", "says"),
    [
        ({"jpeg": grey_png()}, "this is no base64 JPEG"),
        ({"png": grey_png()}, "a picture is either a png or a jpeg"),
        ({"jpeg": None}, "a picture is either a png or a jpeg"),
        ({"teacher_confidence": 1.5}, "teacher_confidence"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(shown, says, tmp_path):
    add(write_run(tmp_path / "a"), left(shown=shown))
    with pytest.raises(UserError, match=says) as refused:
        find_runs([tmp_path])
    assert "disagreements.json" in str(refused.value)


def test_runs_without_any_have_no_section(tmp_path):
    write_run(tmp_path / "a")
    assert TITLE not in page(find_runs([tmp_path]), "t")


def test_photographs_are_not_shown_as_pixels_and_tiny_images_are(tmp_path):
    selection = selection_file()
    selection["least_kept"] = [{"index": 1, "times": 0, "jpeg": jpeg()}]
    add(write_run(tmp_path / "a", lines=epoch_lines()), selection, "selection.json")
    part = section(read_page(page(find_runs([tmp_path]), "t")), "How often each image was kept")
    assert [image.get("class") for image in part.iter("img")] == ["pixels", None]
    assert [each.get("class") for each in part.iter("div") if "thumbs" in each.get("class", "")] == [
        "thumbs",
        "thumbs photos",
    ]


def test_of_a_stream_it_is_said_why_there_are_no_pictures(tmp_path):
    folder = write_run(tmp_path / "a", lines=epoch_lines())
    (folder / "run.yaml").write_text("data: {name: 'stream:somewhere'}\n")
    part = section(read_page(page(find_runs([tmp_path]), "t")), "How often each image was kept")
    assert "unix: images of a stream have no numbers" in words(part)


def test_the_teachers_cost_is_of_its_own_forwards(tmp_path):
    """700 forwards cost 1.4 GFLOPs: 2 GFLOPs for 1,000; 100 images were evaluated in 0.5 s: 5 s for 1,000."""
    for seed, took in ((0, 0.5), (1, 0.7)):
        folder = write_run(tmp_path / f"a{seed}", seed=seed)
        values = json.loads((folder / "summary.json").read_text())
        values["cost"]["flops"] |= {"teacher": 1.4e9, "scoring": 0.0, "student_forward": 0.2e9}
        values["time"]["teacher_seconds"] = took
        add(add(folder, values, "summary.json"), left())
    assert teachers_cost(group_runs(find_runs([tmp_path]))) == [
        ("Teacher’s cost for 1,000 images", "2.00 GFLOPs"),
        ("Teacher’s seconds for 1,000 images", "5.0 s to 7.0 s of its evaluation, with reading the images"),
        ("Teacher’s share of the computation", "unix 70.00 %"),
    ]


@pytest.mark.parametrize("unknown", ["flops", "forwards"])
def test_a_cost_that_is_not_known_is_not_printed(unknown, tmp_path):
    folder = write_run(tmp_path / "a")
    values = json.loads((folder / "summary.json").read_text())
    if unknown == "flops":
        values["cost"]["flops"]["teacher"] = None
    else:
        values["cost"]["images"]["teacher_forwarded"] = values["cost"]["flops"]["teacher"] = 0
    add(folder, values, "summary.json")
    assert teachers_cost(group_runs(find_runs([tmp_path]))) == []
