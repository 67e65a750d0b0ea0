"""What an image processor of transformers does to pixels, as mean, standard deviation and size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unixkd.errors import UserError

Preprocessing = tuple[tuple[float, ...] | None, tuple[float, ...] | None, int | None]


def read_preprocessing(path: str, channels: int) -> Preprocessing:
    """Mean, standard deviation and size under a path or ID; all None where it has no preprocessor_config.json.

    The processor itself is not made: only its settings are read.

    Raises:
        UserError: it does what is not imitated here
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        content, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError as error:
        if "Can't load image processor" not in str(error):  # a network that fails, say
            raise
        return None, None, None
    mean, std = normalisation(content, channels)
    return mean, std, side(content)


def normalisation(
    content: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of pixels in [0, 1] that do what the processor does to 0 … 255.

    >>> normalisation({"image_mean": [0.5], "image_std": [0.25]}, 1)
    ((0.5,), (0.25,))
    >>> normalisation({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, 1)  # -1 … 1
    ((0.5,), (0.5,))
    """
    if content.get("do_flip_channel_order"):
        raise UserError("its preprocessor_config.json swaps red and blue, which is not done here")
    rescales, normalises = content.get("do_rescale", True), content.get("do_normalize", True)
    scale = 255 * (content.get("rescale_factor") or 1 / 255) if rescales else 255.0
    offset = 1.0 if rescales and content.get("rescale_offset") else 0.0
    mean, std = (_per_channel(content.get(key), channels) for key in ("image_mean", "image_std"))
    divides_again = bool(content.get("include_top"))  # EfficientNet
    if (normalises or divides_again) and (mean is None or std is None):
        return None, None
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    shift, first, second = (
        mean if normalises else zeros,
        std if normalises else ones,
        std if divides_again else ones,
    )
    assert shift is not None
    assert first is not None
    assert second is not None
    return (
        tuple((value + offset) / scale for value in shift),
        tuple(a * b / scale for a, b in zip(first, second, strict=True)),
    )


def _per_channel(values: Any, channels: int) -> tuple[float, ...] | None:
    if isinstance(values, list):
        return tuple(float(value) for value in values)
    return None if values is None else (float(values),) * channels


def side(content: Mapping[str, Any]) -> int | None:
    """Side in pixels of the images that the processor gives, which have to be square; None: as they come.

    >>> side({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}})
    224
    """
    cropped = content.get("do_center_crop") and content.get("crop_size")
    size = cropped or (content.get("do_resize", True) and content.get("size"))
    if not size:
        return None
    sides = {size} if isinstance(size, int) else {size.get(key) for key in ("height", "width")} - {None}
    if not sides and isinstance(size, Mapping):
        sides = {size.get("shortest_edge")}
    if len(sides) != 1 or not isinstance(only := sides.pop(), int):
        raise UserError(f"its preprocessor_config.json makes images of {size}, which are not square")
    return only
