"""A model on disk: `model.safetensors` beside `config.json`, which is the model's card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unixkd.errors import CHECKSUMS, UserError, check_unchanged, read_json
from unixkd.models import huggingface, huggingface_config, user_code
from unixkd.models.card import ModelCard, PixelModel
from unixkd.models.registry import check_name, create_model
from unixkd.models.weights import load_weights
from unixkd.names import is_code, phase
from unixkd.run_files import aside, seal, usual_mode, write

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "config.json"
SCHEMA = 1


def save_model(
    model: PixelModel,
    folder: str | Path,
    weights: Mapping[str, Tensor] | None = None,
    preparation: Mapping[str, Any] | None = None,
) -> None:
    """Write the network's weights and the model's card, then their checksums; each file appears whole or not at all.

    Args:
        model: the model
        folder: run folder, made where it is missing
        weights: what is saved (default: those of `model.net`)
        preparation: how a photograph is prepared, stated beside the card; readers of the card pass over it
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Clones in the default layout: the format takes neither channels_last nor shared memory.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in (model.net.state_dict() if weights is None else weights).items()
    }
    (folder / CHECKSUMS).unlink(missing_ok=True)
    with aside(folder / WEIGHTS_FILE) as path, usual_mode(path):
        save_file(state, path)
    card = {"schema": SCHEMA, **card_values(model.card)}
    if preparation is not None:
        card["preparation"] = dict(preparation)
    write(folder / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    seal(folder, (WEIGHTS_FILE, CARD_FILE))


def card_values(card: ModelCard) -> dict[str, Any]:
    """A card for JSON; only a network of transformers has a line for its configuration."""
    return {key: value for key, value in asdict(card).items() if key != "transformers" or value is not None}


@phase("loading the network")
def load_student(folder: str | Path, code: str | None = None) -> PixelModel:
    """Load the student of a finished run, in eval mode; it takes pixels in [0, 1] `[N, C, H, W]`.

    Nothing is downloaded, and no code is run but `code`.

    Args:
        folder: run folder
        code: `FILE.py:NAME`, the class of a student of your own, which is run: a folder cannot name code to run

    Raises:
        UsageError: there is no such file or class
        UserError: missing, damaged or contradictory files; a student of your own without `code`
    """
    card = read_card(folder)
    net = make_network(folder, card, code)
    load_weights(net, Path(folder) / WEIGHTS_FILE)
    return PixelModel(net, card).eval()


load_model = load_student
"""A trained teacher lies in its run folder as a student does."""


def make_network(
    folder: str | Path, card: ModelCard, code: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """The network of a run folder with random weights; code that its card names is never run.

    Args:
        folder: run folder
        card: its card
        code: `FILE.py:NAME` of a network of the user's own; UserError where it is missing or not needed
        num_classes: other than the card's
    """
    num_classes = card.num_classes if num_classes is None else num_classes
    if is_code(card.name):
        if code is None:
            raise UserError(
                f"'{folder}' is a network of your own, {card.name}, and a folder cannot name code to run: give "
                f"--code {card.name} (where it is a teacher --teacher.code, in Python code=)"
            )
        return user_code.create(code, num_classes, card.in_channels)
    if code is not None:
        raise UserError(f"'{folder}' is a {card.name}, no network of your own: leave out {code}")
    if card.transformers is None:
        return create_model(card.name, num_classes, card.in_channels)
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        raise UserError(f"no weights file at '{weights}'")
    most = weights.stat().st_size  # a parameter takes at least a byte
    return huggingface.from_content(card.transformers, num_classes, card.in_channels, str(folder), most)


def is_run_folder(path: str | Path) -> bool:
    """Whether a folder holds a saved model."""
    return all((Path(path) / name).is_file() for name in (WEIGHTS_FILE, CARD_FILE))


def read_card(folder: str | Path) -> ModelCard:
    """The card of a run folder. Raises UserError that names the file and what is wrong with it."""
    path = Path(folder) / CARD_FILE
    if not path.exists():
        raise UserError(f"'{folder}' is no run folder: it has no {CARD_FILE}")
    content = read_json(path)
    if content.get("schema") != SCHEMA:
        raise UserError(f"'{path}' is no model card of schema {SCHEMA}")
    try:
        card = msgspec.convert(content, ModelCard)
        _check_network(card)
    except (msgspec.ValidationError, UserError) as error:
        raise UserError(f"'{path}': {error}") from error
    check_unchanged(path)
    return card


def _check_network(card: ModelCard) -> None:
    """Raise where no library makes such a network; whether code that it names is there is not looked at."""
    if card.name.startswith(huggingface_config.PREFIX) != (card.transformers is not None):
        raise UserError(
            f"a network of transformers needs 'transformers', others have none; the name is '{card.name}'"
        )
    if card.transformers is not None:
        huggingface_config.checked(card.transformers)
    elif not is_code(card.name):
        check_name(card.name)


# The folder of an export, which also holds the network in other formats.

SCRIPT, SCRIPT_MARK = "predict.py", "Written by `unixkd export`"  # which stands at its beginning
EXPORTED = (
    *("README.md", "config.json", "model.safetensors", "model.pt2", "model.onnx", "model.onnx.data"),
    *("model.int8.onnx", "model.int8.onnx.data", SCRIPT, CHECKSUMS),
)
"""What `unixkd export` may write into a folder, which is a run's own `export` unless another one is named."""


def holds_export(folder: Path) -> bool:
    """Whether `unixkd export` wrote what lies in a folder under the names that it uses, by its card or checksums."""
    sums, card = folder / CHECKSUMS, folder / "README.md"
    if card.is_file():
        with card.open("rb") as file:
            if b"library_name: unixkd" in file.read(1 << 16):
                return True
    with suppress(UserError):
        known = read_json(sums) if sums.is_file() else {}
        return "model.safetensors" in known and known.keys() <= {*EXPORTED}
    return False


def exported_files(folder: Path) -> list[Path]:
    """What lies in an export's folder under the names of `EXPORTED`, but for a predict.py that no export wrote."""
    script = folder / SCRIPT
    ours = script.is_file() and SCRIPT_MARK.encode() in script.read_bytes()[:200]
    there = [folder / name for name in EXPORTED if os.path.lexists(folder / name)]
    return [path for path in there if ours or path.name != SCRIPT]
