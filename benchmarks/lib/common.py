"""What every benchmark shares: machine facts, the result file, the last line."""

from __future__ import annotations

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    from unixkd.training.results import processor

    try:
        ours = version("unixkd")
    except PackageNotFoundError:
        ours = "not installed"  # run from its source, by PYTHONPATH
    return {
        "unixkd": ours,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
    }


def mean_sd(values: list[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation and n."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values)}


def keep_summary(run: Path, kept: Path) -> None:
    """A finished run's summary, and what it was measured on, into a file of its own."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    summary = json.loads((run / "summary.json").read_text())
    kept.write_text(json.dumps({**summary, "benchmark_environment": environment()}, indent=2) + "\n")


def finish(name: str, figures: dict[str, Any], *, target: str, passed: bool, quick: bool) -> int:
    """Write the dated result file of a full run, print the figures as the last line, return the exit code."""
    result = {
        "benchmark": name,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "quick": quick,
        "environment": environment(),
        **figures,
        "target": target,
        "passed": passed,
    }
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}-{result['date']}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0 if passed else 1
