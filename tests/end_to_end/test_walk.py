"""The walk of docs/photographs.md on a small set: five commands, and predict.py without unixkd."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from running import call, summary
from unixkd import create_model

SIZE = 64
WITHOUT_UNIXKD = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unixkd":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
sys.path[0] = ""
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def draw(kind: str, number: int) -> Image.Image:
    """A circle or a square of some colour, size and place on grey noise."""
    rng = np.random.default_rng([number, len(kind)])
    noise = rng.integers(90, 150, (72, 96, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    left, top, side = rng.integers(10, 40), rng.integers(5, 25), rng.integers(28, 40)
    shape = ImageDraw.Draw(image).ellipse if kind == "circle" else ImageDraw.Draw(image).rectangle
    shape(
        (int(left), int(top), int(left + side), int(top + side)),
        fill=tuple(map(int, rng.integers(0, 256, 3))),
    )
    return image


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 16), ("val", 8)):
        for kind in ("circle", "square"):
            (root / split / kind).mkdir(parents=True)
            for number in range(count):
                draw(kind, number + 100 * (split == "val")).save(
                    root / split / kind / f"{number}.jpg", quality=92
                )
    return root


@pytest.mark.slow
def test_five_commands_from_photographs_to_a_student_without_unixkd(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(create_model("resnet14", num_classes=5, in_channels=3).state_dict(), "weights.pth")
    data = ("--data", f"folder:{photos}", "--data.size", SIZE)
    start = ("--model", "resnet14", "--model.weights", "weights.pth")
    assert call("train", *start, *data, "--epochs", 2, "--out", "runs/teacher") == 0
    pair = ("--teacher", "runs/teacher", "--student", "resnet8", "--data", f"folder:{photos}")
    assert call("distill", *pair, "--budget", "60%", "--epochs", 10, "--out", "runs/student") == 0
    assert summary(Path("runs/student"))["cost"]["relative_to_kd"]["backward_2x"] <= 0.6
    capsys.readouterr()

    assert call("evaluate", "runs/student", "--json", "--html", "evaluation.html", "--rounds", 1) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 16
    assert found["student"]["quality"]["accuracy"] == pytest.approx(
        summary(Path("runs/student"))["accuracy"]["last"]
    )
    assert found["teacher"]["name"] == "resnet14"
    assert "<html" in Path("evaluation.html").read_text()

    images = sorted(str(path) for path in (photos / "val").rglob("*.jpg"))
    assert call("predict", "runs/student", *images, "--csv") == 0
    said = {row["image"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert list(said) == images

    assert call("export", "runs/student", "--formats", "onnx", "--out", "export") == 0
    command = [sys.executable, "-c", WITHOUT_UNIXKD, "export/predict.py", *images]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(images)
    for line, image in zip(lines, images, strict=True):
        assert line.startswith(image)
        assert said[image]["class_1"] in line
