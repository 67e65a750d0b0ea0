"""Photographs of 12 megapixels: decoding and cutting them to 224 pixels beside torchvision's own loader, and again.

Generated JPEGs of 4,000 x 3,000 pixels (smooth shapes of many sizes with fine grain; two pictures, written under many
names), in batches of 32, random resized crops and flips, one loader thread or process:

    first        the first epoch of `load_data(DataConfig("folder:..."))`: decoded at a smaller scale, and kept
    second       the second epoch of the same: crops of the photos that are kept
    full         the first epoch with `data.decoding full` and `data.keep 0`, as before there were these options
    torchvision  ImageFolder, RandomResizedCrop(224), RandomHorizontalFlip, PILToTensor in a DataLoader

All take turns in one process, by CPU seconds of all threads and processes; the last two, which decode in full, take 50
of the 400 photos. Beside them the mean absolute difference of evaluation's pixels from decoding in full, in steps of
256.

Targets, medians over the rounds: torchvision takes at least 3 times the CPU seconds of `first`, and `first` at least 5
times those of `second`.

    python benchmarks/speed/photos_loader.py           # 400 photos, about ten minutes
    python benchmarks/speed/photos_loader.py --quick   # 12 photos, one round
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from unixkd.config import DataConfig
from unixkd.data import load_data

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from common import finish, mean_sd
from timing import interleave

OVER_TORCHVISION, SECOND_OVER_FIRST = 3.0, 5.0
SIZE, BATCH, PICTURES = 224, 32, 2


def picture(number: int, width: int = 4000, height: int = 3000) -> Image.Image:
    """A picture that its number decides: noise of many scales, the coarsest the strongest."""
    rng = np.random.default_rng(number)
    total = rng.normal(127, 3, (height, width, 3)).astype(np.float32)
    for cells, strength in ((6, 60), (24, 35), (96, 20), (384, 10)):
        coarse = Image.fromarray(rng.integers(0, 255, (cells * 3 // 4, cells, 3), dtype=np.uint8))
        total += (np.asarray(coarse.resize((width, height)), np.float32) - 127) * strength / 127
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, count: int) -> float:
    """Write the photos in two classes; bytes of each on average."""
    files = []
    for number in range(PICTURES):
        place = folder / f"{number}.jpg"
        picture(number).save(place, "jpeg", quality=90)
        files.append(place.read_bytes())
        place.unlink()
    for number in range(count):
        place = folder / "train" / "ab"[number % 2] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(files[number % PICTURES])
    return sum(map(len, files)) / PICTURES


class Ours:
    """Epochs of our loader over the same photos."""

    def __init__(self, folder: Path, photos: int, **options: Any) -> None:
        self.split = load_data(DataConfig(f"folder:{folder}", size=SIZE, workers=1, **options)).train
        self.order = torch.arange(photos)

    def epoch(self, number: int) -> None:
        """One pass over all photos."""
        count = 0
        for batch in self.split.train_batches(number, self.order, BATCH):
            assert batch.pixels.shape[1:] == (3, SIZE, SIZE)
            count += len(batch)
        assert count == len(self.order)

    def first(self) -> None:
        """The first epoch, with nothing kept yet."""
        kept = self.split.kept
        if kept is not None:
            kept.there.clear()
        self.epoch(0)

    def second(self) -> None:
        """The second one."""
        kept = self.split.kept
        assert kept is not None
        assert len(kept.there) == len(self.split)
        self.epoch(1)


def theirs(folder: Path, photos: int) -> Callable[[], None]:
    """An epoch of torchvision's loader."""
    steps = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    whole = ImageFolder(str(folder / "train"), v2.Compose(steps))
    loader: Any = DataLoader(Subset(whole, range(photos)), BATCH, num_workers=1)

    def epoch() -> None:
        for batch, _ in loader:
            batch.float().div_(255)

    return epoch


def difference(folder: Path) -> float:
    """Mean absolute difference of evaluation's pixels from those of decoding in full."""
    scaled, full = (
        load_data(DataConfig(f"folder:{folder}", size=SIZE, decoding=how, keep=0)).train
        for how in ("scaled", "full")
    )
    pairs = [(scaled.image(i).astype(int), full.image(i)) for i in range(PICTURES)]
    return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))


def main() -> int:
    """Write the photos, let the loaders take turns, check the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    photos, few, rounds = (12, 4, 1) if quick else (400, 50, 3)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="unixkd-photos-") as name:
        folder = Path(name)
        mean_bytes = write_photos(folder, photos)
        ours, before = Ours(folder, photos), Ours(folder, few, decoding="full", keep=0.0)
        contenders = {
            "first": ours.first,
            "second": ours.second,
            "full": before.first,
            "torchvision": theirs(folder, few),
        }
        ours.first()  # the first turn may begin with the second epoch
        samples = interleave(contenders, rounds, warmup=0)
        off = difference(folder)
    many = {"first": photos, "second": photos, "full": few, "torchvision": few}
    cpu = {name: [seconds / many[name] for seconds in each.cpu] for name, each in samples.items()}
    over = [a / b for a, b in zip(cpu["torchvision"], cpu["first"], strict=True)]
    again = [a / b for a, b in zip(cpu["first"], cpu["second"], strict=True)]
    facts = {
        "photos": many,
        "pixels": "4000 x 3000",
        "mean_bytes": mean_bytes,
        "configuration": {"size": SIZE, "batch": BATCH, "workers": 1, "pillow": Image.__version__},
        "images_per_cpu_second": {
            name: mean_sd([1 / seconds for seconds in each]) for name, each in cpu.items()
        },
        "torchvision_over_first": mean_sd(over),
        "first_over_second": mean_sd(again),
        "evaluation_differs_by": off,
    }
    passed = float(np.median(over)) >= OVER_TORCHVISION and float(np.median(again)) >= SECOND_OVER_FIRST
    target = f"torchvision / first at least {OVER_TORCHVISION}, first / second at least {SECOND_OVER_FIRST}"
    return finish("photos_loader", facts, target=target, passed=passed, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
