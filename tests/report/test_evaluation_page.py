"""The page of an evaluation and its rows: whole, escaped, self-contained, and shorter where less is known."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluations import SPEED, answers, evaluation
from pages import read_page, section, table, words
from run_folders import HOSTILE
from unixkd.errors import UserError
from unixkd.report.evaluation import NO_ANSWER, Confused
from unixkd.report.evaluation_page import evaluation_page, write_evaluation_page
from unixkd.report.evaluation_pictures import SIDE, address
from unixkd.report.evaluation_rows import remarks, shown_classes, summary
from unixkd.report.heat_map import MOST, chosen_classes, heat_map

LABELS, STUDENT, TEACHER = [0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 1], [0, 0, 2, 1, 0, 2]


def show(i: int) -> tuple[np.ndarray, str]:
    return np.full((8, 8, 1), i % 200, dtype=np.uint8), f"ants/{i}.png"


def page_of(labels, student, teacher=None, **changes):
    found = evaluation(labels, student, teacher, **changes)
    text, left_out = evaluation_page(found, answers(labels, student, teacher), show)
    return read_page(text), text, left_out


def images_in(element) -> list[str]:
    return [one.attrib["alt"] for one in element.iter("img")]


def test_the_page_has_every_section_and_loads_nothing():
    pytest.importorskip("matplotlib")
    page, text, left_out = page_of(LABELS, STUDENT, TEACHER, classes=3, speed=SPEED)
    assert left_out == []
    assert (
        words(page.find(".//h1"))
        == "resnet8 is right on 33.33 % of the images, its teacher wrn_16_2 on 66.67 %."
    )
    assert table(page, "Student and teacher")[:3] == [
        ["", "student", "teacher"],
        ["accuracy (top-1)", "33.33 %", "66.67 %"],
        ["balanced accuracy", "27.78 %", "72.22 %"],
    ]
    assert table(page, "The most confused pairs")[1:] == [
        ["c0, taken for c1", "2", "66.67 %"],
        ["c1, taken for c0", "1", "50.00 %"],
        ["c2, taken for c1", "1", "100.00 %"],
    ]
    assert table(page, "Every class")[3] == ["c2", "1", "–", "0.00 %", "0.00 %", "66.67 %"]
    assert len({one.attrib["id"] for one in page.iter() if "id" in one.attrib}) == len(
        [one for one in page.iter() if "id" in one.attrib]
    )
    assert text.count("<svg") == 3
    outside = [one.attrib["src"] for one in page.iter("img")]
    assert all(source.startswith("data:image/png;base64,") for source in outside)
    assert not re.search(r"https?:|//|@import|<script", re.sub(r'base64,[^"]*', "", text))


def test_pictures_are_those_of_the_pairs_and_of_each_kind_of_disagreement():
    """The surest first, which is the last; what it is called, is, and is said to be in the title."""
    page, *_ = page_of(LABELS, STUDENT, TEACHER, classes=3)
    confused = images_in(section(page, "What is confused"))
    assert [re.match(r"ants/(\d)", alt)[1] for alt in confused] == ["2", "1", "4", "5"]
    apart = section(page, "Where student and teacher disagree")
    assert [words(one) for one in apart.iter("h3")] == [
        "The teacher is right, the student is wrong: 2 images",
        "Both are wrong, in different ways: 1 image",
    ]
    assert images_in(apart)[0] == "ants/5.png, it is c2, student: c1 90 %, teacher: c2 90 %"
    assert [re.match(r"ants/(\d)", alt)[1] for alt in images_in(apart)] == ["5", "1", "2"]


def test_hostile_names_are_escaped(tmp_path):
    names = [HOSTILE, "x\n\x1b[31m", "b"]
    found = evaluation(LABELS, STUDENT, TEACHER, names=names)
    found = replace(found, data=HOSTILE, data_notes=[HOSTILE])
    said = answers(LABELS, STUDENT, TEACHER)
    write_evaluation_page(found, said, lambda i: (show(i)[0], HOSTILE), tmp_path / "out" / "page.html")
    text = (tmp_path / "out" / "page.html").read_text()
    page = read_page(text)
    assert not list(page.iter("script"))
    assert HOSTILE in "".join(page.itertext())
    assert r"x\n\x1b[31m" in text
    assert not set(re.findall(r"[\x00-\x1f\x7f-\x9f]", text)) - {"\n"}


def test_without_labels_there_is_agreement_and_no_quality():
    page, *_ = page_of(None, STUDENT, TEACHER, classes=3, speed=SPEED)
    titles = [words(one) for one in page.iter("h2")]
    assert "What is confused" not in titles
    assert "Classes" not in titles
    assert words(page.find(".//h1")).startswith("resnet8 says what its teacher wrn_16_2 says on 50.00 %")
    assert len(images_in(section(page, "Where student and teacher disagree"))) == 3
    assert table(page, "Student and teacher")[1][0] == "images per second"


def test_a_network_alone_that_makes_no_mistake():
    page, *_ = page_of([0, 1], [0, 1])
    titles = [words(one) for one in page.iter("h2")]
    assert "Where student and teacher disagree" not in titles
    assert "No class was taken for another." in words(section(page, "What is confused"))
    assert table(page, "Figures")[0] == ["", "resnet8"]


def test_an_image_without_an_answer_is_said_to_have_none():
    page, *_ = page_of([0, 1], [NO_ANSWER, 1], [0, 1])
    (alt,) = images_in(section(page, "Where student and teacher disagree"))
    assert alt == "ants/0.png, it is c0, student: no answer, teacher: c0 50 %"
    assert "logits are not finite for 1 image" in words(section(page, "Results"))


def test_without_matplotlib_the_charts_are_left_out_and_said_to_be(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    page, text, left_out = page_of(LABELS, STUDENT, TEACHER, classes=3)
    assert len(left_out) == 1
    assert "unixkd[plots]" in left_out[0]
    assert left_out[0] in words(page)
    assert text.count("<svg") == 1  # the matrix needs no matplotlib
    assert table(page, "Calibration of student")[1][0] == "73 to 80 %"


def test_no_other_file_is_replaced(tmp_path):
    (tmp_path / "a.html").write_text("mine")
    found = evaluation(LABELS, STUDENT, classes=3)
    with pytest.raises(UserError, match="is no report"):
        write_evaluation_page(found, answers(LABELS, STUDENT), show, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text() == "mine"


def test_large_pictures_are_small_jpegs():
    noise = np.random.default_rng(0).integers(0, 256, (300, 600, 3), dtype=np.uint8)
    source = address(noise, small=False)
    assert source.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        assert image.size == (SIDE, SIDE // 2)
    exact = address(noise[:8, :8], small=True)
    with Image.open(io.BytesIO(base64.b64decode(exact.partition(",")[2]))) as image:
        assert np.array_equal(np.asarray(image), noise[:8, :8])


def test_the_matrix_of_many_classes_shows_the_most_confused_in_their_order():
    labels, student = [*range(40), 30, 30], [*range(40), 3, 3]
    labels, student = [*labels, 7], [*student, 39]
    found = evaluation(labels, student, classes=40)
    map = heat_map(found, found.student.quality, answers(labels, student))
    assert map.names == ["c3", "c7", "c30", "c39"]
    texts = {cell.words: (cell.text, round(cell.share, 3)) for cell in map.cells}
    assert texts["c30 taken for c3: 2 of 3"] == ("2", 0.667)
    assert texts["c3 taken for c30: 0 of 1"] == ("", 0.0)
    assert map.classes == 40
    assert chosen_classes(MOST, []) == list(range(MOST))
    many = [Confused(actual=2 * i, predicted=2 * i + 1, images=1) for i in range(MOST)]
    assert chosen_classes(100, many) == list(range(MOST))


def test_of_a_thousand_classes_the_worst_are_shown_and_the_rest_counted():
    labels = list(range(1000))
    student = [*labels[:990], *[0] * 10]
    page, *_ = page_of(labels, student, classes=1000)
    shown = table(page, "The worst classes")
    assert len(shown) == 51
    assert {row[0] for row in shown[1:11]} == {f"c{i}" for i in range(990, 1000)}
    assert "The 50 worst classes by F1; 950 others" in words(section(page, "Classes"))
    found = evaluation(labels, student, classes=1000)
    assert len(shown_classes(found.student.quality)) == 10


def test_remarks_name_what_has_no_images_and_no_answer():
    found = evaluation([0, 0], [0, NO_ANSWER], [0, 1], classes=12, speed=SPEED)
    text = " ".join(remarks(found))
    assert "No image of 11 of 12 classes (c1, c2, c3, c4, c5, c6, c7, c8 and 3 more)" in text
    assert "balanced accuracy is the mean over the other 1." in text
    assert "student: logits are not finite for 1 image" in text
    assert "teacher: logits" not in text
    assert "Where the teacher is wrong (1 image), the student is right on 0.00 %." in text
    assert "Timed on cpu, 2 threads, fp32" in text


def test_a_row_that_nobody_can_fill_is_left_out():
    rows = {name: cells for name, *cells in summary(evaluation([0, 1], [0, 0], flops=None))}
    assert "FLOPs per image" not in rows
    assert "accuracy (top-5)" not in rows
    assert rows["accuracy (top-1)"] == ["50.00 %"]
    assert rows["parameters"] == ["77,754"]


def test_the_page_can_be_written_over_itself(tmp_path: Path):
    found, said = evaluation(LABELS, STUDENT, classes=3), answers(LABELS, STUDENT)
    first = [write_evaluation_page(found, said, show, tmp_path / "a.html") for _ in range(2)]
    assert first[0] == first[1]
