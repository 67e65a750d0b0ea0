"""The walk-through of docs/own-model.md, as it stands: from photos and a class of one's own to an exported student."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "own-model.md"
CLASSES = ("checks", "rings", "stripes")
EACH = 40


def pattern(name: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of random size and colours of one of three kinds."""
    height, width = random.integers(70, 140, 2)
    y, x = np.mgrid[:height, :width]
    period = random.integers(12, 20)
    waves = {
        "checks": np.sign(np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period)),
        "rings": np.sin(2 * np.pi * np.hypot(x - width / 2, y - height / 2) / period),
        "stripes": np.sin(2 * np.pi * (x + y) / period),
    }
    one, other = random.integers(0, 100, 3), random.integers(156, 256, 3)
    share = (waves[name][..., None] + 1) / 2
    noise = random.normal(0, 10, (height, width, 3))
    return np.clip(share * one + (1 - share) * other + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the photos and `mine.py`."""
    random = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(EACH):
            Image.fromarray(pattern(name, random)).save(tmp_path / "photos" / name / f"{number}.jpg")
    (tmp_path / "mine.py").write_text(blocks(PAGE, "python")[0])
    return tmp_path


@pytest.mark.slow
def test_photos_and_an_own_class_become_an_exported_student(place, monkeypatch):
    text = PAGE.read_text().replace("\\\n", " ")
    lines = [line for line in map(str.strip, text.splitlines()) if line.startswith("unixkd ")]
    assert len(lines) == 4  # the install is the fifth
    for line in lines:
        words = shlex.split(line)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "unixkd", *words], cwd=place, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    accuracy = json.loads((place / "runs/student/summary.json").read_text())["accuracy"]
    assert accuracy["teacher"] > 0.6
    assert accuracy["last"] > 0.5
    assert (place / "runs/report.html").exists()
    monkeypatch.chdir(place)
    names: dict[str, object] = {}
    exec(compile(blocks(PAGE, "py")[0], str(PAGE), "exec"), names)
    assert isinstance(logits := names["logits"], torch.Tensor)
    assert logits.shape == (2, len(CLASSES))
