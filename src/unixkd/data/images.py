"""One image file to pixels: safe decoding, and the evaluation preprocessing that everything shares."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unixkd.data.views import to_pixels
from unixkd.errors import UserError
from unixkd.method.resizing import SMALL, shrinks_by_boxes

Pixels = NDArray[np.uint8]
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
GREY_MODES = frozenset({"1", "L", "I;16"})


def read_header(source: Path | bytes, where: str) -> Image.Image:
    """Open an image without decoding it; UserError that names `where` if unreadable or above Pillow's pixel limit."""
    with _explained(where):
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            image.close()
            raise Image.DecompressionBombError
        return image


def read_image(source: Path | bytes, where: str) -> Image.Image:
    """Decode an image completely and turn it the way its EXIF orientation says; errors as `read_header`."""
    with read_header(source, where) as image, _explained(where):
        image.load()
        return ImageOps.exif_transpose(image)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn Pillow's errors into a `UserError`."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise UserError(f"{where}: more than {limit} pixels, refused; scale it down or remove it") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{where}: cannot be read as an image ({reason}); replace or remove it") from error


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert to grey (1 channel) or RGB (3 channels); 16-bit grey keeps its high byte."""
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_array(image: Image.Image) -> Pixels:
    """A grey or RGB image as uint8 `[H, W, C]`."""
    array = np.array(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def resize_side(size: int) -> int:
    """The length the shorter side gets before the centre crop: small images are cropped without a margin.

    >>> resize_side(32), resize_side(224)
    (32, 256)
    """
    return size if size <= SMALL else round(size * 256 / 224)


def box_mean(pixels: Pixels, size: int) -> Pixels:
    """Shrink square images `[N, S, S, C]` by the integer factor S / size: means of boxes, halves rounded up.

    >>> box_mean(np.array([[[[0], [1]], [[1], [0]]]], dtype=np.uint8), 1).item()
    1
    """
    n, side, _, channels = pixels.shape
    factor = side // size
    boxes = pixels.reshape(n, size, factor, size, factor, channels)
    total = boxes.sum(axis=(2, 4), dtype=np.uint32)
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def fit(image: Image.Image, size: int) -> Pixels:
    """The evaluation preprocessing: shorter side to `resize_side(size)`, then the centre crop.

    An image of exactly the wanted size stays as it is; a small square one whose side is a multiple of
    the size is shrunk by exact box means; everything else is resized by antialiased bilinear filtering.

    Args:
        image: grey or RGB image of any size
        size: side of the result in pixels

    Returns:
        Pixels `[size, size, C]`, uint8.
    """
    width, height = image.size
    if width == height == size:
        return to_array(image)
    if width == height and shrinks_by_boxes(width, size):
        return box_mean(to_array(image)[None], size)[0]
    scale = resize_side(size) / min(width, height)
    width, height = max(round(width * scale), size), max(round(height * scale), size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return to_array(resized.crop((left, top, left + size, top + size)))


def fit_all(pixels: Pixels, size: int) -> Pixels:
    """`fit` for decoded images `[N, H, W, C]` that all have one shape."""
    _, height, width, channels = pixels.shape
    if height == width == size:
        return pixels
    if height == width and shrinks_by_boxes(height, size):
        return box_mean(pixels, size)
    planes = pixels[..., 0] if channels == 1 else pixels
    return np.stack([fit(Image.fromarray(plane), size) for plane in planes])


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, by suffix, sorted; names that start with a dot are left out."""
    images = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(p for p in images if not any(name.startswith(".") for name in p.relative_to(folder).parts))


def list_images(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths and the images below the folders. Raises UserError where there are none."""
    files: list[Path] = []
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110 - the method raises for a name that no system takes
            raise UserError(f"{path}: no such file or folder")
        images = find_images(path) if path.is_dir() else [path]
        if not images:
            raise UserError(f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
        files += images
    if not files:
        raise UserError("no images were given")
    return files


def load_images(
    paths: Sequence[Path], size: int, channels: int
) -> tuple[Float[Tensor, "n c h w"], list[Path]]:
    """Images from files and folders, preprocessed as in evaluation.

    Args:
        paths: image files, and folders that are searched recursively
        size: side in pixels
        channels: 1 (grey) or 3 (RGB)

    Returns:
        Pixels in [0, 1] `[N, C, size, size]`, channels_last, and the file of each.

    Raises:
        UserError: a path is missing, a folder holds no image, or an image is unreadable.
    """
    files = list_images(paths)
    arrays = [fit(to_channels(read_image(file, str(file)), channels), size) for file in files]
    return to_pixels(torch.from_numpy(np.stack(arrays))), files
