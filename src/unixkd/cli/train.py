"""`train`, and what other commands about one model need: its threads, its name, the data of its run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from unixkd.cli.schedule import suited
from unixkd.cli.screen import say, say_prose, showing
from unixkd.cli.sizes import at_teachers_size
from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, read_yaml
from unixkd.data.load import may_download, open_source
from unixkd.data.source import Encoded
from unixkd.errors import UsageError, UserError, check_unchanged, read_json
from unixkd.method.network import Network, evaluating
from unixkd.method.resizing import Size
from unixkd.models.card import PixelModel
from unixkd.models.folder import CARD_FILE
from unixkd.names import local_path, percent, phase
from unixkd.planning.timing import timed_rows
from unixkd.training.precision import one_pass
from unixkd.training.resolved import PROBED
from unixkd.training.run import run
from unixkd.training.run_folder import Mode
from unixkd.training.threads import set_threads

_log = logging.getLogger(__name__)
WORTH_A_PROBE = 40
"""Times the images of a pass of it."""
AT_ONCE = 256
"""Images that `evaluate` and `predict` compute on together, about."""
_COMPARED = 100  # files at most whose contents tell whether two folders share images


def train(options: Namespace) -> None:
    """`unixkd train`: cross-entropy on labels."""
    check_named(model=options.model)
    default = f"train-{slug(options.model.name)}"
    data, training = suited(options, options.model, earlier_run(options, default))
    alone = MethodConfig("student-alone")
    config = RunConfig(options.model, None, alone, data=data, train=training, label=options.label)
    run_and_show(config, options, default)


def choose_threads_for(model: PixelModel, size: Size, images: int) -> None:
    """Compute with the better number of threads, where there are many times the images that a probe takes."""
    rows = timed_rows(images, size, PROBED)
    if images > WORTH_A_PROBE * rows:
        device = next(model.parameters()).device
        pixels = torch.rand(rows, model.card.in_channels, *size, device=device)
        with evaluating(model):
            set_threads(partial(one_pass, Network(model), pixels, False), device, rows / min(images, AT_ONCE))


def mode(options: Namespace) -> Mode:
    """What to do with a folder that holds a run."""
    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    return "resume" if options.resume else "overwrite" if options.overwrite else "new"


def check_named(**configs: ModelConfig) -> None:
    """Raise where a network is not named."""
    for name, config in configs.items():
        if not config.name:
            raise UsageError(
                f"--{name} is missing: a model name, timm:NAME, torchvision:NAME, transformers:PATH_OR_ID, "
                "FILE.py:NAME, a run folder or a checkpoint folder"
            )


def run_and_show(config: RunConfig, options: Namespace, default: str) -> None:
    """One run, its display, and where its results are."""
    out = folder_of(options, default)
    if config.teacher is not None:
        earlier = earlier_run(options, default)
        config = replace(config, data=at_teachers_size(config.data, config.teacher, earlier))
    with showing() as display:
        summary = run(config, out, mode=mode(options), display=display, log=options.log)
    accuracy, cost = summary["accuracy"], summary["cost"]["relative_to_kd"]
    line = f"final accuracy {percent(accuracy['last'])} (best epoch {percent(accuracy['best'])})"
    if cost is not None:
        line += (
            f", training cost {percent(cost['backward_1x'])} of plain KD counting a backward as 1 forward, "
            f"{percent(cost['backward_2x'])} as 2"
        )
    elif summary["cost"]["flops"]["teacher"] is None:
        line += "; the teacher's cost is not known (quantised, or not of torch's operations)"
    say_prose(line)
    say(str(out))


def folder_of(options: Namespace, default: str) -> Path:
    """The run folder: the one that is named, or one by the default name and the seed."""
    return Path(options.out or f"runs/{default}-seed{options.train.seed}")


def earlier_run(options: Namespace, default: str) -> Path | None:
    """The run.yaml of the run that is to go on; None where one is to begin."""
    return folder_of(options, default) / "run.yaml" if options.resume else None


def slug(name: str) -> str:
    """A model name as part of a folder name."""
    return Path(name).name.replace(":", "-").replace("/", "-")


def is_trained_on(folder: Path, name: str) -> bool:
    """Whether data of this name, whichever way its path is written, are those of a run, or share images with them.

    Folders and archives share an image where its class, name, size and content are the same.
    """

    def place(name: str) -> str:
        kind, colon, path = name.partition(":")
        return f"{kind}:{local_path(path).resolve()}" if colon else kind

    with suppress(UserError, TypeError, LookupError):  # the folder may be no run's
        names = [place(str(read_yaml(folder / "run.yaml")["data"]["name"])), place(name)]
        if names[0] == names[1] or not all(name.startswith("folder:") for name in names):
            return names[0] == names[1]
        with phase("comparing the images with those of training"):
            trained, named = (_training_images(name) for name in names)
        shared = sorted(trained.keys() & named.keys())[:_COMPARED]
        return any(trained[key].read_bytes() == named[key].read_bytes() for key in shared)
    return False


def _training_images(name: str) -> dict[tuple[str, str, int], Path]:
    """Each training image of a folder or archive by the name of its folder, its own and its size."""
    records = open_source(DataConfig(name, labels=False)).train
    assert isinstance(records, Encoded)
    items = (records.items[i] for i in range(len(records)))
    files = (file for file in items if isinstance(file, Path) and file.is_file())
    return {(file.parent.name, file.name, file.stat().st_size): file for file in files}


def data_of_run(folder: Path, unread: Collection[str] = (), **changes: Any) -> DataConfig:
    """The data a run was trained on, changed by options; `unread`: names of data that need not be read.

    Raises:
        UserError: the run does not say, or they would be downloaded: a folder, which may be anybody's, contacts nobody
    """
    path = folder / "run.yaml"
    if not path.exists():
        raise UserError(f"{folder} has no run.yaml that names its data; give --data")
    try:
        data = replace(DataConfig(**read_yaml(path)["data"]), **changes)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not name its data as this version does ({error}); give --data"
        ) from None
    check_unchanged(path)
    if data.name not in unread and may_download(data):
        raise UserError(
            f"{path} names data to download, {data.name}: give --data {data.name} if you want that"
        )
    return data


def evaluated_data(config: DataConfig, folder: Path) -> DataConfig:
    """The data named, or else those the run was trained on, changed by the other options."""
    once: dict[str, Any] = {"keep": 0.0}  # each image is shown once
    if config.name:
        decided = config.decoding != "auto" or ":" not in config.name
        decoding = config.decoding if decided else decoding_of(folder)
        return replace(config, decoding=decoding, **once)  # type: ignore[arg-type]
    unset = DataConfig(name="")
    changes = {key: value for key, value in vars(config).items() if value != getattr(unset, key)}
    return data_of_run(folder, **changes | once)


def decoding_of(folder: Path) -> str:
    """How the images were decoded on which a network was trained; an export says so, another folder that is no run's
    does not, and then it is scaled.
    """
    path, card = folder / "run.yaml", folder / CARD_FILE
    if not path.exists():
        stated = (read_json(card) if card.exists() else {}).get("preparation")
        return "full" if isinstance(stated, dict) and stated.get("least_side", 0) is None else "scaled"
    check_unchanged(path)
    return str(read_yaml(path).get("data", {}).get("decoding", "full"))
