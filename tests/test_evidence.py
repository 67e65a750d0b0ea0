"""The paired tests and the figure of the Pareto comparison, on runs made up by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from pareto_evidence import draw, load, paired, verdict
from pareto_protocol import CONTENDERS, RECIPE, RIVALS


def write(folder: Path, name: str, seed: int, accuracy: float, cost: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    relative = {"backward_1x": cost / 2, "backward_2x": cost}
    summary = {
        "method": name,
        "seed": seed,
        "accuracy": {"last": accuracy},
        "cost": {"relative_to_kd": relative},
    }
    (folder / f"{name}-seed{seed}.json").write_text(json.dumps(summary))


@pytest.fixture
def kept(tmp_path) -> Path:
    folder = tmp_path / "pair" / "confirm"
    for seed, accuracies in enumerate([(0.50, 0.49, 0.47), (0.51, 0.51, 0.49), (0.52, 0.51, 0.50)]):
        for name, accuracy in zip(("kd", "ours", "rival"), accuracies, strict=True):
            write(folder, name, seed, accuracy, {"kd": 1.0, "ours": 0.4, "rival": 0.4}[name])
    write(folder, "rival", 3, 0.99, 0.4)  # a seed that nobody else has
    return folder


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


def test_the_verdict_pairs_by_seed(kept):
    said = verdict(kept, "ours", ("rival", "never run"))
    assert said["cost"] == pytest.approx({"backward_1x": 0.2, "backward_2x": 0.4})
    assert said["against_kd"]["mean"] == pytest.approx(-2 / 3)
    assert list(said["against"]) == ["rival"]
    assert said["against"]["rival"]["n"] == 3
    assert said["against"]["rival"]["mean"] == pytest.approx(5 / 3)
    assert said["against"]["rival"]["p"] < 0.1
    assert verdict(kept, "never run", ()) is None


def test_the_figure_shows_every_contender(kept, tmp_path):
    pytest.importorskip("matplotlib")
    (kept.parent / "seconds.json").write_text(json.dumps({"relative_to_kd": {"ours": {"mean": 0.5}}}))
    draw(tmp_path, ["pair"], "confirm", tmp_path / "out" / "figure.svg", "ours")
    text = (tmp_path / "out" / "figure.svg").read_text()
    listed = {"rival": 1, "kd": 2, "ours, the recipe": 3}  # by mean accuracy
    assert all(f">{number} {name}<" in text for name, number in listed.items())
    assert [text.count(f">{number}<") for number in listed.values()] == [2, 2, 3]


def test_the_protocol_knows_its_recipe_and_rivals():
    names = [contender.name for contender in CONTENDERS]
    assert len(set(names)) == len(names)
    assert {RECIPE, *RIVALS} <= set(names)
    assert load(Path("nowhere")) == {}
