"""The page of speed shows what the committed result of `benchmarks/speed/frozen_teacher.py` says."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_rows_of_frozen_teachers_are_those_of_the_newest_result():
    newest = max((ROOT / "benchmarks" / "results").glob("frozen_teacher-*.json"))
    teachers = json.loads(newest.read_text())["teachers"]
    page = (ROOT / "docs" / "speed.md").read_text()
    ratios = {name: f"{figures['compiled_over_eager']['cpu']:.2f}" for name, figures in teachers.items()}
    three = " / ".join(ratios[name] for name in ("resnet32x4", "wrn_40_2", "vgg13"))
    shares = sorted(teachers[name]["share_of_peak"]["eager"] for name in ("resnet32x4", "wrn_40_2", "vgg13"))
    assert f"| {three}, n = 12 |" in page
    assert f"| {ratios['resnet56']}, n = 12 |" in page
    assert f"{shares[0]:.0%} to {shares[-1]:.0%} of the FLOPs".replace("%", " %") in page
    for figures in teachers.values():
        assert figures["distance_from_fp32"]["compiled"] <= 1.5 * figures["distance_from_fp32"]["eager"]
