"""How far mixed answers are from answers to mixed images: the bias of `--method.mixes_answers`.

For pairs of test images and mixing weights m, the KD loss T² · KL (T = 4) from the teacher's answer to the mixed
image to
    logits         (1 − m) · t + m · t′, which `mixes_answers` uses
    probabilities  the same mix of both answers' softened probabilities
    own            t alone, as if nothing had been mixed
and on how many pairs the likeliest class is the same. A bias is small where it is small against `own`.

Target: mixed logits are nearer to the truth than mixed probabilities at every m.

    python benchmarks/accuracy/mixed_answers.py --teacher RUN_FOLDER --root CIFAR100   # a minute
    python benchmarks/accuracy/mixed_answers.py --quick  # a teacher of one epoch on the digits
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig, read_yaml
from unixkd.data import load_data
from unixkd.method.losses import kl_divergence
from unixkd.training.resolved import build_network
from unixkd.training.run import run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5)
TEMPERATURE = 4.0


def soft(logits: Tensor) -> Tensor:
    """Softened probabilities."""
    return (logits / TEMPERATURE).softmax(1)


GUESSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "logits": lambda own, other, m: own.lerp(other, m),
    "probabilities": lambda own, other, m: TEMPERATURE * soft(own).lerp(soft(other), m).log(),
    "own": lambda own, other, m: own,
}


@torch.no_grad()
def compare(teacher: torch.nn.Module, images: Tensor, partners: Tensor) -> dict[str, Any]:
    """Mean loss and agreement of each guess at each m."""
    parts = list(zip(images.split(500), partners.split(500), strict=True))
    own, other = (torch.cat([teacher(part[i]) for part in parts]) for i in (0, 1))
    rows = {}
    for m in WEIGHTS:
        truth = torch.cat([teacher(a.lerp(b, m)) for a, b in parts])
        rows[f"{m:g}"] = {
            name: {
                "kd_loss": kl_divergence(truth, guess(own, other, m), TEMPERATURE).mean().item(),
                "same_class": (truth.argmax(1) == guess(own, other, m).argmax(1)).double().mean().item(),
            }
            for name, guess in GUESSES.items()
        }
    return rows


def quick_teacher(folder: Path) -> Path:
    """A teacher of one epoch."""
    alone = RunConfig(
        ModelConfig("wrn_16_2"), None, MethodConfig("student-alone"), train=TrainConfig(epochs=1)
    )
    run(alone, folder / "teacher")
    return folder / "teacher"


def main() -> int:
    """Load, mix, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="run folder of the teacher")
    parser.add_argument("--root", help="folder of its data")
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.quick and options.teacher is None:
        parser.error("give --teacher, or --quick")
    folder = quick_teacher(Path(tempfile.mkdtemp())) if options.quick else options.teacher
    config = DataConfig(**{**read_yaml(folder / "run.yaml")["data"], "limit": None, "evaluate_on": "test"})
    data = load_data(replace(config, root=options.root or config.root))
    teacher = build_network(ModelConfig(str(folder)), data, "teacher").eval()
    assert data.test is not None
    images = torch.cat([batch.images for batch in data.test.eval_batches(500)])[: options.pairs]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows = compare(teacher, images, images[order])
    print(f"{'m':<5}" + "".join(f"{name + ': loss, same class':>34}" for name in GUESSES))
    for m, row in rows.items():
        print(f"{m:<5}" + "".join(f"{v['kd_loss']:>20.3f}{v['same_class']:>14.1%}" for v in row.values()))
    nearer = all(row["logits"]["kd_loss"] < row["probabilities"]["kd_loss"] for row in rows.values())
    return finish(
        f"mixed_answers-{teacher.card.name}",
        {"teacher": teacher.card.name, "data": data.name, "pairs": len(images), "by_weight": rows},
        target="mixed logits are nearer to the teacher's answer than mixed probabilities at every m",
        passed=options.quick or nearer,
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
