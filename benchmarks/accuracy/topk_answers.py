"""How far stored answers of the k largest logits are from full ones: the bias of `--answers.top_k`.

For the teacher's answers to test images, at temperature T = 1 and 4 and for several k, with the other classes at
    ours    the level at which they weigh together at T what they did: what a store for T gives
    at 1    the level that is right at T = 1, whatever T is: what a store for T = 1 would give
it prints
    loss      the KD loss T² · KL from the full answer, which a student is left with that matches the stored ones
    gradient  how far the gradient of the KD loss is off, relative to its length, for a student that knows nothing yet
    mixed     the loss again, both answers mixed with m = 0.2 as `mixes_answers` does: full from top-k
and, on the digits, the accuracy of students taught with all logits and with the k largest, seed by seed.

Targets: `ours` has the lower loss at T = 4 for every k; with the 2 largest of the 10 logits of the digits students are
as good: |mean paired difference| <= 2 standard errors + 0.2 points; wrn_16_2 -> resnet8, 5 seeds.

    python benchmarks/accuracy/topk_answers.py                                     # digits, two minutes
    python benchmarks/accuracy/topk_answers.py --quick                             # the same with little training
    python benchmarks/accuracy/topk_answers.py --teacher RUN_FOLDER --root CIFAR100  # answers only, of another teacher

The teacher of the kept figures on CIFAR-100 is that of
    unixkd train --model resnet8x4 --data cifar100 --data.root CIFAR100 --data.size 16 --data.limit 20000 --epochs 3 \\
        --train.batch_size 64 --lr 0.1 --train.schedule onecycle --out RUN_FOLDER
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unixkd.config import (
    AnswersConfig,
    DataConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    read_yaml,
)
from unixkd.data import load_data
from unixkd.method.losses import kl_divergence
from unixkd.teacher.format import Contents, TopLogits
from unixkd.training.resolved import build_network
from unixkd.training.run import run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd

TEMPERATURES, TOPS, MIX = (1.0, 4.0), (1, 2, 4, 8, 16, 32), 0.2
DIFFERENCE = 0.002
TAUGHT = (1, 2)
FULL_PRECISION = TrainConfig(
    precision="fp32", teacher_precision="fp32", device="cpu", threads=1, eval_every=6
)


def figures(logits: Tensor, others: Tensor, top_k: int, temperature: float) -> dict[str, dict[str, float]]:
    """Loss, gradient and mixed loss of both ways to level the rest."""
    rows = {}
    for name, right_at in (("ours", temperature), ("at 1", 1.0)):
        packing = TopLogits(logits.shape[1], "fp16", top_k, right_at)
        own, other = (packing.rounded(each).float() for each in (logits, others))
        full, kept = ((each / temperature).softmax(1) for each in (logits, own))
        gradient = full - 1 / logits.shape[1]
        mixed = kl_divergence(logits.lerp(others, MIX), own.lerp(other, MIX), temperature)
        rows[name] = {
            "loss": kl_divergence(logits, own, temperature).mean().item(),
            "gradient": ((full - kept).norm() / gradient.norm()).item(),
            "mixed": mixed.mean().item(),
        }
    return rows


def answers_of(teacher: Path, root: str | None) -> tuple[Tensor, str, str]:
    """The teacher's logits on its test images, its name and that of its data."""
    config = DataConfig(**{**read_yaml(teacher / "run.yaml")["data"], "limit": None, "evaluate_on": "test"})
    data = load_data(replace(config, root=root or config.root))
    network = build_network(ModelConfig(str(teacher)), data, "teacher").eval()
    assert data.test is not None
    with torch.no_grad():
        logits = torch.cat([network(batch.images) for batch in data.test.eval_batches(500)])
    return logits, network.card.name, data.name


def bias(logits: Tensor) -> dict[str, Any]:
    """The figures of every k and T, and the share of all logits' bytes that k take."""
    others = logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))]
    classes, rows = logits.shape[1], {}
    full = sum(Contents({}, 1, 1, classes, "fp16").sizes.values())
    print(
        f"{'k':<4}{'bytes':>7}{'T':>4}"
        + "".join(f"{n + ': loss, gradient, mixed':>34}" for n in ("ours", "at 1"))
    )
    for top_k in (k for k in TOPS if 2 * k + 1 <= classes):
        size = sum(Contents({}, 1, 1, classes, "fp16", top_k).sizes.values())
        by_temperature = {f"{t:g}": figures(logits, others, top_k, t) for t in TEMPERATURES}
        rows[str(top_k)] = {"share_of_bytes": size / full, "by_temperature": by_temperature}
        for t, row in by_temperature.items():
            cells = "".join(
                f"{v['loss']:>18.4f}{v['gradient']:>8.2%}{v['mixed']:>8.4f}" for v in row.values()
            )
            print(f"{top_k:<4}{size / full:>7.0%}{t:>4}{cells}")
    return rows


def learning(teacher: Path, folder: Path, seeds: int, epochs: int) -> dict[str, Any]:
    """Accuracy of students by the number of logits that their teacher's stored answers have, seed by seed."""
    results: dict[str, list[float]] = {}
    for top_k in (None, *TAUGHT):
        name = "all" if top_k is None else str(top_k)
        for seed in range(seeds):
            config = RunConfig(
                ModelConfig("resnet8"),
                ModelConfig(str(teacher)),
                MethodConfig("kd"),
                LossConfig(temperature=4.0),
                DataConfig("digits"),
                AnswersConfig(str(folder / f"answers-{name}"), top_k=top_k),
                replace(FULL_PRECISION, epochs=epochs, seed=seed),
            )
            result = run(config, folder / f"{name}-{seed}")
            results.setdefault(name, []).append(result["accuracy"]["last"])
    differences = {
        name: [b - a for a, b in zip(results["all"], values, strict=True)]
        for name, values in results.items()
        if name != "all"
    }
    return {
        "accuracy": {name: mean_sd(values) for name, values in results.items()},
        "paired_difference": {
            name: {**mean_sd(values), "standard_error": statistics.stdev(values) / seeds**0.5}
            for name, values in differences.items()
        },
    }


def main() -> int:
    """Train a teacher on digits or load another, ask it, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="run folder of another teacher; answers only")
    parser.add_argument("--root", help="folder of its data")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, epochs = (2, 1) if options.quick else (5, 6)
    learned: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(prefix="unixkd-top-k-") as name:
        folder, teacher = Path(name), options.teacher
        if teacher is None:
            teacher = folder / "teacher"
            train = replace(FULL_PRECISION, epochs=epochs)
            run(RunConfig(ModelConfig("wrn_16_2"), None, MethodConfig("student-alone"), train=train), teacher)
            learned = learning(teacher, folder, seeds, epochs)
        logits, model, data = answers_of(teacher, options.root)
        rows = bias(logits)
    at_4 = [row["by_temperature"]["4"] for row in rows.values()]
    passed = all(row["ours"]["loss"] <= row["at 1"]["loss"] for row in at_4)
    if learned is not None and not options.quick:
        found = learned["paired_difference"]["2"]
        passed &= abs(found["mean"]) <= 2 * found["standard_error"] + DIFFERENCE
    return finish(
        f"topk_answers-{model}",
        {"teacher": model, "data": data, "answers": len(logits), "by_top_k": rows, "learning": learned},
        target="ours has the lower loss at T = 4 for every k; students of the 2 largest of 10 logits are as good: "
        "|difference| <= 2 standard errors + 0.2 points (not checked with --quick, or for another teacher)",
        passed=passed,
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
