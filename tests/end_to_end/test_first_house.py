"""Run folders and a store of answers that commit 37e24f0 left behind: they load, go on and report as they did then.

`oracles/first_house/README.md` says what lies there and how it was made. Everything here goes through the command line
in processes of its own and through public names, so that it holds whatever the modules are called.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unixkd

HOUSE = next(
    place for parent in Path(__file__).parents if (place := parent / "oracles" / "first_house").is_dir()
)
RUNS = ("killed", "stopped", "stale")
"""What was not finished: SIGKILL between two checkpoints, SIGTERM in the middle of an epoch, twice."""
NET = "net.py:Net"
TEST_IMAGES = 359

SLACK = {"accuracy": 2, "agreement": 2, "last": 2, "best": 2, "teacher": 2}
"""By how many test images a share may differ where floating-point sums are added up in another order."""
MEASURED = ("loss", "loss_parts", "calibration_error", "logits", "selection", "weights")
"""What else comes from such sums. All other numbers count something, and are the same on every machine."""
RELATIVE, ABSOLUTE = 0.05, 0.02
"""How far those may differ then."""


def commands() -> dict[str, Any]:
    """The commands as they were typed, by the name of what they make."""
    return json.loads((HOUSE / "commands.json").read_text())


def expected() -> dict[str, Any]:
    """What commit 37e24f0 made of them, and on which machine."""
    return json.loads((HOUSE / "expected.json").read_text())


def words_of(command: str) -> list[str]:
    """The words of a command, with the options that several share."""
    shared = commands()["shared"]
    return [word for part in command.split() for word in shared.get(part, part).split()]


def machine() -> dict[str, str]:
    """What decides the last digits of a floating-point sum."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    names = ("vendor_id", "cpu family", "model", "model name")
    return {
        "torch": torch.__version__,
        "processor": " ".join(facts[name] for name in names if name in facts) or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def run(place: Path, *words: object) -> str:
    """What a command prints, run as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "unixkd", *map(str, words)],
        cwd=place,
        env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What is looked at


def result(folder: Path) -> dict[str, Any]:
    """A finished run without what a clock has measured and where."""
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {
        "summary": {key: value for key, value in summary.items() if key not in ("time", "environment")},
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "weights": weights(folder),
    }
    if (folder / "selection.json").exists():
        found["selection"] = without_pictures(json.loads((folder / "selection.json").read_text()))
    return found


def without_pictures(value: Any) -> Any:
    """The same without base64 PNGs, whose bytes are Pillow's affair."""
    if isinstance(value, dict):
        return {key: without_pictures(each) for key, each in value.items() if key != "png"}
    return [without_pictures(each) for each in value] if isinstance(value, list) else value


def weights(folder: Path) -> dict[str, Any]:
    """Of each tensor: shape, SHA-256 of its bytes, mean and Euclidean norm."""
    return {
        name: {
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(tensor.numpy().tobytes()).hexdigest(),
            "mean": tensor.double().mean().item(),
            "norm": tensor.double().square().sum().sqrt().item(),
        }
        for name, tensor in sorted(load_file(folder / "model.safetensors").items())
    }


def logits(folder: Path, code: str | None = None) -> list[list[float]]:
    """What a saved network says about two made-up images."""
    images = (torch.arange(128) % 17 / 16).reshape(2, 1, 8, 8)
    with torch.no_grad():
        return unixkd.load_student(folder, code)(images).tolist()


def loaded() -> dict[str, Any]:
    """The answers of a network of the library and of one of the user's own."""
    own = HOUSE / "compare" / "runs" / "unix,scorer=margin-seed1"
    return {"logits": {"teacher": logits(HOUSE / "teacher"), "own": logits(own, f"{HOUSE / NET}")}}


def resumed(place: Path) -> dict[str, Any]:
    """The unfinished runs taken to their ends, one as `docs/run-folder.md` has it, two by the same command again."""
    run(place, "distill", "--config", "killed/run.yaml", "--out", "killed", "--resume")
    for name in ("stopped", "stale"):
        run(place, *words_of(commands()[name]), "--resume")
    return {name: result(place / name) for name in RUNS} | {"answers": digests(place / "answers")}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def compared(place: Path) -> dict[str, Any]:
    """The same comparison again: one run has to be finished, from its last checkpoint, the others are."""
    unfinished = place / "compare" / "runs" / "kd-seed0"
    for name in ("summary.json", "model.safetensors", "config.json"):
        (unfinished / name).unlink()
    printed = run(place, *words_of(commands()["compare"]))
    finished = sorted(path.parent for path in (place / "compare").glob("runs/*/summary.json"))
    return {
        "finished": re.findall(r"\d+ of \d+", printed),
        "runs": {folder.name: result(folder) for folder in finished},
    }


def reported(place: Path, *folders: str) -> dict[str, Any]:
    """The numbers of a report's rows, in the terminal and on the page, each by the row's method."""
    printed = run(place, "report", *folders, "--html", "report.html")
    page = Rows()
    page.feed((place / "report.html").read_text(encoding="utf-8"))
    rows = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    return {
        "teacher": [NUMBER.findall(line) for line in printed.splitlines() if line.startswith("Teacher:")],
        "terminal": numbers(rows),
        "page": numbers(page.rows),
    }


NUMBER = re.compile(r"[-+−]?\d[\d,]*\.?\d*[kMG]?")


def numbers(rows: list[list[str]]) -> dict[str, list[list[str]]]:
    """The numbers of each row that begins with a method, or with an epoch."""
    found: dict[str, list[list[str]]] = {}
    for name, *cells in rows:
        if re.fullmatch(r"kd|unix\S*|kd@\S+|\d+", name) and NUMBER.search(" ".join(cells)):
            found.setdefault(name, []).append(NUMBER.findall(" ".join(cells)))
    return found


class Rows(HTMLParser):
    """The cells of all rows of all tables of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def demo(place: Path, size: str) -> dict[str, Any]:
    """Accuracies and counts of the demo's methods in fixed precision; `short`: two epochs, one seed."""
    if not (place / "demo").exists():
        run(place, *words_of(commands()["demo"]["teacher"]))
    run(place, *words_of(commands()["demo"][size]))
    summaries = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted((place / "demo" / size).glob("runs/*/summary.json"))
    }
    return {
        name: {"accuracy": each["accuracy"], "images": each["cost"]["images"]}
        for name, each in summaries.items()
    }


def evaluated(place: Path) -> dict[str, float]:
    """What `evaluate` says of the teacher, as shares."""
    accuracy, calibration_error = NUMBER.findall(run(place, "evaluate", "teacher").partition("accuracy")[2])
    return {"accuracy": float(accuracy) / 100, "calibration_error": float(calibration_error) / 100}


# How it is compared


def differences(found: Any, known: Any, exact: bool, where: str = "", measured: bool = False) -> list[str]:
    """Where a value is not what it was then; what is new in it is passed over.

    Args:
        found: now
        known: then
        exact: to the last digit
        where: the value's place, for the message
        measured: it comes from floating-point sums, and so may the counts below it
    """
    if isinstance(known, dict):
        if not isinstance(found, dict):
            return [f"{where}: {found!r}, was a mapping"]
        missing = [f"{where}.{key}: gone" for key in known if key not in found]
        return missing + [
            line
            for key in known
            if key in found
            for line in differences(
                found[key], known[key], exact, f"{where}.{key}", measured or key in MEASURED
            )
        ]
    if isinstance(known, list) and isinstance(found, list) and len(known) == len(found):
        pairs = enumerate(zip(found, known, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, exact, f"{where}[{i}]", measured)]
    if found == known or (not exact and near(found, known, where, measured)):
        return []
    return [f"{where}: {found!r}, was {known!r}"]


def near(found: Any, known: Any, where: str, measured: bool) -> bool:
    """Whether a value differs by no more than sums in another order make it."""
    leaf = where.rpartition(".")[2]
    if leaf in SLACK and isinstance(found, float):
        return abs(found - known) <= (SLACK[leaf] + 0.5) / TEST_IMAGES
    if not measured or type(found) is not type(known):
        return False
    # An image more or less that is kept changes a histogram, and with it who is kept next.
    if ".selection" in where or leaf == "sha256":
        return True
    return isinstance(found, float) and found == pytest.approx(known, rel=RELATIVE, abs=ABSOLUTE)


def check(found: Any, *path: str) -> None:
    """Compare with what was recorded under this path; to the last digit on the same kind of machine."""
    then = expected()
    known = then
    for name in path:
        known = known[name]
    wrong = differences(found, known, exact=machine() == then["machine"])
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what lies there; the commands' relative paths start from it."""
    return copied(tmp_path_factory.mktemp("house") / "place")


def copied(to: Path) -> Path:
    """A copy of the fixture."""
    return Path(shutil.copytree(HOUSE, to, ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture(scope="module")
def outcome(place: Path) -> dict[str, Any]:
    """What became of the unfinished runs."""
    return resumed(place)


@pytest.mark.parametrize("name", RUNS)
def test_an_unfinished_run_goes_on_to_the_same_end(name: str, outcome: dict[str, Any]) -> None:
    check(outcome[name], "resumed", name)


def test_a_killed_run_pays_again_for_what_its_checkpoint_does_not_know_of(outcome: dict[str, Any]) -> None:
    """The store knows 640 of 800 pictures, the checkpoint has paid for 400; all of epoch 3 are known by then."""
    images = outcome["killed"]["summary"]["cost"]["images"]
    asked = [images[f"teacher_{name}"] for name in ("forwarded", "filled", "cached")]
    assert asked == [800, 800, 400]
    then = expected()
    if machine() == then["machine"]:
        assert outcome["answers"] == then["resumed"]["answers"]


def test_stored_answers_are_served_and_none_is_asked_for_again(tmp_path: Path) -> None:
    place = copied(tmp_path / "place")
    before = digests(place / "answers")
    run(place, *words_of(commands()["served"]))
    found = result(place / "served")
    images = found["summary"]["cost"]["images"]
    assert [images[f"teacher_{name}"] for name in ("forwarded", "filled", "cached")] == [0, 0, 400]
    assert digests(place / "answers") == before
    check(found, "served")


def test_saved_students_load_and_answer_as_they_did() -> None:
    check(loaded(), "loaded")


def test_a_saved_teacher_is_evaluated_to_the_same_accuracy(place: Path) -> None:
    check(evaluated(place), "evaluated")


def test_a_comparison_goes_on_to_the_same_end(place: Path) -> None:
    check(compared(place), "compared")


def test_a_report_has_the_same_numbers(tmp_path: Path) -> None:
    """All rows of before are on the page, whatever tables have been added since."""
    found, known = reported(copied(tmp_path / "place"), "compare", "teacher"), expected()["reported"]
    assert found["teacher"] == known["teacher"]
    assert found["terminal"] == known["terminal"]
    gone = [
        (name, row) for name, rows in known["page"].items() for row in rows if row not in found["page"][name]
    ]
    assert gone == []


@pytest.mark.slow
@pytest.mark.parametrize("size", ["short", "whole"])
def test_the_demo_in_fixed_precision_has_the_same_accuracies(size: str, tmp_path: Path) -> None:
    check(demo(tmp_path, size), "demo", size)


def test_what_has_changed_is_noticed() -> None:
    """The comparison itself: on the same machine every digit counts, on another one all that is counted does."""
    known = expected()["resumed"]["killed"]
    some = sorted(known["weights"])[0]
    changes: dict[
        tuple[str | int, ...], tuple[Any, bool]
    ] = {  # a value, and whether another machine may have it
        ("summary", "accuracy", "last"): (known["summary"]["accuracy"]["last"] - 1 / TEST_IMAGES, True),
        ("summary", "accuracy", "best"): (known["summary"]["accuracy"]["best"] - 4 / TEST_IMAGES, False),
        ("summary", "cost", "images", "trained"): (1199, False),
        ("summary", "cost", "relative_to_kd", "backward_1x"): (0.9, False),
        ("metrics", 1, "loss"): (known["metrics"][1]["loss"] * (1 + 1e-6), True),
        ("metrics", 2, "loss"): (known["metrics"][2]["loss"] * 1.2, False),
        ("metrics", 2, "lr"): (0.05, False),
        ("weights", some, "sha256"): ("", True),
        ("weights", some, "norm"): (known["weights"][some]["norm"] * 1.2, False),
        ("weights", some, "shape"): ([1], False),
    }
    assert differences(known, known, exact=True) == []
    for (*path, last), (value, allowed) in changes.items():
        found = json.loads(json.dumps(known))
        inner = found
        for name in path:
            inner = inner[name]
        inner[last] = value
        assert differences(found, known, exact=True), path
        assert bool(differences(found, known, exact=False)) is not allowed, path
        del inner[last]
        assert differences(found, known, exact=False), path
