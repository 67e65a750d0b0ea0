"""Stored teacher answers, measured: are they the teacher's, do students learn as much from them, what do they save?

Targets:
  a  every stored logit is the teacher's rounded to fp16: |stored - logit| <= 2^-11 |logit|, or 2^-25 where
     fp16 is denormal; 8 views of each of the 1,438 training digits
  b  accuracy of KD with and without the store: |mean paired difference| <= 2 standard errors + 0.2 points;
     wrn_16_2 -> resnet8 on digits, 5 seeds, which share one store
  c  a step on a filled store takes at most 1.1 times as long as one of the student alone (median over the
     rounds, both in turns, one thread); wrn_16_2 -> resnet8 on digits, vgg13 -> vgg8 on generated images of
     16 pixels. Plain KD takes its turn too, to show what the store saves.

    python benchmarks/speed/teacher_cache.py           # 4 minutes of CPU, one thread
    python benchmarks/speed/teacher_cache.py --quick   # 2 seeds, 1 epoch, a few steps; only target a is checked
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
from safetensors.torch import save_file

from unixkd.config import AnswersConfig, DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.method.network import Network
from unixkd.models import create_model
from unixkd.teacher.store import AnswerStore
from unixkd.training.answers import FILL_BATCH, fetch_answers
from unixkd.training.display import silent
from unixkd.training.run import run, start
from unixkd.training.run_folder import RunFolder
from unixkd.training.state import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd
from inputs import labelled
from plain_way import our_steps
from timing import interleave, ratio

HALF_ULP, HALF_DENORMAL, SMALLEST_NORMAL = 2.0**-11, 2.0**-25, 2.0**-14  # of fp16
DIFFERENCE, RATIO = 0.002, 1.1
DIGITS = DataConfig("digits")
GENERATED, CLASSES = 256, 100
FULL_PRECISION = TrainConfig(
    precision="fp32", teacher_precision="fp32", device="cpu", threads=1, eval_every=6
)


def kd(teacher: Path, train: TrainConfig, store: Path | None, data: DataConfig = DIGITS) -> RunConfig:
    """Plain KD into a resnet8, with a store or without."""
    answers = AnswersConfig(None if store is None else str(store))
    method = MethodConfig("kd")
    return RunConfig(
        ModelConfig("resnet8"), ModelConfig(str(teacher)), method, data=data, answers=answers, train=train
    )


def trainer_of(config: RunConfig, folder: Path) -> Run:
    """A trainer as `unixkd distill` makes it."""
    return start(config, RunFolder(folder), "overwrite", silent)


def fill(trainer: Run, epochs: int) -> tuple[Network, AnswerStore]:
    """Ask about all that so many epochs show; gives back who was asked, and the store."""
    teacher, split = trainer.engine.distiller.teacher, trainer.resolved.data.train
    assert teacher is not None
    assert teacher.store is not None
    for epoch in range(epochs):
        fetch_answers(teacher, split, epoch, torch.arange(len(split)))
    return teacher.network, teacher.store


def rounding(teacher: Path, folder: Path, views: int) -> dict[str, Any]:
    """Every stored answer against the teacher's own, asked once more; so many epochs show each view once."""
    config = kd(teacher, FULL_PRECISION, folder / "rounding", replace(DIGITS, views=views))
    trainer = trainer_of(config, folder / "rounding-run")
    network, store = fill(trainer, views)
    split = trainer.resolved.data.train
    largest, wrong, total = 0.0, 0, 0
    for epoch in range(views):
        for batch in split.train_batches(epoch, torch.arange(len(split)), FILL_BATCH):
            assert batch.index is not None
            assert batch.view is not None
            stored, known = store.read(batch.index, batch.view)
            with torch.no_grad():
                logits = network(batch.images).logits.double()
            error, size = (stored.double() - logits).abs(), logits.abs()
            allowed = (HALF_ULP * size).clamp_min(HALF_DENORMAL)
            largest = max(largest, (error / size)[size >= SMALLEST_NORMAL].max().item())
            wrong += int(((error > allowed) | ~known[:, None]).sum())
            total += logits.numel()
    return {"logits": total, "beyond_rounding": wrong, "largest_relative_difference": largest}


def learning(teacher: Path, folder: Path, seeds: int, epochs: int) -> dict[str, Any]:
    """KD with and without the store, seed by seed, and what the ledger charged the runs that shared it."""
    results: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    for seed in range(seeds):
        train = replace(FULL_PRECISION, epochs=epochs, seed=seed)
        for name, store in (("without", None), ("with", folder / "shared")):
            results[name].append(run(kd(teacher, train, store), folder / f"{name}-{seed}"))
    accuracies = {name: [r["accuracy"]["last"] for r in runs] for name, runs in results.items()}
    differences = [b - a for a, b in zip(accuracies["without"], accuracies["with"], strict=True)]
    error = statistics.stdev(differences) / seeds**0.5
    return {
        "teacher_accuracy": results["with"][0]["accuracy"]["teacher"],
        "accuracy": {name: mean_sd(values) for name, values in accuracies.items()},
        "paired_difference": {**mean_sd(differences), "standard_error": error},
        "cost": {
            "without": charged(results["without"][0]),
            "first with": charged(results["with"][0]),
            "second with": charged(results["with"][1]),
        },
    }


def charged(result: dict[str, Any]) -> dict[str, Any]:
    """What a run asked, what the store answered, what it cost."""
    images = result["cost"]["images"]
    return {
        "asked": images["teacher_forwarded"],
        "answered_from_store": images["teacher_cached"],
        "relative_to_kd": result["cost"]["relative_to_kd"],
        "train_seconds": result["time"]["train_seconds"],
    }


def timing(config: RunConfig, folder: Path, rounds: int) -> dict[str, Any]:
    """Steps of the student alone, of KD on a filled store and of KD without one, in turns."""
    data = replace(config.data, views=2)
    stored = trainer_of(
        replace(config, data=data, answers=AnswersConfig(str(folder / "answers"))), folder / "stored"
    )
    fill(stored, epochs=2)
    # with the precisions that the first has probed: two probes may decide differently
    shared = replace(config, data=data, train=stored.config.train)
    alone = trainer_of(replace(shared, method=MethodConfig("student-alone")), folder / "alone")
    asking = trainer_of(shared, folder / "asking")
    trainers = {"alone": alone, "stored": stored, "asking": asking}
    samples = interleave({name: our_steps(each).__next__ for name, each in trainers.items()}, rounds)
    assert stored.ledger.images.teacher_forwarded == 0
    train = stored.config.train
    return {
        **{name: each.figures(train.batch_size) for name, each in samples.items()},
        "precision": {"student": train.precision, "teacher": train.teacher_precision},
        "stored_over_alone": ratio(samples["stored"], samples["alone"]),
        "asking_over_stored": ratio(samples["asking"], samples["stored"]),
    }


def timed_pairs(teacher: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Both pairs' timings, at the precision that a probe chooses for each."""
    train = TrainConfig(device="cpu", threads=1)
    pairs = {"wrn_16_2 -> resnet8, digits": (kd(teacher, train, None), 20 if quick else 300)}
    save_file(create_model("vgg13", CLASSES).state_dict(), folder / "vgg13.safetensors")
    vgg13 = ModelConfig("vgg13", weights=str(folder / "vgg13.safetensors"))
    images = labelled(folder / "images", GENERATED, 16, CLASSES)
    generated = RunConfig(ModelConfig("vgg8"), vgg13, MethodConfig("kd"), data=images, train=train)
    pairs["vgg13 -> vgg8, 16 px"] = (generated, 3 if quick else 60)
    return {
        name: timing(config, folder / f"timing-{number}", rounds)
        for number, (name, (config, rounds)) in enumerate(pairs.items())
    }


def main() -> int:
    """Train a teacher on digits, measure all three, check the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    seeds, epochs = (2, 1) if quick else (5, 6)
    with tempfile.TemporaryDirectory(prefix="unixkd-answers-") as name:
        folder = Path(name)
        teacher = folder / "teacher"
        train = replace(FULL_PRECISION, epochs=epochs)
        run(RunConfig(ModelConfig("wrn_16_2"), None, MethodConfig("student-alone"), train=train), teacher)
        figures = {
            "rounding": rounding(teacher, folder, 2 if quick else 8),
            "learning": learning(teacher, folder, seeds, epochs),
            "timing": timed_pairs(teacher, folder, quick),
        }
    difference = figures["learning"]["paired_difference"]
    passed = figures["rounding"]["beyond_rounding"] == 0 and (
        quick
        or (
            abs(difference["mean"]) <= 2 * difference["standard_error"] + DIFFERENCE
            and all(pair["stored_over_alone"]["median"] <= RATIO for pair in figures["timing"].values())
        )
    )
    target = (
        "no logit beyond rounding; |difference| <= 2 standard errors + 0.2 points; stored_over_alone <= 1.1 "
        "for both pairs (the last two not checked with --quick)"
    )
    return finish("teacher_cache", {"threads": 1, **figures}, target=target, passed=passed, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
