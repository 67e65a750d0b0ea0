"""How to train where the options do not say: by the weights a network begins with, and by the number of images.

The digits and CIFAR keep the defaults of `TrainConfig`, which are the published ones, unless weights are fine-tuned.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from unixkd.cli.screen import say
from unixkd.cli.sizes import KNOWN_DATA
from unixkd.config import DataConfig, ModelConfig, TrainConfig, flatten, read_yaml
from unixkd.data.load import open_source
from unixkd.errors import UserError
from unixkd.models.loading import begins_trained, own_num_classes
from unixkd.names import plural

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
FROM_NOTHING: dict[str, Any] = {"train.warmup_epochs": 5.0}


def schedule(images: int, trained: bool) -> dict[str, Any]:
    """The settings for so many training images, from pretrained weights or from nothing, by dotted name.

    >>> schedule(245, trained=True)["train.epochs"], schedule(245, trained=False)["train.epochs"]
    (4, 160)
    """
    size = min(32 if images < (SOME if trained else FEW) else 64, max(images // 2, 1))
    if trained:
        few = images < FINE_TUNED_LESS
        rate, epochs = (2e-5, 4) if few else (1e-4, 10)
        settings = {"train.epochs": epochs, "train.batch_size": size, "train.lr": rate, **FINE_TUNING}
        return settings | {"train.freeze_batchnorm": few}
    epochs = min(max(math.ceil(SHOWN / images), LEAST), MOST)
    return {"train.epochs": epochs, "train.batch_size": size, **FROM_NOTHING}


def suited(
    options: Namespace, network: ModelConfig, earlier: Path | None = None
) -> tuple[DataConfig, TrainConfig]:
    """Data and training as the options say, and where they do not as suits the network; what was chosen is said.

    Args:
        options: of `train`, `distill` or `compare`
        network: which is trained
        earlier: run.yaml of the run that goes on, which goes on with what it began with
    """
    data, train = options.data, options.train
    begins = begins_trained(network)
    if (
        options.recipe is not None
        or data.name.startswith("stream:")
        or (data.name in KNOWN_DATA and not begins)
    ):
        return data, train
    given = options.given | set(OPTIMISER if options.given & {"train.optimizer", "train.lr"} else ())
    if earlier is not None and earlier.exists():
        began = flatten(read_yaml(earlier))
        settings = {key: began[key] for key in schedule(1, begins) if key in began}
    else:
        images, labelled, classes = _training_images(data)
        settings = schedule(images, begins)
        if begins and not (labelled and _has_new_head(network, classes)):
            del settings["train.fit_head"]
    defaults = flatten({"data": vars(DataConfig()), "train": vars(TrainConfig())})
    chosen = {key: value for key, value in settings.items() if key not in given and value != defaults[key]}
    if chosen and earlier is None:
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


def _training_images(data: DataConfig) -> tuple[int, bool, int | None]:
    """About how many images are trained on, whether they have labels, and how many classes."""
    classes: int | None
    if data.name in KNOWN_DATA:
        known = KNOWN_DATA[data.name]
        number, labelled, classes = known.images, True, known.classes
    else:
        source = open_source(data)
        number, labelled, classes = len(source.train), source.train.labels is not None, source.num_classes
    number = max(1, round(number * (1 - data.holdout)))
    return min(number, data.limit or number), labelled and data.labels, classes


def _has_new_head(network: ModelConfig, classes: int | None) -> bool:
    """Whether the weights are for another number of classes; what is wrong with them is found where they are loaded."""
    with suppress(UserError):
        return classes is not None and own_num_classes(network, 3) != classes
    return False
