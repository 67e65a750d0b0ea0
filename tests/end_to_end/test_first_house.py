"""Run folders and a store of answers that commit 37e24f0 left behind: they load, go on and report as they did then.

`oracles/first_house/README.md` says what lies there and how it was made. Everything here goes through the command line
as `python -m unixkd` would and through public names, so that it holds whatever the modules are called.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file

import unixkd

HOUSE = next(
    place for parent in Path(__file__).parents if (place := parent / "oracles" / "first_house").is_dir()
)
RUNS = ("killed", "stopped", "stale")
"""What was not finished: SIGKILL between two checkpoints, SIGTERM in the middle of an epoch, twice."""
STALE_STEPS = 65
"""Steps of the whole run, and so batches that its BatchNorm has seen."""
NET = "net.py:Net"
CLASSES, TEST_IMAGES = 10, 359

SHARES = ("accuracy", "agreement", "last", "best", "teacher")
"""Shares of the test images: another processor adds floating-point sums up in another order, and may be off by some."""
MEASURED = ("loss", "loss_parts", "calibration_error", "logits", "selection", "weights")
"""What else comes from such sums. All other numbers count something, and are the same on every machine."""
IMAGES, RELATIVE, ABSOLUTE = 2, 0.01, 0.01
"""How far those may be off. With other kernels (ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA set to AVX2 and to the
least there is) it was 1 image at most, 0.00005 of a loss, 0.0013 of a tensor's norm."""
DEMO_IMAGES = {"short": 30, "whole": 10}
"""The demo trains its teacher too, for 270 steps from random weights: with other kernels it was 21 and 5 images."""


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


def run(steps: dict[str, tuple[Path, list[str]]]) -> dict[str, tuple[int | str, str]]:
    """Run commands, each from its folder; exit code and output by the step's name."""
    return {name: command(place, words) for name, (place, words) in steps.items()}


def command(place: Path, words: list[str]) -> tuple[int | str, str]:
    """What `python -m unixkd` does with these words, in this process: starting one is most of the time."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(out),
    ):
        patch.chdir(place)
        patch.setattr(sys, "argv", ["unixkd", *words])
        try:
            runpy.run_module("unixkd", run_name="__main__", alter_sys=True)
            code: int | str = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            code = traceback.format_exc()
    return code, out.getvalue()


def in_a_wide_terminal(place: Path, words: list[str]) -> tuple[int, str]:
    """The same in a process of its own, which knows its width from the start; a report needs no torch, and is quick."""
    done = subprocess.run(
        [sys.executable, "-m", "unixkd", *words],
        cwd=place,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


class Played:
    """All commands once more, in copies of what lies there: their relative paths start from a copy's folder."""

    def __init__(self, folder: Path) -> None:
        self.resumed, self.served, self.reported = (
            Path(shutil.copytree(HOUSE, folder / name)) for name in ("resumed", "served", "reported")
        )
        for name in ("summary.json", "model.safetensors", "config.json"):  # one run has to be finished
            (self.resumed / "compare" / "runs" / "kd-seed0" / name).unlink()
        known = commands()
        self.done = run(
            {
                # One as docs/run-folder.md has it, the others by the same command again.
                "killed": (self.resumed, words_of("distill --config killed/run.yaml --out killed --resume")),
                "stopped": (self.resumed, [*words_of(known["stopped"]), "--resume"]),
                "stale": (self.resumed, [*words_of(known["stale"]), "--resume"]),
                "compared": (self.resumed, words_of(known["compare"])),
                "evaluated": (self.resumed, words_of("evaluate teacher")),
                "served": (self.served, words_of(known["served"])),
            }
        )
        words = words_of("report compare teacher --html report.html")
        self.done["reported"] = in_a_wide_terminal(self.reported, words)

    def output(self, name: str) -> str:
        """What a command printed; it must have gone well."""
        code, text = self.done[name]
        assert code == 0, f"{code}\n{text}"
        return text


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


def unfinished(played: Played, name: str) -> dict[str, Any]:
    """An unfinished run that was taken to its end."""
    played.output(name)
    return result(played.resumed / name)


def asked(run: dict[str, Any]) -> list[int]:
    """Images that went through the teacher, that were stored, that were answered from the store."""
    images = run["summary"]["cost"]["images"]
    return [images[f"teacher_{name}"] for name in ("forwarded", "filled", "cached")]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def compared(played: Played) -> dict[str, Any]:
    """The same comparison again: one run is finished from its last checkpoint, the others are passed over."""
    printed = played.output("compared")
    folders = sorted(path.parent for path in (played.resumed / "compare").glob("runs/*/summary.json"))
    return {
        "finished": re.findall(r"\d+ of \d+", printed),
        "runs": {folder.name: result(folder) for folder in folders},
    }


def reported(played: Played) -> dict[str, Any]:
    """The numbers of a report's rows, in the terminal and on the page, by what each row begins with."""
    lines = played.output("reported").splitlines()
    page = Rows()
    page.feed((played.reported / "report.html").read_text(encoding="utf-8"))
    return {
        "teacher": [NUMBER.findall(line) for line in lines if line.startswith("Teacher:")],
        "terminal": numbers([re.split(r"\s{2,}", line.strip()) for line in lines]),
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
    trained = place / "demo" / "teacher"
    names = (size,) if trained.exists() else ("teacher", size)
    jaxtyping.config.update("jaxtyping_disable", True)  # shapes are looked at elsewhere; these runs are long
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.init, "zeros_", zeros_but_for_the_classifier(torch.nn.init.zeros_))
            done = run({name: (place, words_of(commands()["demo"][name])) for name in names})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert all(code == 0 for code, _ in done.values()), done
    folders = [trained, *sorted((place / "demo" / size / "runs").iterdir())]
    summaries = {folder.name: json.loads((folder / "summary.json").read_text()) for folder in folders}
    return {
        name: {"accuracy": each["accuracy"], "images": each["cost"]["images"]}
        for name, each in summaries.items()
    }


def zeros_but_for_the_classifier(
    zeros: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[..., torch.Tensor]:
    """First weights as they were then: a wide ResNet's classifier begins with a bias of 0 since, as the reference's.

    No other tensor of the demo's networks has one value for each class.
    """
    return lambda tensor: tensor if tensor.shape == (CLASSES,) else zeros(tensor)


def evaluated(played: Played) -> dict[str, float]:
    """What `evaluate` says of the teacher, as shares."""
    first = played.output("evaluated").splitlines()[0]  # tables follow
    accuracy, error = NUMBER.findall(first.partition("accuracy")[2])
    return {"accuracy": float(accuracy) / 100, "calibration_error": float(error) / 100}


# How it is compared


def differences(
    found: Any, known: Any, images: float | None, where: str = "", measured: bool = False
) -> list[str]:
    """Where a value is not what it was then; what is new in it is passed over.

    Args:
        found: now
        known: then
        images: by how many test images a share may be off on another machine; None: every digit has to be the same
        where: the value's place, for the message
        measured: it comes from floating-point sums
    """
    if isinstance(known, dict) and isinstance(found, dict):
        lines = [f"{where}.{key}: gone" for key in known if key not in found]
        for key in (key for key in known if key in found):
            below = measured or key in MEASURED
            lines += differences(found[key], known[key], images, f"{where}.{key}", below)
        return lines
    if isinstance(known, list) and isinstance(found, list) and len(known) == len(found):
        pairs = enumerate(zip(found, known, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, images, f"{where}[{i}]", measured)]
    if found == known or (images is not None and near(found, known, images, where, measured)):
        return []
    return [f"{where}: {found!r}, was {known!r}"]


def near(found: Any, known: Any, images: float, where: str, measured: bool) -> bool:
    """Whether a value is off by no more than another machine makes it."""
    leaf = where.rpartition(".")[2]
    if leaf in SHARES and isinstance(found, float) and isinstance(known, float):
        return abs(found - known) <= (images + 0.5) / TEST_IMAGES
    if not measured or type(found) is not type(known):
        return False
    # One image more or less that is kept changes a histogram, and with it who is kept next.
    if ".selection" in where or leaf == "sha256":
        return True
    return isinstance(found, float) and found == pytest.approx(known, rel=RELATIVE, abs=ABSOLUTE)


def check(found: Any, *path: str, images: float = IMAGES) -> None:
    """Compare with what was recorded under this path; to the last digit on the same kind of machine."""
    then = expected()
    known = then
    for name in path:
        known = known[name]
    wrong = differences(found, known, None if machine() == then["machine"] else images)
    assert not wrong, "\n".join(wrong[:20])


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("first_house"))


@pytest.mark.parametrize("name", RUNS)
def test_an_unfinished_run_goes_on_to_the_same_end(name: str, played: Played) -> None:
    found = unfinished(played, name)
    if name == "stale":  # whose weights are averaged; BatchNorm's counts were too then, and are copied now
        for tensor, then in expected()["unfinished"][name]["weights"].items():
            if tensor.endswith("num_batches_tracked"):
                assert found["weights"][tensor]["mean"] == STALE_STEPS
                found["weights"][tensor] = then
    check(found, "unfinished", name)


def test_a_killed_run_pays_again_for_what_its_checkpoint_does_not_know_of(played: Played) -> None:
    """The store knew 640 of 800 pictures, the checkpoint had paid for 400; all of epoch 3 are known by then."""
    assert asked(unfinished(played, "killed")) == [800, 800, 400]
    assert len((HOUSE / "killed/checkpoints/asked-since-epoch-00001.bin").read_bytes()) == 8 * 240


def test_stored_answers_are_served_and_none_is_asked_for_again(played: Played) -> None:
    played.output("served")
    found = result(played.served / "served")
    assert asked(found) == [0, 0, 400]
    assert digests(played.served / "answers") == digests(HOUSE / "answers")
    check(found, "served")


def test_saved_students_load_and_answer_as_they_did() -> None:
    check(loaded(), "loaded")


def test_a_saved_teacher_is_evaluated_to_the_same_accuracy(played: Played) -> None:
    check(evaluated(played), "evaluated")


def test_a_comparison_goes_on_to_the_same_end(played: Played) -> None:
    check(compared(played), "compared")


def test_a_report_has_the_same_numbers(played: Played) -> None:
    """All rows of then are on the page, whatever tables have been added since; no machine changes them."""
    found, known = reported(played), expected()["reported"]
    assert found["teacher"] == known["teacher"]
    assert found["terminal"] == known["terminal"]
    gone = [
        (name, row) for name, rows in known["page"].items() for row in rows if row not in found["page"][name]
    ]
    assert gone == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo is run; its teacher is trained once."""
    return tmp_path_factory.mktemp("demo")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["short", "whole"])
def test_the_demo_in_fixed_precision_has_the_same_accuracies(size: str, place: Path) -> None:
    check(demo(place, size), "demo", size, images=DEMO_IMAGES[size])


def test_what_has_changed_is_noticed() -> None:
    """The comparison itself: on the same machine every digit counts, on another one all that is counted does."""
    known = expected()["unfinished"]["killed"]
    some = sorted(known["weights"])[0]
    changes: dict[
        tuple[str | int, ...], tuple[Any, bool]
    ] = {  # a value, and whether another machine may have it
        ("summary", "accuracy", "last"): (known["summary"]["accuracy"]["last"] - 1 / TEST_IMAGES, True),
        ("summary", "accuracy", "best"): (known["summary"]["accuracy"]["best"] - 4 / TEST_IMAGES, False),
        ("summary", "cost", "images", "trained"): (1199, False),
        ("summary", "cost", "relative_to_kd", "backward_1x"): (1.01, False),
        ("metrics", 1, "loss"): (known["metrics"][1]["loss"] * (1 + 1e-6), True),
        ("metrics", 2, "loss"): (known["metrics"][2]["loss"] * 1.2, False),
        ("metrics", 2, "lr"): (0.05, False),
        ("weights", some, "sha256"): ("", True),
        ("weights", some, "norm"): (known["weights"][some]["norm"] * 1.2, False),
        ("weights", some, "shape"): ([1], False),
    }
    assert differences(known, known, None) == []
    for (*path, last), (value, allowed) in changes.items():
        found = json.loads(json.dumps(known))
        inner = found
        for name in path:
            inner = inner[name]
        inner[last] = value
        assert differences(found, known, None), path
        assert bool(differences(found, known, IMAGES)) is not allowed, path
        del inner[last]
        assert differences(found, known, IMAGES), path
