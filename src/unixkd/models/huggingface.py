"""Image classifiers of Hugging Face transformers: `transformers:` and a folder of `save_pretrained` or an ID.

Only networks of the library itself are built: code that a folder or its configuration brings along is never run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from unixkd.errors import UserError
from unixkd.models.card import Expectations
from unixkd.models.huggingface_config import (
    PREFIX,
    Source,
    checked,
    image_size,
    make_config,
    naming,
    quiet,
    read,
    transformers,
)

_USUAL_SIZE, _SMALL_SIZE = 224, 32
"""Sides in pixels with which networks are tried out: the usual one, and the data of the CIFAR family."""


def pretrained(name: str) -> tuple[nn.Module, Expectations]:
    """The network with its own weights, read or downloaded by the library, and what they expect.

    Raises UserError where weights or configuration cannot be had, or some are missing.
    """
    source = read(name)
    with naming(name), quiet():
        net, loading_info = transformers().AutoModelForImageClassification.from_pretrained(
            name.removeprefix(PREFIX),
            config=make_config(source.content, len(source.labels), source.channels),
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(loading_info["missing_keys"]):
        raise UserError(f"'{name}' has no weights of '{missing[0]}': it is no trained image classifier")
    net.name_or_path = ""  # or the key of stored answers would depend on the folder
    return net, expectations(name, source)


def expectations(name: str, source: Source | None = None) -> Expectations:
    """What the weights under a name expect of their images; `source` is its configuration, read if left out.

    Raises UserError where they cannot be had, or images are prepared in a way that is not imitated here.
    """
    source = source or read(name)
    with naming(name), quiet():
        settings = read_processor(name.removeprefix(PREFIX))
        mean, std = normalisation(settings, source.channels)
        size = side(settings)
    has_names = any(label != f"LABEL_{number}" for number, label in enumerate(source.labels))
    labels = source.labels if has_names else None
    return Expectations(len(source.labels), source.channels, mean, std, size, labels)


def is_of_transformers(net: nn.Module) -> bool:
    """Whether a network is one of the library's own classes."""
    return type(net).__module__.startswith("transformers.")


def content_of(net: nn.Module) -> dict[str, Any] | None:
    """The configuration of a network, as a run folder keeps it; None where it is not one of transformers."""
    if not is_of_transformers(net):
        return None
    content: dict[str, Any] = json.loads(json.dumps(checked(net.config.to_dict())))  # type: ignore[union-attr,operator]
    return content


def from_content(
    content: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
    source: str,
    max_parameters: float = math.inf,
) -> nn.Module:
    """Build a network of a configuration, with random weights; nothing is downloaded, nobody's code is run.

    Args:
        content: the configuration, which need not be trusted
        num_classes: width of the logits
        in_channels: channels of the images
        source: where it comes from, for messages
        max_parameters: a network of more is refused before it takes memory

    Raises UserError where it is no image classifier's of transformers, or one of other channels, or too large.
    """
    with naming(source), quiet():
        config = make_config(checked(content), num_classes, in_channels)
        skeleton = _skeleton(config)
        parameters = sum(parameter.numel() for parameter in skeleton.parameters())
        if parameters > max_parameters:
            raise UserError(
                f"it describes a network of {parameters:,} parameters, more than its weights can hold"
            )
        if not _takes(skeleton, in_channels, image_size(config) or _USUAL_SIZE):
            raise UserError(f"{config.model_type} does not take {in_channels}-channel images as configured")
        return _build(config)


def fixed_size(net: nn.Module) -> int | None:
    """Side in pixels of the images that a network was made for, where it does not take others; else None."""
    if not is_of_transformers(net) or (size := image_size(net.config)) is None:
        return None
    with quiet():
        skeleton = _skeleton(net.config)
    channels = int(getattr(getattr(net.config, "vision_config", net.config), "num_channels", 3))
    return None if all(_takes(skeleton, channels, other) for other in (2 * size, _SMALL_SIZE)) else size


def _build(config: Any) -> nn.Module:
    build: Callable[..., nn.Module] = transformers().AutoModelForImageClassification.from_config
    return build(config, dtype=torch.float32, trust_remote_code=False)


def _skeleton(config: Any) -> nn.Module:
    """The network without memory for its weights, to be tried out."""
    with torch.device("meta"):
        return _build(config).eval()


def _takes(skeleton: nn.Module, channels: int, size: int) -> bool:
    try:
        with torch.no_grad():
            skeleton(torch.empty(1, channels, size, size, device="meta"))
    except Exception:  # each network complains in its own way
        return False
    return True


def read_processor(path: str) -> dict[str, Any]:
    """Settings of the image processor under a path or ID; none where it has no preprocessor_config.json."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(path)[0]
    except OSError as error:
        if "Can't load image processor" not in str(error):  # a network that fails, say
            raise
        return {}
    return settings


def normalisation(
    settings: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of pixels in [0, 1] that do what a processor does to 0 … 255; None: not known.

    Raises UserError where it does what is not imitated here.

    >>> normalisation({"image_mean": [0.5], "image_std": [0.25]}, 1)
    ((0.5,), (0.25,))
    >>> normalisation({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 1)  # -1 … 1
    ((0.5,), (0.5,))
    """
    if settings.get("do_flip_channel_order"):
        raise UserError("its preprocessor_config.json swaps red and blue, which is not done here")
    rescales, normalises = settings.get("do_rescale", True), bool(settings.get("do_normalize", True))
    scale = 255 * (settings.get("rescale_factor") or 1 / 255) if rescales else 255.0
    offset = 1.0 if rescales and settings.get("rescale_offset") else 0.0
    mean, std = (_per_channel(settings.get(key), channels) for key in ("image_mean", "image_std"))
    divisions = normalises + bool(settings.get("include_top"))  # EfficientNet's divides by std once more
    if divisions and (mean is None or std is None):
        return None, None
    shift = mean if normalises and mean else (0.0,) * channels
    divisor = std or (1.0,) * channels
    return (
        tuple((value + offset) / scale for value in shift),
        tuple(value**divisions / scale for value in divisor),
    )


def _per_channel(values: Any, channels: int) -> tuple[float, ...] | None:
    if isinstance(values, list):
        return tuple(float(value) for value in values)
    return None if values is None else (float(values),) * channels


def side(settings: Mapping[str, Any]) -> int | None:
    """Side in pixels of a processor's images; None: as they come. Raises UserError where they are not square.

    >>> side({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}})
    224
    """
    size = settings.get("do_center_crop") and settings.get("crop_size")
    size = size or (settings.get("do_resize", True) and settings.get("size"))
    if not size:
        return None
    if isinstance(size, int):
        return size
    edges = [size[key] for key in ("height", "width") if key in size] or [size.get("shortest_edge")]
    if len(set(edges)) > 1 or not isinstance(edges[0], int):
        raise UserError(f"its preprocessor_config.json makes images of {size}, which are not square")
    return edges[0]
