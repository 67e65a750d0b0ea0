"""The queue of evidence, its tables, tests and figure, on results made up by hand; and a few steps of real runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import evidence  # noqa: E402
from evidence_arenas import ARENAS, FIGURES, Arena, Place, sample_run, student_run  # noqa: E402
from evidence_queue import MARGIN, Estimates, Item, claim, commit_of, keep, load, missing, wanted  # noqa: E402
from evidence_report import draw, paired, report, verdict  # noqa: E402

OPEN = ARENAS["10k-resnet32x4-resnet8x4"]
PLACE = Place("images", Path("out"), None, "photos")


def write(
    folder: Path, name: str, seed: int, accuracy: float, cost: float = 1.0, seconds: float = 60.0
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    relative = {"backward_1x": cost / 2, "backward_2x": cost}
    summary = {
        "method": name,
        "seed": seed,
        "accuracy": {"last": accuracy, "best": accuracy},
        "cost": {"relative_to_kd": relative},
        "time": {"setup_seconds": 0.0, "train_seconds": seconds, "evaluate_seconds": 0.0},
    }
    file_name = name.replace(", ", "+").replace(" ", "-")
    (folder / f"{file_name}-seed{seed}.json").write_text(json.dumps(summary))


@pytest.fixture
def arena() -> Arena:
    """Three contenders, of which the confirmation is frozen."""
    few = tuple(map(OPEN.contender, ("kd", "kd, 6 views", "random")))
    return replace(
        OPEN, contenders=few, confirmed=("kd", "kd, 6 views"), recipe="kd, 6 views", rivals=("random",)
    )


@pytest.fixture
def kept(arena, tmp_path) -> Path:
    folder = tmp_path / arena.name / "confirm"
    for seed, accuracies in enumerate([(0.50, 0.49, 0.47), (0.51, 0.51, 0.49), (0.52, 0.51, 0.50)]):
        for name, accuracy in zip(("kd", "kd, 6 views", "random"), accuracies, strict=True):
            write(folder, name, seed, accuracy, 1.0 if name == "kd" else 0.4)
    write(folder, "random", 3, 0.99, 0.4)  # a seed that nobody else has
    return tmp_path


def names(items: list[Item]) -> list[tuple[str, str, int]]:
    return [(item.stage, item.contender.name, item.seed) for item in items]


def test_a_paired_test_by_hand():
    """Differences −1, 0, −1: mean −2/3, sd 0.577, error 1/3; Student's t of 2 degrees of freedom at 90 %: 1.886."""
    found = paired({0: 49.0, 1: 51.0, 2: 51.0}, {0: 50.0, 1: 51.0, 2: 52.0, 9: 0.0})
    assert (found["n"], found["mean"], found["sd"]) == (3, pytest.approx(-2 / 3), pytest.approx(0.57735))
    assert found["lower"] == pytest.approx(-2 / 3 - 1.8856 / 3, abs=1e-4)
    assert found["p"] == pytest.approx(1 - 0.0918, abs=1e-3)  # t = −2


def test_one_seed_has_no_bound_and_none_no_mean():
    assert paired({0: 2.0}, {0: 1.0}) == {"n": 1, "mean": 1.0, "sd": None, "lower": None, "p": None}
    assert paired({0: 2.0}, {1: 1.0})["mean"] is None


def test_differences_that_are_all_alike_are_certain():
    found = paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert (found["lower"], found["p"]) == (1.0, 0.0)


def test_the_verdict_pairs_by_seed(arena, kept):
    folder = kept / arena.name / "confirm"
    said = verdict(folder, "kd, 6 views", ("random", "never run"))
    assert said["cost"] == pytest.approx({"backward_1x": 0.2, "backward_2x": 0.4})
    assert said["against_kd"]["mean"] == pytest.approx(-2 / 3)
    assert list(said["against"]) == ["random"]
    assert said["against"]["random"]["n"] == 3
    assert said["against"]["random"]["mean"] == pytest.approx(5 / 3)
    assert said["against"]["random"]["p"] < 0.1
    assert verdict(folder, "never run", ()) is None


def test_the_table_has_a_line_for_each_contender_with_results(arena, kept, capsys):
    lines = report([arena], "confirm", kept)[arena.name]
    assert [line["contender"] for line in lines] == ["kd", "kd, 6 views", "random"]
    assert lines[2]["accuracy"]["n"] == 4
    assert lines[2]["against_kd"] == pytest.approx({"mean": -7 / 3, "sd": 0.57735, "n": 3}, abs=1e-4)
    printed = capsys.readouterr().out
    assert "resnet32x4 → resnet8x4, 10,000 images, 120 epochs, confirm" in printed
    assert '"against_kd": {"n": 3' in printed
    assert report([arena], "search", kept) == {}


def test_the_figure_shows_every_contender(arena, kept, tmp_path):
    pytest.importorskip("matplotlib")
    (kept / arena.name / "seconds.json").write_text(
        json.dumps({"relative_to_kd": {"kd, 6 views": {"mean": 0.5}}})
    )
    draw(kept, [arena], tmp_path / "out" / "figure.svg")
    text = (tmp_path / "out" / "figure.svg").read_text()
    listed = {"random": 1, "kd": 2, "kd, 6 views, the recipe": 3}  # by mean accuracy
    assert all(f">{number} {name}<" in text for name, number in listed.items())
    assert [text.count(f">{number}<") for number in listed.values()] == [2, 2, 3]
    draw(kept, [arena, OPEN], tmp_path / "kept.svg", stage="search")
    assert not (tmp_path / "kept.svg").exists()


def test_every_arena_is_whole():
    for arena in ARENAS.values():
        known = [contender.name for contender in arena.contenders]
        assert len(set(known)) == len(known)
        assert len({contender.file_name for contender in arena.contenders}) == len(known)
        assert {*arena.confirmed, *arena.rivals} <= set(known)
        assert (arena.recipe is None) == (arena.confirmed == ())
        for contender in arena.contenders:
            config = student_run(arena, "search", contender, 0, PLACE)
            assert config.train.precision == config.train.teacher_precision == "bf16"
            assert contender.stored == (config.answers.path is not None)
    assert all(name in ARENAS for rows in FIGURES.values() for name in rows)
    assert load(Path("nowhere")) == {}


def test_costs_refer_to_plain_kd_on_all_of_the_arena_s_images():
    for name in ("kd", "random-half", "kd, epochs x0.5"):
        config = student_run(OPEN, "search", OPEN.contender(name), 0, PLACE)
        assert config.reference_epochs * config.data.limit == 120 * 10_000


def test_runs_lend_each_other_answers_to_the_same_images_in_the_same_views_only():
    def lender(name: str) -> Path | None:
        return PLACE.lender(OPEN, OPEN.contender(name))

    assert lender("kd") == lender("random") == lender("remix")
    assert len({lender(name) for name in ("kd", "kd, 6 views", "kd, 8 mixes", "random-half")}) == 4


def test_photographs_are_a_folder_whose_endless_views_are_lent_to_nobody():
    arena = ARENAS["photos-unlabelled"]
    configs = {each.name: student_run(arena, "confirm", each, 10, PLACE) for each in arena.contenders}
    assert {config.data.name for config in configs.values()} == {"folder:photos"}
    assert not any(config.data.labels for config in configs.values())
    assert PLACE.lender(arena, arena.contender("kd")) is None
    assert PLACE.lender(arena, arena.contender("kd, 16 views")) is not None
    assert "student-alone" not in configs
    assert ARENAS["photos-labels"].loss.ce == 1.0
    assert not replace(PLACE, photos=None).has(arena)
    assert replace(PLACE, root=None).has(arena)


def test_a_sample_to_be_timed_is_short(tmp_path):
    config = sample_run(OPEN, OPEN.contender("kd, 16 mixes"), PLACE, tmp_path / "run")
    assert (config.data.mixes, config.train.epochs, config.reference_epochs) == (1, 7, 7)


def test_the_queue_takes_every_first_seed_then_the_front_then_the_confirmation(arena, tmp_path):
    kept = tmp_path / "kept"
    first = [("search", name, 0) for name in ("kd", "kd, 6 views", "random")]
    assert names(missing([arena], kept))[:3] == first
    assert names(missing([arena, replace(arena, name="other")], kept))[:6] == first * 2
    write(kept / arena.name / "search", "kd", 0, 0.50, 1.0)
    write(kept / arena.name / "search", "kd, 6 views", 0, 0.47, 0.4)  # the cheapest: on the front
    write(kept / arena.name / "search", "random", 0, 0.45, 0.7)  # 2 points below what is cheaper
    assert names(missing([arena], kept)) == [
        ("search", "kd", 1),
        ("search", "kd, 6 views", 1),
        *(("confirm", name, seed) for seed in (10, 11, 12) for name in ("kd", "kd, 6 views")),
    ]
    frozen_later = replace(arena, recipe=None, confirmed=())
    assert {item.stage for item in wanted(frozen_later, kept)} == {"search"}


def test_seconds_are_learnt_from_results_and_from_this_machine(arena, tmp_path):
    kept, file = tmp_path / "kept", tmp_path / "speed.json"
    estimates = Estimates(kept, file)
    kd, views, _ = (Item(arena, "search", contender, 0) for contender in arena.contenders)
    assert estimates.seconds(kd) == arena.kd_seconds
    write(kept / arena.name / "search", "kd", 0, 0.5, seconds=100.0)
    half = Item(arena, "search", replace(arena.contenders[0], name="kd, epochs x0.5", epochs=0.5), 0)
    assert [estimates.seconds(item) for item in (kd, views, half)] == [100.0, 100.0, 50.0]
    mixes = Item(arena, "search", replace(OPEN.contender("kd, 8 mixes"), epochs=0.5), 0)
    assert estimates.seconds(mixes) == 50.0  # nothing like it is known yet
    estimates.learn(100.0, 250.0)
    assert estimates.seconds(kd) == 250.0
    write(kept / arena.name / "confirm", "kd, 6 views", 10, 0.5, seconds=60.0)
    assert estimates.seconds(views) == 150.0
    assert estimates.seconds(mixes) == 75.0  # half the epochs of one that asks as little
    assert estimates.seconds(half) == 125.0


def test_nothing_is_started_that_would_not_end(arena, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(evidence, "take", lambda item, *rest: taken.append(item) or write_result(item))

    def write_result(item: Item) -> None:
        write(tmp_path / arena.name / item.stage, item.contender.name, item.seed, 0.5)

    short = replace(arena.contenders[1], epochs=0.01)
    arena = replace(
        arena, contenders=(arena.contenders[0], short), recipe=None, confirmed=(), kd_seconds=1000.0
    )
    deadline = evidence.time.time() + 1000 * MARGIN - 60
    assert evidence.work([arena], replace(PLACE, out=tmp_path / "out"), tmp_path, deadline) == len(taken) > 0
    assert {item.contender.name for item in taken} == {"kd, 6 views"}


def test_a_run_that_another_process_has_is_left_to_it(arena, tmp_path):
    item, place = Item(arena, "search", arena.contenders[0], 0), replace(PLACE, out=tmp_path)
    with claim(item, place) as mine, claim(item, place) as again:
        assert (mine, again) == (True, False)
    with claim(item, place) as later:
        assert later


def test_a_result_says_where_it_comes_from_and_its_run_goes(arena, tmp_path):
    item, place = Item(arena, "search", arena.contenders[1], 0), replace(PLACE, out=tmp_path / "out")
    run = place.run(arena, "search", item.contender, 0)
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"method": "kd, 6 views", "seed": 0}')
    store = place.store(arena, "search", item.contender, 0)
    store.mkdir()
    keep(item, place, tmp_path / "kept", commit_of(BENCHMARKS))
    result = json.loads(item.result(tmp_path / "kept").read_text())
    assert result["evidence"]["arena"] == arena.name
    assert result["evidence"]["commit"].startswith(("unknown", *"0123456789abcdef"))
    assert not run.exists()
    assert not store.exists()
    assert [path.name for path in (tmp_path / "kept" / arena.name / "search").iterdir()] == [
        "kd+6-views-seed0.json"
    ]


@pytest.mark.parametrize(
    ("heading", "arena"), [("10,000 images", "10k-resnet32x4-resnet8x4"), ("photographs", "photos-labels")]
)
def test_the_page_shows_what_the_committed_results_say(heading, arena, capsys):
    """Every row of the table of the search, and no row is missing."""
    page = (BENCHMARKS.parent / "docs" / "recipe.md").read_text()
    table = page.partition(f"## With {heading}")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    found = {
        line["contender"]: (f"{line['accuracy']['mean']:.2f}", f"{100 * line['cost']['backward_2x']:.1f} %")
        for line in report([ARENAS[arena]], "search", evidence.KEPT)[arena]
    }
    assert {name: (accuracy, cost) for name, accuracy, cost in rows} == found


def test_status_counts_hours(arena, kept, capsys):
    figures = evidence.status([arena], kept, kept)
    printed = capsys.readouterr().out
    assert "search: 0 of 3 runs done" in printed
    assert figures[arena.name]["missing"] == 9
    assert figures[arena.name]["hours"] == pytest.approx(
        9 * 60 / 3600, abs=0.05
    )  # a minute each, as those of seeds 0 to 2
    unfrozen = replace(arena, recipe=None, confirmed=())
    evidence.status([unfrozen], kept, kept)
    assert "waits until the search is complete" in capsys.readouterr().out


@pytest.mark.slow
def test_the_queue_runs(cifar100):
    """A few steps of some contenders, with a teacher trained on the spot."""
    words = [
        sys.executable,
        str(BENCHMARKS / "accuracy" / "evidence.py"),
        "run",
        "--quick",
        "--root",
        str(cifar100),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["finished"] >= 4
    assert "at 50.0% of plain KD's cost" in done.stdout  # random-half
