"""A model on disk: `model.safetensors` beside `config.json`, which is the model's card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unixkd.errors import UserError
from unixkd.models import huggingface, huggingface_config, user_code
from unixkd.models.card import ModelCard, PixelModel
from unixkd.models.registry import check_name, create_model
from unixkd.models.weights import load_weights
from unixkd.names import is_code
from unixkd.run_files import aside, write

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "config.json"
SCHEMA = 1
# Larger numbers in a card are no model but an attack on memory.
_MAX_CLASSES, _MAX_CHANNELS, _MAX_SIZE = 100_000, 1024, 4096


def save_model(model: PixelModel, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the network's weights and the model's card; each file appears whole or not at all.

    Args:
        model: the model
        folder: run folder, made where it is missing
        weights: what is saved (default: those of `model.net`)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Clones in the default layout: the format takes neither channels_last nor shared memory.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in (model.net.state_dict() if weights is None else weights).items()
    }
    card = json.dumps({"schema": SCHEMA, **card_values(model.card)}, indent=2, ensure_ascii=False) + "\n"
    with aside(folder / WEIGHTS_FILE) as path:
        save_file(state, path)
    write(folder / CARD_FILE, card)


def card_values(card: ModelCard) -> dict[str, Any]:
    """A card as JSON has it; a network that is none of transformers has no line for it."""
    values = asdict(card)
    return (
        values if card.transformers is not None else {k: v for k, v in values.items() if k != "transformers"}
    )


def load_model(folder: str | Path, code: str | None = None) -> PixelModel:
    """Load what `save_model` wrote, in eval mode; nothing is downloaded, and no code is run but `code`.

    Args:
        folder: run folder
        code: `FILE.py:NAME`, the class of a network of the user's own, which is run

    Raises:
        UsageError: there is no such file or class
        UserError: missing, damaged or contradictory files; a network of the user's own without `code`
    """
    card = read_card(folder)
    net = make_network(folder, card, code)
    load_weights(net, Path(folder) / WEIGHTS_FILE)
    return PixelModel(net, card).eval()


def load_student(folder: str | Path, code: str | None = None) -> PixelModel:
    """Load the student of a finished run, in eval mode; it takes pixels in [0, 1] `[N, C, H, W]`.

    Args:
        folder: run folder
        code: `FILE.py:NAME`, the class of a student of your own, which is run: a folder cannot name code to run

    Raises:
        UsageError: there is no such file or class
        UserError: missing, damaged or contradictory files; a student of your own without `code`
    """
    return load_model(folder, code)


def make_network(
    folder: str | Path, card: ModelCard, code: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """The network of a run folder with random weights; what its card says about code is never run.

    Args:
        folder: run folder
        card: its card
        code: `FILE.py:NAME` of a network of the user's own
        num_classes: other than the card's

    Raises:
        UserError: `code` is missing, or is given for a network that needs none
    """
    classes = card.num_classes if num_classes is None else num_classes
    if is_code(card.name):
        if code is None:
            raise UserError(
                f"'{folder}' is a network of your own, {card.name}, and a folder cannot name code to run: give "
                f"--code {card.name} (where it is a teacher --teacher.code, in Python code=)"
            )
        return user_code.create(code, classes, card.in_channels)
    if code is not None:
        raise UserError(f"'{folder}' is a {card.name}, no network of your own: leave out {code}")
    if card.transformers is None:
        return create_model(card.name, classes, card.in_channels)
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        raise UserError(f"no weights file at '{weights}'")
    most = weights.stat().st_size  # a byte is the least that a parameter takes
    return huggingface.from_content(
        card.transformers, classes, card.in_channels, source=str(folder), max_parameters=most
    )


def is_run_folder(path: str | Path) -> bool:
    """Whether a folder holds a saved model."""
    return all((Path(path) / name).is_file() for name in (WEIGHTS_FILE, CARD_FILE))


def read_card(folder: str | Path) -> ModelCard:
    """Read and check the card of a run folder.

    Raises:
        UserError: missing file, or one that is not a card; names the file and what is wrong
    """
    path = Path(folder) / CARD_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"'{folder}' is no run folder: it has no {CARD_FILE}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"'{path}' is no model card of schema {SCHEMA}")
    try:
        card = _card(content)
        _check_kind(card)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error
    return card


def _check_kind(card: ModelCard) -> None:
    """Raise where nothing here makes such a network; whether there is such code is not looked at."""
    if card.name.startswith(huggingface_config.PREFIX) != (card.transformers is not None):
        raise UserError(
            f"a network of transformers needs 'transformers', others have none; the name is '{card.name}'"
        )
    if card.transformers is not None:
        huggingface_config.checked(card.transformers)
    elif not is_code(card.name):
        check_name(card.name)


def _card(content: dict[str, Any]) -> ModelCard:
    def take(key: str, check: Callable[[Any], bool], wanted: str) -> Any:
        if not check(content.get(key)):
            raise UserError(f"'{key}' must be {wanted}")
        value = content.get(key)
        return tuple(value) if isinstance(value, list) else value

    return ModelCard(
        name=take("name", lambda v: isinstance(v, str), "a string"),
        num_classes=take("num_classes", _count(_MAX_CLASSES), f"a whole number from 1 to {_MAX_CLASSES}"),
        in_channels=take("in_channels", _count(_MAX_CHANNELS), f"a whole number from 1 to {_MAX_CHANNELS}"),
        mean=take("mean", _are_numbers, "a list of numbers"),
        std=take("std", _are_numbers, "a list of numbers"),
        size=take("size", _or_null(_count(_MAX_SIZE)), f"null or a whole number from 1 to {_MAX_SIZE}"),
        class_names=take("class_names", _or_null(_are_strings), "null or a list of strings"),
        transformers=take("transformers", _or_null(lambda v: isinstance(v, dict)), "null or a configuration"),
    )


def _count(limit: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= limit


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(v) in (int, float) and abs(v) < 1e6 for v in value)


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)
