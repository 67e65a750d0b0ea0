"""The paper's CIFAR-100 table, rerun: kd, unix and unix-random for its 12 pairs, 240 epochs, several seeds.

Resumable: run it again and it goes on. Final epoch is the result, best epoch (what the paper printed) beside it.
Target: UNIX within 1 point of its published accuracy (best epoch) for every pair that was run.

    python benchmarks/gpu/paper_table.py --root CIFAR100_FOLDER --out runs/paper [--pairs resnet56-resnet20 ...]
    python benchmarks/gpu/paper_table.py --quick     # one pair, one epoch on digits: does it run?
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from unixkd.cli.recipes import PAIRS, Pair

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish

METHODS = ("kd", "unix", "unix-random")


def unixkd(*words: str) -> None:
    """Run a command, shown first."""
    print("$ unixkd", *words, flush=True)
    subprocess.run(["unixkd", *words], check=True)


def run_pair(pair: Pair, out: Path, seeds: str, extra: list[str]) -> None:
    """The pair's teacher, once, and the comparison with it."""
    teacher = out / "teachers" / pair.teacher
    if not (teacher / "summary.json").exists():
        unixkd("train", "--recipe", pair.name, "--out", str(teacher), "--resume", *extra)
    folder = out / pair.name.replace("/", "-")
    compare = ["compare", "--recipe", pair.name, "--teacher", str(teacher), "--out", str(folder), *extra]
    unixkd(*compare, "--methods", ",".join(METHODS), "--seeds", seeds)


def accuracies(folder: Path, method: str) -> dict[str, Any]:
    """Final and best accuracy in % over seeds."""
    runs = [json.loads(p.read_text()) for p in folder.glob(f"runs/{method}-seed*/summary.json")]
    found: dict[str, Any] = {"n": len(runs), "relative_to_kd": runs[0]["cost"]["relative_to_kd"]}
    for which in ("last", "best"):
        values = [100 * run["accuracy"][which] for run in runs]
        found[which] = statistics.fmean(values)
        found[f"{which}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    return found


def main() -> int:
    """Run the pairs, collect, compare with the published figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder with CIFAR-100 (default: downloaded)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", nargs="*", help="as TEACHER-STUDENT (default: all 12)")
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    pairs = [p for p in PAIRS if not options.pairs or p.name.removeprefix("cifar100/") in options.pairs]
    extra = ["--data.root", options.root] if options.root else []
    out = options.out or Path(tempfile.mkdtemp(prefix="unixkd-paper-"))
    if options.quick:
        pairs = [p for p in PAIRS if p.teacher == "resnet56"]
        options.seeds, extra = "0", ["--data", "digits", "--data.limit", "256", "--epochs", "1"]
    for pair in pairs:
        run_pair(pair, out, options.seeds, extra)
    rows = {}
    for pair in pairs:
        folder = out / pair.name.replace("/", "-")
        published = {"kd": pair.kd, "unix": pair.unix, "computation": pair.computation}
        rows[pair.name] = {"published": published, **{m: accuracies(folder, m) for m in METHODS}}
    short = [name for name, row in rows.items() if row["unix"]["best"] < row["published"]["unix"] - 1]
    return finish(
        "paper_table",
        {"pairs": rows, "short": short},
        target="unix within 1 point of the published accuracy (not checked with --quick)",
        passed=options.quick or not short,
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
