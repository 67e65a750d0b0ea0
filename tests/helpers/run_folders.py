"""Run folders written by hand, for the report to read."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any


def epoch_line(number: int, accuracy: float | None = None, **more: Any) -> dict[str, Any]:
    cost = {"backward_1x": number / 10, "backward_2x": number / 20}
    return {"epoch": number, "accuracy": accuracy, "agreement": None, "cost": cost, "selection": None} | more


def write_run(
    folder: Path,
    method: str = "unix",
    seed: int = 0,
    last: float | None = 0.9,
    cost: float | None = 0.8,
    lines: list[dict[str, Any]] | None = None,
    **changed: Any,
) -> Path:
    """A finished run folder; `changed` replaces top-level keys of its summary."""
    folder.mkdir(parents=True)
    relative = None if cost is None else {"backward_1x": cost + 0.05, "backward_2x": cost}
    images = {
        "scored": 1000, "teacher_forwarded": 700, "teacher_cached": 50, "trained": 750, "evaluated": 9,
    }  # fmt: skip
    summary = {
        "schema": 1, "method": method, "seed": seed, "epochs": 10, "parameters": 78042,
        "accuracy": {"last": last, "best": None if last is None else last + 0.01, "teacher": 0.99},
        "agreement": None, "calibration_error": 0.02,
        "cost": {
            "images": images,
            "flops": {"scoring": 1, "teacher": 2, "student_forward": 3, "evaluation": 4},
            "reference": {"epochs": 10, "images": 100}, "relative_to_kd": relative,
        },
        "time": {"setup_seconds": 1.0, "train_seconds": 20.0, "evaluate_seconds": 2.0},
        "environment": {"torch": "2.x", "device": "cpu", "threads": 1, "precision": "fp32"},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary | changed))
    if lines is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


HOSTILE = '</script><script>alert("x")</script>&<img src=x onerror=alert(1)>'


def grey_png() -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\7")) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def selection_file(label: str | None = "cat") -> dict[str, Any]:
    picture = {"index": 7, "label": label, "times": 3, "png": grey_png()}
    histogram = {"times_kept": [0, 2, 3], "images": [1, 1, 2]}
    return {
        "histogram": histogram,
        "epochs": 4,
        "most_kept": [picture],
        "least_kept": [picture | {"times": 0}],
    }


def epoch_lines() -> list[dict[str, Any]]:
    kept = {
        "kept": 0.75, "distinct": 0.7, "score_kept": 1.0, "score_dropped": 0.1,
        "hard_kept": 0.4, "hard_dropped": 0.1,
        "histogram": {
            "score": HOSTILE, "low": 0.0, "high": 2.3, "kept": [1, 5, 9], "dropped": [4, 1, 0],
            "kept_hard": [0, 1, 5], "dropped_hard": [1, 0, 0],
        },
    }  # fmt: skip
    return [epoch_line(number, 0.5 + number / 10, selection=kept) for number in (1, 2, 3)]
