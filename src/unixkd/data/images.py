"""One image file to pixels: safe decoding, and the evaluation preprocessing that everything shares."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from unixkd.errors import UserError, first_line
from unixkd.method.resizing import SMALL, shrinks_by_boxes

Pixels = NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "TIFF", "PPM")
"""What is read. Pillow knows more, but starts other programs on some of them (Ghostscript on EPS)."""
_ENDINGS = "png apng jpg jpeg jpe jfif mpo webp avif jp2 j2k jpc jpf jpx gif bmp tif tiff ppm pgm pbm pnm pfm"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
MAX_BYTES = 1 << 28  # of an encoded image
GREY_MODES = frozenset({"1", "L", "I;16", "I;16B", "I", "F"})
_BITS, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT, _WHITE_SAMPLE = 258, 262, 281, 339, 341  # tags of TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_BLOCK = 1 << 20  # pixels that become 8 bits at once, in memory as float64
_ORIENTATION, _ON_ITS_SIDE = 274, (5, 6, 7, 8)  # tag of EXIF, and where width and height change places
_LEAST_DETAIL = 256  # pixels of the shorter side that are always left
LONGEST = 8
"""Times its shorter side an image is scaled as a whole; of longer ones only the middle is."""
FILTER = Image.Resampling.BILINEAR
"""Of every resizing; Pillow widens it where an image shrinks."""


def read_header(source: Path | bytes, where: str) -> Image.Image:
    """Open an image without decoding it; UserError that names `where` if unreadable, or above Pillow's pixel limit."""
    with _explained(where):
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes, the limit is {MAX_BYTES:,}")
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            image.close()
            raise Image.DecompressionBombError
        return image


def read_file(source: Path | bytes, where: str) -> bytes:
    """The bytes of an encoded image; errors as `read_header`."""
    if isinstance(source, bytes):
        return source
    with _explained(where):
        return source.read_bytes()


@dataclass(frozen=True)
class Photo:
    """A decoded image, grey or RGB, perhaps at a smaller scale, and width and height of the whole one, turned."""

    image: Image.Image
    whole: tuple[int, int]


def detail(size: int) -> int:
    """The pixels of the shorter side that an image keeps when it is decoded to be cut to squares of a side.

    Half as many again, as crops show parts of it.

    >>> detail(224), detail(64)
    (336, 256)
    """
    return max(size * 3 // 2, _LEAST_DETAIL)


def read_photo(source: Path | bytes, where: str, channels: int, least: int | None = None) -> Photo:
    """Decode an image to grey (1 channel) or RGB (3 channels); errors as `read_header`.

    Args:
        source: its file, or its bytes
        where: what it is called in messages
        channels: 1 or 3
        least: shrink it by the largest whole factor that leaves its shorter side so many pixels (`detail`); a JPEG is
            not even decoded at more than the nearest of 1/1, 1/2, 1/4 and 1/8. None: whole
    """
    image, whole = _decode(source, where, least)
    image = to_channels(image, channels)
    factor = 1 if least is None else min(image.size) // least
    return Photo(image.reduce(factor) if factor > 1 else image, whole)


def read_image(source: Path | bytes, where: str) -> Image.Image:
    """Decode an image completely, to 8 bits, and turn it as its EXIF orientation says; errors as `read_header`."""
    return _decode(source, where, None)[0]


def _decode(source: Path | bytes, where: str, least: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """An image as `read_image` gives it, a JPEG at the scale of `read_photo`, and the whole one's width and height."""
    with read_header(source, where) as image, _explained(where):
        width, height = image.size
        if least is not None:
            image.draft(None, (least, least))  # does nothing to other formats
        image.load()
        turned = ImageOps.exif_transpose(image)
        on_its_side = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
        whole = (height, width) if on_its_side else (width, height)
        if turned.mode == "LAB":
            profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(turned, *profiles, outputMode="RGB"), whole  # type: ignore[return-value]
        if turned.mode[0] in "IF":
            turned = _eight_bits(turned, getattr(image, "tag_v2", {}))
        return turned, whole


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Deep grey as 8 bits: 0 is black, and white is what the file says, else the largest of its bits, or 1 of floats.

    What is outside is refused, not clipped: it shows that white is not known. Pillow has inverted TIFFs of 8 bits
    whose white is 0, but none of more.
    """
    values = np.asarray(image)
    if image.mode == "I" and tags and tags.get(_SAMPLE_FORMAT, (1,))[0] != _SIGNED:
        values = values.view(np.uint32)
    low, high = values.min(), values.max()
    white = _white(image.mode, tags, float(high))
    if not 0 <= low <= high <= white:
        raise ValueError(f"pixels from {low:g} to {high:g}, but 0 is black and {white:g} white: scale them")
    shades = white if image.mode == "F" else white + 1  # in float64, exact for 32 bits
    blocks = np.array_split(values.ravel(), values.size // _BLOCK + 1)
    scaled = (np.minimum(block.astype(np.float64) * 256 / shades, 255).astype(np.uint8) for block in blocks)
    eight = np.concatenate(list(scaled)).reshape(values.shape)
    return Image.fromarray(255 - eight if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else eight)


def _white(mode: str, tags: Mapping[int, Any], high: float) -> float:
    """The number that is white in an image of a deep grey mode whose largest is `high`.

    MaxSampleValue is often the largest number *of this image*: it is white only where it is that of a number of bits.
    """
    stated, largest = (float(np.max(tags.get(tag, 0))) for tag in (_WHITE_SAMPLE, _MAX_SAMPLE))
    if stated > 0 or mode == "F":
        return stated if stated > 0 else 1.0
    if largest > 1 and int(largest) & (int(largest) + 1) == 0:
        return largest
    bits = int(np.max(tags.get(_BITS, 16 if mode != "I" or high < 1 << 16 else 32)))
    if bits == 32 and high < 1 << 16:
        return (1 << 16) - 1  # 16 bits in 32, as Pillow and others write them; of 32 bits all would be black
    white = (1 << bits) - 1 >> int(tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED)
    if 256 * high < white and bits == 32:
        raise ValueError(f"pixels up to {high:g}, neither 16 nor 32 bits: white is not known, scale them")
    return white


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn whatever Pillow raises into a `UserError`; its parsers raise many kinds of errors on damaged files."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise UserError(f"{where}: more than {limit} pixels, refused; scale it down or remove it") from error
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"none of the image formats {', '.join(FORMATS)}" if unknown else first_line(error)
        raise UserError(f"{where}: cannot be read as an image ({reason}); replace or remove it") from error


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image as `read_image` gives it to grey (1 channel) or RGB (3 channels)."""
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
    the size is shrunk by exact box means; everything else is resized by antialiased bilinear filtering, of images
    longer than eight times their shorter side only the middle that is shown.

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
    scaled = max(round(width * scale), size), max(round(height * scale), size)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    if max(width, height) > LONGEST * min(width, height):
        return to_array(_scaled_part(image, scaled, (left, top), size))
    resized = image.resize(scaled, FILTER)
    return to_array(resized.crop((left, top, left + size, top + size)))


def _scaled_part(
    image: Image.Image, scaled: tuple[int, int], corner: tuple[int, int], size: int
) -> Image.Image:
    """The square at a corner of a scaled image, without the rest of it, which may be of any number of pixels.

    Other than by scaling the whole image a pixel may be one of 256 steps away.
    """
    margin, whole, box = min(image.size), [], []
    for side, side_scaled, start in zip(image.size, scaled, corner, strict=True):
        first, last = start * side / side_scaled, (start + size) * side / side_scaled
        cut = max(math.floor(first) - margin, 0)  # whole pixels, as Pillow counts in float32
        whole.append((cut, min(math.ceil(last) + margin, side)))
        box.append((first - cut, last - cut))
    part = image.crop((whole[0][0], whole[1][0], whole[0][1], whole[1][1]))
    edges = box[0][0], box[1][0], box[0][1], box[1][1]
    return part.resize((size, size), FILTER, box=edges)


def fit_all(pixels: Pixels, size: int) -> Pixels:
    """`fit` for decoded images `[N, H, W, C]` that all have one shape."""
    _, height, width, channels = pixels.shape
    if height == width == size:
        return pixels
    if height == width and shrinks_by_boxes(height, size):
        return box_mean(pixels, size)
    planes = pixels[..., 0] if channels == 1 else pixels
    return np.stack([fit(Image.fromarray(plane), size) for plane in planes])
