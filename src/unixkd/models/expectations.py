"""What weights published by a library expect of their images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expectations:
    """What published weights expect of their images.

    Args:
        num_classes: classes of their classifier
        channels: of the images
        mean: per-channel mean of the pixels, in [0, 1]; None: not known, nor is std
        std: per-channel standard deviation
        size: side of the images in pixels; None: not known, or whatever comes
        class_names: of the classifier's outputs, where they are known
    """

    num_classes: int
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: int | None
    class_names: tuple[str, ...] | None = None
