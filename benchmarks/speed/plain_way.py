"""A training step of UNIX by unixkd against the same step written plainly from the paper, on a CPU.

Both sides train the same networks from the same weights on the same images in batches of 64 with the paper's
settings. Plain: `plain_unix.py`. Ours: the trainer that `unixkd distill` runs, at its defaults, on a folder of
PNG files. Both make their own augmented batches and update the weights in every step; nobody evaluates. The
trainer's way with denormal numbers (they count as 0) holds for the whole process, so the plain side has it too.

Targets, plain seconds over ours: 2.0 for vgg13 -> vgg8 and 1.8 for wrn_40_2 -> wrn_16_2 on a CPU that computes
bfloat16 natively; on any other, where float32 decides, ours must not be slower: 1.0.

    python benchmarks/speed/plain_way.py             # about 4 minutes on 2 slow cores
    python benchmarks/speed/plain_way.py --quick     # resnet20 -> resnet8, a few steps; the target is not checked
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from unixkd.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.models import create_model
from unixkd.training.display import silent
from unixkd.training.precision import has_native_bf16
from unixkd.training.run import epoch_steps, start
from unixkd.training.run_folder import RunFolder
from unixkd.training.state import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

import plain_unix
from common import finish
from inputs import make_images, write_images
from timing import interleave, ratio

PAIRS = {("vgg13", "vgg8"): 2.0, ("wrn_40_2", "wrn_16_2"): 1.8}
"""Teacher and student, and the target with native bfloat16."""
QUICK = {("resnet20", "resnet8"): 1.0}
WITHOUT_BF16 = 1.0
SETTINGS = plain_unix.Settings()
IMAGES, CLASSES, SIZE = 1024, 100, 32
WORKERS = 2
"""Loader processes of the plain side; they run beside the training process, on cores of their own."""


def make_trainer(teacher: str, student: str, folder: Path, threads: int) -> Run:
    """Our side: UNIX as `unixkd distill` trains it on a CPU, everything but the number of threads by default."""
    config = RunConfig(
        ModelConfig(student),
        ModelConfig(teacher, weights=str(folder / "teacher.safetensors")),
        data=DataConfig(f"folder:{folder / 'data'}"),
        train=TrainConfig(threads=threads, device="cpu"),
    )
    return start(config, RunFolder(folder / "run"), "new", silent)


def our_steps(trainer: Run) -> Iterator[None]:
    """Train epoch after epoch, pausing after each step; `fit` would also save after every 16 steps here."""
    while True:
        yield from epoch_steps(trainer)
        trainer.epoch, trainer.done = trainer.epoch + 1, 0


def set_up(teacher: str, student: str, folder: Path, threads: int) -> tuple[Iterator[float], Run]:
    """The plain side's steps and our trainer: equal weights, images and settings."""
    images, labels = make_images(IMAGES, SIZE, CLASSES)
    write_images(images, labels, folder / "data")
    torch.manual_seed(0)
    plain_teacher, plain_student = create_model(teacher), create_model(student)
    save_file(plain_teacher.state_dict(), folder / "teacher.safetensors")
    trainer = make_trainer(teacher, student, folder, threads)
    plain_student.load_state_dict(trainer.resolved.student.net.state_dict())
    loader = plain_unix.make_loader(images, labels, SETTINGS.batch_size, WORKERS)
    return plain_unix.train_steps(plain_student, plain_teacher, loader, SETTINGS), trainer


def measure(plain: Iterator[float], trainer: Run, steps: int, rounds: int) -> dict[str, Any]:
    """Both sides in turns, `steps` steps at a time: seconds of these and their ratio."""
    ours = our_steps(trainer)
    samples = interleave(
        {
            "plain": lambda: list(itertools.islice(plain, steps)),
            "unixkd": lambda: list(itertools.islice(ours, steps)),
        },
        rounds,
    )
    return {
        **{name: each.figures(steps * SETTINGS.batch_size) for name, each in samples.items()},
        "plain_over_unixkd": ratio(samples["plain"], samples["unixkd"]),
        "unixkd_setup_seconds": trainer.seconds["setup"],
        "unixkd_precision": {
            "student": trainer.config.train.precision,
            "teacher": trainer.config.train.teacher_precision,
        },
    }


def main() -> int:
    """Measure every pair, check the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of either side's training process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native = has_native_bf16(torch.device("cpu"))
    steps, rounds = (2, 3) if options.quick else (2, 8)
    pairs: dict[str, dict[str, Any]] = {}
    for (teacher, student), with_bf16 in (QUICK if options.quick else PAIRS).items():
        with tempfile.TemporaryDirectory(prefix="unixkd-plain-way-") as folder:
            plain, trainer = set_up(teacher, student, Path(folder), options.threads)
            figures = measure(plain, trainer, steps, rounds)
        target = with_bf16 if native else WITHOUT_BF16
        pairs[f"{teacher} -> {student}"] = {**figures, "target": target}
    passed = all(pair["plain_over_unixkd"]["median"] >= pair["target"] for pair in pairs.values())
    return finish(
        "plain_way",
        {
            "native_bf16": native,
            "threads": options.threads,
            "batch_size": SETTINGS.batch_size,
            "plain_loader_workers": WORKERS,
            "steps_per_round": steps,
            "pairs": pairs,
        },
        target="plain_over_unixkd median >= each pair's target (not checked with --quick)",
        passed=options.quick or passed,
        quick=options.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
