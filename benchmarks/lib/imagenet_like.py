"""A tree of images that is like ImageNet to a loader, and the same images as WebDataset shards.

JPEGs of varied sizes about 500 x 375 pixels and of about as many bytes (100 KB on average), in class folders below
`train/` and `val/`: low-frequency noise with a tint for the class and fine grain over it. The same arguments make
the same bytes (with the same Pillow).
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

GRAIN = 30.0
"""Standard deviation of the grain, in steps of 256."""


def class_name(label: int) -> str:
    """The folder of a class, as ImageNet's synsets look."""
    return f"n{label:08d}"


def picture(number: int, label: int, side: int, grain: np.ndarray) -> Image.Image:
    """An image that its number decides: its shorter side is 0.6 to 1.1 of `side`, its longer one up to 4/3 of that."""
    rng = np.random.default_rng([number, label])
    short = int(side * rng.uniform(0.6, 1.1))
    width, height = int(short * rng.uniform(1, 4 / 3)), short
    if rng.random() < 0.25:
        width, height = height, width
    tint = np.random.default_rng([7, label]).uniform(-60, 60, 3)
    coarse = np.clip(rng.normal(128 + tint, 45, (9, 12, 3)), 0, 255).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    top, left = rng.integers(0, 64, 2)
    return Image.fromarray(
        np.clip(smooth + grain[top : top + height, left : left + width], 0, 255).astype(np.uint8)
    )


def write_tree(folder: Path, images: int, classes: int, *, side: int = 400, val: int = 0) -> Path:
    """Write `images` training and `val` validation images, dealt out to the classes in turn.

    Args:
        folder: gets `train/CLASS/*.JPEG` and, with `val`, `val/CLASS/*.JPEG`
        images: training images
        classes: how many classes
        side: of the larger images' shorter side, in pixels
        val: validation images
    """
    span = int(side * 1.5) + 64
    grain = np.random.default_rng(11).normal(0, GRAIN, (span, span, 3)).astype(np.int16)
    for number in range(images + val):
        label = number % classes
        part = "train" if number < images else "val"
        file = folder / part / class_name(label) / f"{class_name(label)}_{number}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number, label, side, grain).save(file, "jpeg", quality=92)
    return folder


def write_shards(tree: Path, folder: Path, *, per_shard: int = 1000, label: str = "cls") -> Path:
    """Write a tree's images as `train-000000.tar` ... and `val-000000.tar` ..., in the tree's order.

    Args:
        tree: of `write_tree`
        folder: gets the shards
        per_shard: images in each
        label: cls (the number of the class), txt (its name) or json (`{"label": number}`)
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(path for path in tree.iterdir() if path.is_dir()):
        classes = sorted(path.name for path in (tree / "train").iterdir())
        files = sorted(part.rglob("*.JPEG"))
        for number, start in enumerate(range(0, len(files), per_shard)):
            with tarfile.open(folder / f"{part.name}-{number:06d}.tar", "w") as tar:
                for file in files[start : start + per_shard]:
                    for name, content in _members(file, classes, label):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    return folder


def _members(file: Path, classes: list[str], label: str) -> Iterator[tuple[str, bytes]]:
    number = classes.index(file.parent.name)
    text = {"cls": str(number), "txt": file.parent.name, "json": json.dumps({"label": number})}[label]
    yield f"{file.stem}.jpg", file.read_bytes()
    yield f"{file.stem}.{label}", text.encode()


def main() -> None:
    """Write a tree and its shards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets tree/ and shards/")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--val", type=int, default=500)
    options = parser.parse_args()
    tree = write_tree(options.folder / "tree", options.images, options.classes, val=options.val)
    write_shards(tree, options.folder / "shards")


if __name__ == "__main__":
    main()
