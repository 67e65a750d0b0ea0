"""How to train where the options do not say: by the weights a network begins with, and by the number of images.

The digits and CIFAR keep the defaults of `TrainConfig`, which are the published ones, unless weights are fine-tuned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from unixkd.cli.screen import say
from unixkd.cli.sizes import KNOWN_DATA
from unixkd.config import DataConfig, ModelConfig, TrainConfig, flatten, read_yaml
from unixkd.data.load import open_source
from unixkd.data.sampling import PER_PROCESS, hold_out
from unixkd.errors import UserError
from unixkd.models.loading import begins_trained, own_num_classes
from unixkd.names import plural
from unixkd.planning.catalogue import parse_target
from unixkd.training.distributed.launch import processes

FEW, SOME = 2_000, 20_000
"""Images below which batches are small: from nothing, and from pretrained weights."""
SHOWN, LEAST, MOST = 60_000, 30, 160
"""From nothing so many images are shown in all, within these numbers of epochs."""
OPTIMISER = ("train.optimizer", "train.lr", "train.weight_decay", "train.warmup_epochs", "train.clip_norm")
"""What belongs together: where the optimiser or its rate is given, none of it is chosen."""
FINE_TUNING: dict[str, Any] = {
    "train.optimizer": "adamw",
    "train.weight_decay": 0.05,
    "train.clip_norm": 1.0,
    "train.fit_head": True,
    "data.crop_area": 0.35,
}
"""An optimiser that leaves pretrained weights where they are good, crops that leave the object in the picture."""
FINE_TUNED_LESS = 1_000
"""Images below which the fitted classifier does most of it: fewer epochs, a fifth of the rate, and BatchNorm's
statistics stay, which their few batches would spoil."""
WARM_UP = 5.0
"""Epochs of it from nothing, but at most a sixth of all."""


def schedule(images: int, trained: bool, epochs: int | None = None, processes: int = 1) -> dict[str, Any]:
    """The settings for so many training images, from pretrained weights or from nothing, by dotted name.

    Args:
        images: of the training set
        trained: whether the network begins with pretrained weights
        epochs: where they are given
        processes: among which a batch is shared out

    >>> schedule(245, trained=True)["train.epochs"], schedule(245, trained=False)["train.epochs"]
    (4, 160)
    """
    size = batch_of(images, 32 if images < (SOME if trained else FEW) else 64, processes)
    if trained:
        few = images < FINE_TUNED_LESS
        rate, usual = (2e-5, 4) if few else (1e-4, 10)
        settings = {
            "train.epochs": epochs or usual,
            "train.batch_size": size,
            "train.lr": rate,
            **FINE_TUNING,
        }
        return settings | {"train.freeze_batchnorm": few}
    epochs = epochs or min(max(math.ceil(SHOWN / images), LEAST), MOST)
    warm_up = min(WARM_UP, round(epochs / 6, 2))
    return {"train.epochs": epochs, "train.batch_size": size, "train.warmup_epochs": warm_up}


def batch_of(images: int, most: int, processes: int = 1) -> int:
    """Images of a batch: so many, but at most half of all, each process 2 or more, and none alone in the last batch.

    BatchNorm may not be able to train on a single image. So few images that no such batch is half of them are one.

    >>> batch_of(100, most=32), batch_of(65, most=32), batch_of(42, most=32, processes=2), batch_of(3, most=32)
    (32, 31, 20, 3)
    """
    largest = min(max(most, PER_PROCESS * processes), images // 2) // processes * processes
    sizes = range(largest, PER_PROCESS * processes - 1, -processes)
    whole = max(images // processes, 1) * processes
    return next((size for size in sizes if processes > 1 or images % size != 1), whole)


def keeps_defaults(options: Namespace, data: DataConfig, begins: bool) -> bool:
    """Whether nothing is chosen: a recipe says all, a stream has no number of images, known data have their defaults.

    `begins`: whether the network begins with pretrained weights
    """
    of_known = data.name in KNOWN_DATA and not begins
    return options.recipe is not None or data.name.startswith("stream:") or of_known


def suited(
    options: Namespace, network: ModelConfig, earlier: Path | None = None
) -> tuple[DataConfig, TrainConfig]:
    """Data and training as the options say, and where they do not as suits the network; what was chosen is said.

    Args:
        options: of `train`, `distill` or `compare`
        network: which is trained
        earlier: run.yaml of the run that goes on, which goes on with what it began with
    """
    data, train, given = options.data, options.train, options.given
    begins = begins_trained(network)
    if keeps_defaults(options, data, begins):
        return data, train
    defaults = flatten({"data": vars(DataConfig()), "train": vars(TrainConfig())})
    if earlier is not None and earlier.exists():
        settings, images = _began(earlier, schedule(1, begins), options), None
    else:
        images, labelled, classes = _training_images(data)
        epochs = train.epochs if "train.epochs" in given else None
        settings = schedule(images, begins, epochs, processes())
        given = given | set(OPTIMISER if given & {"train.optimizer", "train.lr"} else ())
        if begins and not (labelled and _has_new_head(network, classes)):
            del settings["train.fit_head"]
    chosen = {key: value for key, value in settings.items() if key not in given and value != defaults[key]}
    if chosen and images is not None:
        how = "pretrained weights" if begins else "nothing"
        words = " ".join(f"--{key} {str(value).lower()}" for key, value in chosen.items())
        say(f"chosen for {plural(images, 'training image')}, from {how}, where you do not say: {words}")
    groups = {"data": data, "train": train}
    for name, group in groups.items():
        changes = {
            key.partition(".")[2]: value for key, value in chosen.items() if key.startswith(f"{name}.")
        }
        groups[name] = replace(group, **changes)
    return groups["data"], groups["train"]


def _began(earlier: Path, keys: Iterable[str], options: Namespace) -> dict[str, Any]:
    """These settings of a run that goes on; of one with a target for its cost, the epochs are plain KD's."""
    began = flatten(read_yaml(earlier))
    settings = {key: began[key] for key in keys if key in began}
    if parse_target(options.get("budget"), options.get("match_kd", False)) is not None:
        settings["train.epochs"] = began.get("reference_epochs") or began["train.epochs"]
    return settings


def _training_images(data: DataConfig) -> tuple[int, bool, int | None]:
    """How many images are trained on, unless some cannot be read; whether they have labels; how many classes."""
    if data.name in KNOWN_DATA:
        known = KNOWN_DATA[data.name]
        number = known.images - round(known.images * data.holdout)
        return min(number, data.limit or number), data.labels, known.classes
    source = open_source(data)
    records, number = source.train, len(source.train)
    if data.holdout > 0 and number:
        number = len(hold_out(records.labels, number, data.holdout, data.split_seed)[0])
    number = max(1, min(number, data.limit or number))
    return number, records.labels is not None and data.labels, source.num_classes


def _has_new_head(network: ModelConfig, classes: int | None) -> bool:
    """Whether the weights are for another number of classes; what is wrong with them is found where they are loaded."""
    with suppress(UserError):
        return classes is not None and own_num_classes(network, 3) != classes
    return False
