"""Real trainers on generated images: what benchmarks of the step take their steps with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from unixkd.config import AnswersConfig, DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.models import create_model
from unixkd.training.display import silent
from unixkd.training.distributed.world import ALONE, World
from unixkd.training.run import start
from unixkd.training.run_folder import RunFolder
from unixkd.training.state import Run


def labelled(folder: Path, count: int, size: int, classes: int) -> DataConfig:
    """Random images in a folder per class, flipped and cropped in training.

    Args:
        folder: a new folder for them
        count: how many, at least as many as classes
        size: side in pixels
        classes: number of classes
    """
    write_images(*make_images(count, size, classes), folder)
    return DataConfig(f"folder:{folder}")


def unlabelled(folder: Path, count: int, size: int) -> DataConfig:
    """Random images without labels, so that the teacher alone says how many classes there are."""
    write_images(*make_images(count, size, 1), folder)
    (only_class,) = folder.iterdir()
    return DataConfig(f"folder:{only_class}")


def make_trainer(
    data: DataConfig,
    teacher: str,
    student: str,
    method: str,
    folder: Path,
    *,
    classes: int = 100,
    batch_size: int = 64,
    world: World = ALONE,
    answers: str | None = None,
    **train: Any,
) -> Run:
    """A trainer as `unixkd distill` makes it on a CPU with one thread; the teacher's weights are random.

    Args:
        data: training images
        teacher: name of the teacher, from the CIFAR family
        student: name of the student
        method: name of the method
        folder: for weights and run folders, shared by all trainers of a benchmark
        classes: width of both classifiers
        batch_size: images per step, N, of all processes together
        world: the processes that train together; each calls this
        answers: folder of stored answers; None: the teacher answers each time
        **train: further fields of the training's configuration
    """
    weights = folder / f"{teacher}-{classes}.safetensors"
    if world.leads and not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(create_model(teacher, classes).state_dict(), weights)
    world.gather(None)  # nobody reads them before
    config = RunConfig(
        ModelConfig(student),
        ModelConfig(teacher, weights=str(weights)),
        MethodConfig(method),
        data=data,
        answers=AnswersConfig(answers),
        train=TrainConfig(batch_size=batch_size, device="cpu", threads=1, **train),
    )
    run = RunFolder(folder / f"{teacher}-{student}-{method}-{classes}-{batch_size}")
    return start(config, run, "overwrite", silent, world)


def make_images(count: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels `[N, size, size, 3]`, uint8, and labels `[N]` that hold every class."""
    pixels = np.random.default_rng(0).integers(256, size=(count, size, size, 3), dtype=np.uint8)
    return pixels, np.arange(count) % classes


def write_images(images: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    """One PNG an image, in a folder per class."""
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / f"{label:03}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
