"""What a report answers first, what was planned, and who can read it: figures read back from the page."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from pages import contrast, read_page, section, table, words
from run_folders import epoch_line, epoch_lines, selection_file, write_run
from unixkd.errors import UserError
from unixkd.report.charts import DARK, LIGHT
from unixkd.report.page import page
from unixkd.report.records import Command
from unixkd.report.runs import find_runs

pytest.importorskip("matplotlib", reason="report pages need matplotlib")
GOT, COST, KD = "What did I get?", "What did it cost?", "What would plain KD have cost?"
NOTHING = {"last": None, "best": None, "teacher": None}


def costs(scored: int, kept: int, epochs: int = 10) -> dict[str, Any]:
    """A run's cost in GFLOPs, where a teacher takes 8 and a student 1 per image, and an epoch has 100 images.

    Plain KD: 10 epochs of 100 images at 8 + 2·1 = 10 (backward = 1 forward), or 11 (= 2): 10 or 11 TFLOPs.
    """
    flops = {"scoring": scored, "refresh": 0, "teacher": 8 * kept, "student_forward": kept, "evaluation": 77}
    own = [scored + 8 * kept + (1 + backward) * kept for backward in (1, 2)]
    return {
        "images": {
            "scored": scored, "teacher_forwarded": kept, "teacher_cached": 0, "trained": kept, "evaluated": 9,
        },
        "flops": {name: value * 10**9 for name, value in flops.items()},
        "reference": {"epochs": 10, "images": 100},
        "relative_to_kd": {"backward_1x": own[0] / 10_000, "backward_2x": own[1] / 11_000},
    }  # fmt: skip


def finished(folder: Path, method: str, seed: int, cost: dict[str, Any], **more: Any) -> Path:
    """A run folder with this cost."""
    write_run(folder, method, seed, **more)
    file = folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cost": cost}))
    return folder


def answers(folder: Path) -> dict[str, list[str]]:
    """What stands under each question of the first screen, the figure first."""
    tree = read_page(page(find_runs([folder]), "t"))
    found = [one for one in tree.iter("div") if one.get("class") == "answer"]
    return {words(one.find("h2")): [words(line) for line in one.iter("p")] for one in found}


def test_where_the_teachers_cost_is_not_known_no_share_is_given(tmp_path: Path) -> None:
    cost = {**costs(0, 1000), "relative_to_kd": None}
    cost["flops"] = {**cost["flops"], "teacher": None}
    told = answers(finished(tmp_path / "run", "kd", 0, cost))
    assert told[KD] == ["–", "the teacher's cost is not known: there is nothing to compare with"]
    assert not any("%" in line for line in told[COST])


def test_seconds_of_a_run_with_answers_of_others_do_not_stand_beside_its_cost(tmp_path: Path) -> None:
    shared = {"backward_1x": 0.1, "backward_2x": 0.1}
    for name, part in (("alone", {"backward_1x": 0.0, "backward_2x": 0.0}), ("lent", shared)):
        told = answers(finished(tmp_path / name, "unix", 0, {**costs(1000, 750), "shared": part}))
        assert any("of training, measured" in line for line in told[COST]) == (name == "alone")


def test_the_three_answers_of_a_comparison(tmp_path: Path) -> None:
    """UNIX scores 1000 images and keeps 750: 1000 + 750 · 10 = 8.5 TFLOPs, 1000 + 750 · 11 = 9.25 with backward = 2."""
    for seed, (ours, theirs) in enumerate(((0.90, 0.91), (0.94, 0.97))):
        finished(tmp_path / f"unix{seed}", "unix", seed, costs(1000, 750), last=ours)
        time = {"train_seconds": 25.0, "evaluate_seconds": 1.0}
        finished(tmp_path / f"kd{seed}", "kd", seed, costs(0, 1000), last=theirs, time=time)
    assert answers(tmp_path) == {
        GOT: [
            "92.00 ± 2.83 %",
            "unix: accuracy, last epoch, ± over 2 runs",
            "plain KD 94.00 ± 4.24 %",
            "difference −2.00 ± 1.41 points",
            "teacher 99.00 %",
        ],
        COST: [
            "84.1 %",
            "of plain KD’s computation, backward = 2 forwards",
            "85.0 % if a backward counts as 1 forward",
            "9.25 TFLOPs, 20 s of training, measured",
        ],
        KD: [
            "11.0 TFLOPs",
            "backward = 2 forwards; 10.0 TFLOPs if it is 1",
            "25 s of training, measured",
            "worked out for 10 epochs of 100 images",
        ],
    }


def test_of_a_single_run_without_labels(tmp_path: Path) -> None:
    finished(tmp_path / "a", "unix", 0, costs(1000, 750), last=None, accuracy=NOTHING, agreement=0.875)
    told = answers(tmp_path)
    assert told[GOT] == [
        "87.50 %",
        "unix: agreement with the teacher, last epoch, 1 run",
        "plain KD is not among these runs",
    ]
    assert told[COST][:1] == ["84.1 %"]
    assert told[KD][:3] == [
        "11.0 TFLOPs",
        "backward = 2 forwards; 10.0 TFLOPs if it is 1",
        "no seconds of it were measured",
    ]


def test_of_plain_kd_alone(tmp_path: Path) -> None:
    finished(tmp_path / "kd", "kd", 0, costs(0, 1000))
    told = answers(tmp_path)
    assert told[COST] == ["100 %", "it is plain KD itself", "11.0 TFLOPs, 20 s of training, measured"]
    assert told[KD][0] == "11.0 TFLOPs"
    assert not [line for line in told[GOT] if "difference" in line or "not run" in line]


def test_of_a_run_without_a_teacher(tmp_path: Path) -> None:
    cost = costs(0, 1000) | {"relative_to_kd": None}
    cost["flops"] |= {"teacher": 0}
    finished(tmp_path / "a", "student-alone", 0, cost)
    told = answers(tmp_path)
    assert told[COST] == ["3.00 TFLOPs", "computation, backward = 2 forwards", "20 s of training, measured"]
    assert told[KD] == ["–", "no teacher was asked here: there is nothing to compare with"]


def test_of_a_run_of_which_nothing_is_known(tmp_path: Path) -> None:
    cost = costs(0, 1000) | {"relative_to_kd": None, "flops": None}
    time = {"train_seconds": None, "evaluate_seconds": None}
    finished(tmp_path / "a", "own", 0, cost, last=None, accuracy=NOTHING, time=time)
    assert answers(tmp_path) == {
        GOT: ["–", "own had neither labels nor a teacher to be judged by"],
        COST: ["–"],
        KD: ["–", "no teacher was asked here: there is nothing to compare with"],
    }


# The plan beside the measurement


def plan(exact: bool, scored: int, kept: int, cost: float) -> str:
    images = {"scored": scored, "teacher_forwarded": kept, "trained": kept}
    shares = {"backward_1x": cost + 0.01, "backward_2x": cost}
    return json.dumps({"exact": exact, "images": images, "relative_to_kd": shares})


def test_the_plan_stands_beside_what_was_measured(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = finished(tmp_path / f"unix{seed}", "unix", seed, costs(1000, 750))
        (folder / "plan.json").write_text(plan(True, 1000, 750, 0.84))
        folder = finished(tmp_path / f"stale{seed}", "stale", seed, costs(0, 700 + 20 * seed))
        (folder / "plan.json").write_text(plan(False, 0, 800, 0.8))
    finished(tmp_path / "old", "stale", 2, costs(0, 10))  # without a plan: not among the measured ones either
    finished(tmp_path / "kd", "kd", 0, costs(0, 1000))
    rows = table(read_page(page(find_runs([tmp_path]), "t")), "Planned and measured cost of every method")
    assert rows[1:] == [
        ["unix", "planned", "85.00", "84.00", "1.00k", "750", "750", "–"],
        ["unix", "measured", "85.00", "84.09", "1.00k", "750", "750", "20 s"],
        ["stale", "expected", "81.00", "80.00", "0", "800", "800", "–"],
        ["stale", "measured", "71.00", "71.00", "0", "710", "710", "20 s"],
    ]


def test_without_a_plan_there_is_no_such_section(tmp_path: Path) -> None:
    finished(tmp_path / "kd", "kd", 0, costs(0, 1000))
    assert "Plan and measurement" not in page(find_runs([tmp_path]), "t")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"images": {"scored": 1}}, "'images': Object missing required field `teacher_forwarded`"),
        (
            {"relative_to_kd": {"backward_1x": "much"}},
            "'relative_to_kd.backward_1x': Expected `float`, got `str`",
        ),
    ],
)
def test_a_faulty_plan_is_named(changed: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "plan.json").write_text(json.dumps(json.loads(plan(True, 1, 1, 1.0)) | changed))
    with pytest.raises(UserError, match=rf"plan.json: {told}"):
        find_runs([tmp_path])


# Controls at the same cost, pictures, commands


def test_controls_are_hollow_and_joined_to_their_method(tmp_path: Path) -> None:
    for method, cost in (("kd", 1.0), ("unix", 0.8), ("kd@unix", 0.79), ("kd@gone", 0.5)):
        write_run(tmp_path / method, method, cost=cost, lines=[epoch_line(1, 0.5), epoch_line(2, 0.6)])
    runs = find_runs([tmp_path])
    text = page(runs, "t")
    assert "plain KD for as many epochs as the computation of X buys; a dotted line joins the two" in text
    keys = {
        words(row.find("th")): row.find("th/i").get("class")
        for row in read_page(text).iter("tr")
        if row.find("th/i") is not None
    }
    assert keys == {"kd": "key", "unix": "key", "kd@unix": "key hollow", "kd@gone": "key hollow"}
    dotted = text.count("stroke-dasharray: 1.2,2.4")
    without = page([run for run in runs if run.method != "kd@unix"], "t")
    assert dotted - without.count("stroke-dasharray: 1.2,2.4") == 3  # one in each chart
    assert "a dotted line joins" not in page([run for run in runs if "@" not in run.method], "t")


def test_pictures_of_both_ends_and_of_those_mixed_most(tmp_path: Path) -> None:
    chosen = selection_file()
    (shown,) = chosen["most_kept"]
    chosen["most_mixed"] = [shown | {"index": 8, "label": "dog", "times": 2, "mixed": 0.75}]
    (write_run(tmp_path / "a") / "selection.json").write_text(json.dumps(chosen))
    kept = section(read_page(page(find_runs([tmp_path]), "t")), "How often each image was kept")
    rows = {
        words(title): block for title, block in zip(kept.findall("h3"), kept.findall("div")[-3:], strict=True)
    }
    pictures = {title: [image.get("alt") for image in block.iter("img")] for title, block in rows.items()}
    assert pictures == {
        "Kept most often (unix, seed 0)": ["training image 7, cat, kept 3 times"],
        "Never kept: 1 image, 1 of them shown (unix, seed 0)": ["training image 7, cat, kept 0 times"],
        "Mixed most strongly (unix, seed 0)": [
            "training image 8, dog, kept 2 times, 38 % of its rows was given to partners"
        ],
    }
    assert words(rows["Mixed most strongly (unix, seed 0)"]) == "dog · 38 %"


def test_commands_are_shown_as_they_are(tmp_path: Path) -> None:
    command = "unixkd distill --teacher 'my & <teacher>' --student resnet8 --out again/unix-seed0"
    text = page(find_runs([write_run(tmp_path / "a")]), "t", commands=[Command("unix, seed 0", command)])
    (block,) = section(read_page(text), "Commands to reproduce").iter("pre")
    assert "".join(block.itertext()) == command
    assert "Commands to reproduce" not in page(find_runs([tmp_path]), "t")


# For those who read it otherwise than with a mouse and good eyes


@pytest.fixture
def tree(tmp_path: Path) -> Element:
    for method in ("kd", "unix", "kd@unix"):
        folder = write_run(tmp_path / method, method, lines=epoch_lines())
        (folder / "selection.json").write_text(json.dumps(selection_file()))
        (folder / "run.yaml").write_text("data:\n  name: digits\n")
        (folder / "plan.json").write_text(plan(True, 1, 1, 0.5))
    return read_page(page(find_runs([tmp_path]), "t", commands=[Command("unix", "unixkd distill")]))


def test_headings_come_in_order(tree: Element) -> None:
    levels = [int(one.tag[1]) for one in tree.iter() if one.tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_part_of_the_page_has_a_name(tree: Element) -> None:
    assert tree.get("lang") == "en"
    assert words(tree.find("head/title")) == "t"
    assert [one.tag for one in tree.find("body")] == ["a", "main", "footer"]
    ids = {one.get("id") for one in tree.iter()}
    for link in tree.iter("a"):
        assert link.get("href", "").removeprefix("#") in ids
    contents = [words(link) for link in tree.find("body/main/nav").iter("a")]
    assert contents == [words(one.find("h2")) for one in tree.iter("section")]
    for chart in tree.iter("svg"):
        assert chart.get("role") == "img"
        title, said = chart.find("title"), chart.find("desc")
        assert chart.get("aria-labelledby") == f"{title.get('id')} {said.get('id')}"
        assert words(title)
        assert words(said)
    assert all(image.get("alt") for image in tree.iter("img"))


def test_tables_say_what_heads_what_and_can_be_scrolled_with_keys(tree: Element) -> None:
    boxes = [one for one in tree.iter("div") if one.get("class") == "scroll"]
    tables = list(tree.iter("table"))
    assert [box.find("table") for box in boxes] == tables
    assert len(tables) == 5
    for box in (*boxes, *tree.iter("pre")):
        assert (box.get("tabindex"), box.get("role")) == ("0", "region")
        assert box.get("aria-label")
    for one in tables:
        assert words(one.find("caption"))
        assert {cell.get("scope") for cell in one.find("thead").iter("th")} == {"col"}
        assert {row.find("th").get("scope") for row in one.find("tbody")} == {"row"}


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_of_words_stand_out_from_the_card(palette: dict[str, str]) -> None:
    """At least 4.5 to 1, as WCAG 2 wants it; on the page behind the cards only ink, muted and the links' colour."""
    behind = {"card": palette["card"], "page": "#f6f8fa" if palette is LIGHT else "#0d1117"}
    for name in set(palette) - {"grid", "card"}:
        for where in ("card", "page") if name in ("ink", "muted", "c0") else ("card",):
            assert contrast(palette[name], behind[where]) >= 4.5, (name, where)
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.01)
