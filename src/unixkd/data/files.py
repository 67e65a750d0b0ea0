"""Image files on the disk: which files below a folder are images, what is passed over, and loading them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unixkd.data.images import SUFFIXES, detail, fit, read_header, read_photo
from unixkd.data.views import to_pixels
from unixkd.errors import UserError
from unixkd.names import plural

_log = logging.getLogger(__name__)
_OF_SYSTEMS = ("thumbs.db", "desktop.ini", "__macosx")
HIDDEN = "hidden"
"""The kind of files and folders that a system hides, among those that are passed over."""
_SHOWN_KINDS = 8


def is_hidden(name: str) -> bool:
    """Whether a file's or folder's name is that of something a system hides."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def is_image(file: Path) -> bool:
    """Whether a file is an image: by its suffix, or by its beginning where it has none."""
    if file.exists() and not file.is_file():
        return False  # reading a pipe would never end; a broken link is an image that cannot be read
    if file.suffix not in ("", "."):
        return file.suffix.lower() in SUFFIXES
    try:
        read_header(file, str(file)).close()
    except UserError:
        return False
    return True


def sort_out(files: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """The images among files, sorted, and how many others there are of each suffix."""
    files = list(files)
    images = [file for file in files if is_image(file)]
    others = Counter(file.suffix.lower() or "no suffix" for file in sorted(set(files).difference(images)))
    return sorted(images), others


def find_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """`sort_out` of all files below a folder; hidden ones and folders that are links are counted, not entered."""
    files: list[Path] = []
    left = Counter[str]()
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        left[HIDDEN] += sum(map(is_hidden, [*folders, *names]))
        folders[:] = [name for name in folders if not is_hidden(name)]
        left["links to folders"] += sum(Path(place, name).is_symlink() for name in folders)
        files += [Path(place, name) for name in names if not is_hidden(name)]
    images, others = sort_out(files)
    return images, others + left


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def passed_over(where: str | Path, images: int, others: Counter[str]) -> tuple[str, ...]:
    """A line about what is no image, where there is anything.

    >>> passed_over("d", 8, Counter({".txt": 15, ".heic": 1, HIDDEN: 2}))
    ('d: 16 of 24 files are no images: .txt 15, .heic 1; 2 hidden files passed over',)
    """
    others = others.copy()
    hidden = others.pop(HIDDEN, 0)
    kinds = [f"{kind} {count:,}" for kind, count in others.most_common(_SHOWN_KINDS)]
    kinds += ["..."] if len(others) > _SHOWN_KINDS else []
    count = others.total()
    parts = [f"{count:,} of {images + count:,} files are no images: {', '.join(kinds)}"] if count else []
    parts += [f"{plural(hidden, 'hidden file')} passed over"] if hidden else []
    return (f"{where}: {'; '.join(parts)}",) if parts else ()


def list_images(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths and the images below the folders, whose other files are counted in a warning.

    Raises UserError where there are no images.
    """
    files: list[Path] = []
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110 - the method raises for a name that no system takes
            raise UserError(f"{path}: no such file or folder")
        images, others = find_images(path) if path.is_dir() else ([path], Counter[str]())
        lines = passed_over(path, len(images), others)
        if not images:
            kinds = f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})"
            raise UserError("; ".join([kinds, *lines]))
        for line in lines:
            _log.warning("%s", line)
        files += images
    if not files:
        raise UserError("no images were given")
    return files


def load_images(
    paths: Sequence[Path], size: int, channels: int, scaled: bool = True
) -> tuple[Float[Tensor, "n c h w"], list[Path]]:
    """Images from files and folders, preprocessed as in evaluation.

    Args:
        paths: image files, and folders that are searched recursively
        size: side in pixels
        channels: 1 (grey) or 3 (RGB)
        scaled: decode large ones at a smaller scale, as `data.decoding` scaled does

    Returns:
        Pixels in [0, 1] `[N, C, size, size]`, channels_last, and the file of each.

    Raises:
        UserError: a path is missing, a folder holds no image, or an image is unreadable.
    """
    files = list_images(paths)
    least = detail(size) if scaled else None
    arrays = [fit(read_photo(file, str(file), channels, least).image, size) for file in files]
    return to_pixels(torch.from_numpy(np.stack(arrays))), files
