"""`train`, `evaluate`: commands about one model."""

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

from unixkd.cli.screen import say, showing
from unixkd.cli.sizes import at_teachers_size
from unixkd.config import DataConfig, MethodConfig, ModelConfig, RunConfig, read_yaml
from unixkd.data.load import load_data, may_download, open_source
from unixkd.data.source import Encoded
from unixkd.errors import UsageError, UserError, read_json
from unixkd.method.network import Network, evaluating
from unixkd.method.resizing import Size
from unixkd.models.card import PixelModel
from unixkd.models.folder import CARD_FILE, read_card
from unixkd.names import local_path, percent
from unixkd.planning.timing import timed_rows
from unixkd.run_files import check_unchanged
from unixkd.training.precision import one_pass
from unixkd.training.predictions import predict
from unixkd.training.resolved import PROBED, build_network, default_device
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
    common = {key: options[key] for key in ("data", "train", "label")}
    config = RunConfig(options.model, None, MethodConfig("student-alone"), **common)
    run_and_show(config, options, f"train-{slug(options.model.name)}")


def evaluate(options: Namespace) -> None:
    """`unixkd evaluate`: accuracy and calibration on the evaluation split."""
    folder, device = Path(options.run), default_device()
    card = read_card(folder)
    config = evaluated_data(options.data, folder)
    named = options.data.name
    other = bool(named) and not is_trained_on(folder, named)
    try:
        data = load_data(config, card.class_names, all_to_evaluate=other)
    except UserError as error:
        if named:
            raise
        raise UserError(f"{folder / 'run.yaml'}: {error}", *error.details) from error
    for line in data.notes:
        _log.warning("%s", line)
    if data.test is None:
        raise UserError(f"{data.name} has no test images; give --data.holdout to hold training images out")
    # An absolute path, as a folder may have a model's name; classes are checked against the data's.
    network = ModelConfig(str(folder.absolute()), code=options.code)
    model = build_network(network, data, "model").to(device)
    choose_threads_for(model, data.image_shape[1:], len(data.test))
    answers = predict(model, data.test.eval_batches(options.batch_size), device)
    say(
        f"{folder}: {card.name} on {len(answers):,} images of {data.name}: "
        f"accuracy {percent(answers.accuracy)}, calibration error {percent(answers.calibration_error)}"
    )


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
    out = Path(options.out or f"runs/{default}-seed{config.train.seed}")
    if config.teacher is not None:
        earlier = out / "run.yaml" if options.resume else None
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
    say(line, str(out))


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
