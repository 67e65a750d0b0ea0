"""Images per second that the loader decodes, cuts to 224 pixels and flips, beside torchvision's own in the same run.

On a generated tree of images like ImageNet's (`imagenet_like.py`; 100 classes) and on the same images as WebDataset
shards, with 0, 1 and 2 workers, in batches of 64 that arrive as pixels in [0, 1]:

    folder, wds       `load_data(DataConfig("folder:..." or "wds:..."))`; views are functions of seed, epoch, index
    torchvision       ImageFolder, RandomResizedCrop(224), RandomHorizontalFlip, PILToTensor in a DataLoader; uint8
                      becomes pixels in the training process, as ours does
    torchvision-float the same with ToTensor, as in torchvision's older examples: floats travel between processes

All take turns; a pass starts and ends its processes. Per core is images over the CPU seconds of all processes.

Target: with each number of processes, folder and wds take at most 1.05 times the CPU seconds of `torchvision`
(median over the rounds).

    python benchmarks/speed/loader.py           # about ten minutes, on two cores with nothing beside it
    python benchmarks/speed/loader.py --quick   # few images, one round; the target is not checked
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from unixkd.config import DataConfig
from unixkd.data import load_data

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish
from imagenet_like import write_shards, write_tree
from timing import Samples, interleave, ratio

TARGET = 1.05
SIZE, BATCH, CLASSES, WORKERS = 224, 64, 100, (0, 1, 2)
REFERENCE = "torchvision"


def ours(name: str, images: int, workers: int) -> Callable[[], object]:
    """A pass over some of our source's images, another epoch each time."""
    split = load_data(DataConfig(name, size=SIZE, workers=workers)).train
    order = spread(len(split), images)
    epochs = iter(range(1000))
    return lambda: take((batch.images for batch in split.train_batches(next(epochs), order, BATCH)), images)


def theirs(tree: Path, images: int, workers: int, *, as_float: bool) -> Callable[[], object]:
    """A pass over as many of ImageFolder's images."""
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)] if as_float else [v2.PILToTensor()]
    steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), *last]
    whole = ImageFolder(str(tree / "train"), v2.Compose(steps))
    loader: Any = DataLoader(Subset(whole, spread(len(whole), images).tolist()), BATCH, num_workers=workers)
    pixels = (lambda x: x) if as_float else (lambda x: x.float().div_(255))
    return lambda: take((pixels(batch) for batch, _ in loader), images)


def spread(count: int, images: int) -> torch.Tensor:
    """Places over all classes, in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:images]


def take(batches: Iterable[torch.Tensor], images: int) -> None:
    """Go through the batches, and make sure that they are what they should be."""
    count = 0
    for batch in batches:
        assert batch.shape[1:] == (3, SIZE, SIZE)
        assert batch.dtype == torch.float32
        count += len(batch)
    assert count == images


def figures(samples: dict[str, Samples], images: int) -> dict[str, Any]:
    """Images per second and per core of each loader, and what it takes over torchvision's."""
    found: dict[str, Any] = {}
    for name, each in samples.items():
        base = samples[f"{REFERENCE}, {name.rpartition(', ')[2]}"]
        found[name] = each.figures(images)
        found[name]["images_per_core_second"] = images / found[name]["cpu_seconds"]
        found[name][f"over_{REFERENCE}"] = ratio(each, base)
    return found


def main() -> int:
    """Write the images, let the loaders take turns, check the target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    total, images, rounds = (320, 192, 1) if quick else (5000, 1536, 5)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="unixkd-loader-") as name:
        folder = Path(name)
        os.environ["UNIXKD_CACHE"] = str(folder / "cache")
        tree = write_tree(folder / "tree", total, CLASSES)
        write_shards(tree, folder / "shards")
        contenders = {
            f"{what}, {workers} workers": make(images, workers)
            for workers in WORKERS
            for what, make in {
                "folder": lambda *how: ours(f"folder:{tree}", *how),
                "wds": lambda *how: ours(f"wds:{folder / 'shards'}", *how),
                REFERENCE: lambda *how: theirs(tree, *how, as_float=False),
                f"{REFERENCE}-float": lambda *how: theirs(tree, *how, as_float=True),
            }.items()
        }
        found = figures(interleave(contenders, rounds), images)
        size = sum(file.stat().st_size for file in tree.rglob("*.JPEG")) / total
    worst = max(found[name][f"over_{REFERENCE}"]["cpu"] for name in found if REFERENCE not in name)
    facts = {
        "images": total,
        "mean_bytes": size,
        "images_per_pass": images,
        "worst_over": worst,
        "passes": found,
    }
    target = f"at most {TARGET} times torchvision's CPU seconds with 0, 1 and 2 workers"
    return finish("loader", facts, target=target, passed=quick or worst <= TARGET, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
