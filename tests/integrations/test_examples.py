"""The examples of the adapters run as they are, teach their students, and show what it cost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CHANCE = {"transformers_text": 25.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lightning_digits", "transformers_images", "transformers_text", "timm_task", "accelerate_loop"]
)
def test_example(name, tmp_path):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    final = float(re.search(r"^student ([\d.]+)%", done.stdout, re.MULTILINE)[1])
    assert final > 2.5 * CHANCE.get(name, 10.0)
    ledger = r"(images|samples) seen: .* asked of the teacher, .* trained; .* of plain KD's cost"
    assert re.search(ledger, done.stdout)
