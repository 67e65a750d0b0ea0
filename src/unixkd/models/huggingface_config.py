"""Configurations of Hugging Face transformers: read, and freed of all that could run or fetch something."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from unixkd.errors import UserError, first_line, missing_extra, not_waiting

PREFIX = "transformers:"
# What names code, kernels to download, another precision or another output. Classes and channels are given anew.
_DROPPED = {
    *("auto_map", "custom_pipelines", "attn_implementation", "experts_implementation", "quantization_config"),
    *("dtype", "torch_dtype", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states"),
    *("id2label", "label2id", "num_labels", "num_channels", "transformers_version", "problem_type"),
}
# They take no plain pixels; timm_wrapper would have timm fetch what it names.
_NOT_TAKEN = {"imagegpt", "perceiver", "shieldgemma2", "siglip2", "timm_wrapper"}
_MAX_NUMBER, _MAX_LAYERS, _MAX_DEPTH = 1_000_000, 1000, 6


@dataclass(frozen=True)
class Source:
    """A configuration as it lies in a folder or on the Hub, checked."""

    content: dict[str, Any]
    labels: tuple[str, ...]  # names of its classes, `LABEL_0` and so on where it has none
    channels: int  # of its images


def transformers() -> ModuleType:
    """The package. Raises UserError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "transformers", "transformers models") from error
    return transformers


def read(name: str) -> Source:
    """The configuration under `transformers:PATH_OR_ID`; the library reads or downloads the file.

    Raises UserError where it cannot be had, or is not that of an image classifier.
    """
    with naming(name), quiet():
        content, _ = transformers().PreTrainedConfig.get_config_dict(name.removeprefix(PREFIX))
        labels = content.get("id2label")
        labels = {int(key): str(value) for key, value in labels.items()} if isinstance(labels, dict) else {}
        count = len(labels) or int(content.get("num_labels", 2))
        names = tuple(labels.get(number, f"LABEL_{number}") for number in range(count))
        return Source(checked(content), names, int(_images(content).get("num_channels", 3)))


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what could run or fetch something.

    Raises UserError where it is no image classifier's, or its numbers are no network's.
    """
    transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in KNOWN or kind in _NOT_TAKEN:
        hint = "; name it as timm:NAME" if kind == "timm_wrapper" else ""
        raise UserError(f"{kind!r} is no kind of image classifier that is taken from transformers{hint}")
    return _harmless(content, _MAX_DEPTH)


def make_config(content: Mapping[str, Any], num_classes: int, in_channels: int) -> Any:
    """The library's object of a checked configuration, with other numbers of classes and channels."""
    values = copy.deepcopy(dict(content))
    _images(values)["num_channels"] = in_channels
    names = {number: f"LABEL_{number}" for number in range(num_classes)}
    kind = values.pop("model_type")
    config = transformers().AutoConfig.for_model(
        kind, **values, id2label=names, label2id={name: number for number, name in names.items()}
    )
    config.architectures = config.architectures or []  # the library looks into it where it has the choice
    return config


def image_size(config: Any) -> int | None:
    """Side in pixels of the square images that a configuration was made for, where it says so."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop()
    return side if not sides and isinstance(side, int) else None


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Within, whatever the library raises becomes one line that names the source, soon where there is no network."""
    remote = source.startswith(PREFIX) and not Path(source.removeprefix(PREFIX)).is_dir()
    try:
        with not_waiting() if remote else contextlib.nullcontext():
            yield
    except UserError as error:
        raise UserError(str(error) if source in str(error) else f"'{source}': {error}") from error
    except Exception as error:
        local = f"; a network of save_pretrained on this machine is {PREFIX}FOLDER" if remote else ""
        raise UserError(f"'{source}': {first_line(error)}{local}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, the library prints no lines and no progress bars; errors are raised all the same."""
    logging = transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _images(content: Mapping[str, Any]) -> Any:
    """The settings of a configuration that are about images."""
    inner = content.get("vision_config")
    return inner if isinstance(inner, dict) else content


def _harmless(content: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if depth == 0:
        raise UserError("the configuration is nested too deeply")
    kept = {key: value for key, value in content.items() if not key.startswith("_") and key not in _DROPPED}
    for key, value in kept.items():
        limit = _MAX_LAYERS if any(word in key for word in ("layers", "depth", "blocks")) else _MAX_NUMBER
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and abs(number) > limit:
                raise UserError(f"'{key}' is {number}, which is no network's")
        if isinstance(value, Mapping):
            kept[key] = _harmless(value, depth - 1)
    return kept
