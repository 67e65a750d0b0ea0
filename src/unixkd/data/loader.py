"""Decoding ahead of the training loop: loader processes make uint8 batches, which become pixels on the device."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unixkd.data.images import Pixels, fit, to_array, to_channels
from unixkd.data.views import apply_views, to_pixels
from unixkd.errors import UserError

NO_VIEW = -1
"""The code of an image as it is evaluated."""
Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Cut:
    """Cuts the coded view out of an image.

    Without a padding a view is a `RandomResizedCrop` and a flip, drawn from a 63-bit seed that is also the view's
    code. With one, views are the same crops and flips of the evaluation image as in memory, with the same codes.

    Args:
        size: side of the square view in pixels
        channels: 1 or 3
        padding: zero padding of the random crop in pixels, or None
        flip: random horizontal flip
    """

    size: int
    channels: int
    padding: int | None
    flip: bool

    def __call__(self, image: Image.Image, code: int) -> Pixels:
        """The view `[size, size, C]`, uint8."""
        image = to_channels(image, self.channels)
        if code == NO_VIEW:
            return fit(image, self.size)
        if self.padding is None:
            return _random_resized_crop(image, self.size, self.flip, seed=code)
        pixels = torch.from_numpy(fit(image, self.size))[None]
        return apply_views(pixels, torch.tensor([code]), self.padding, self.flip)[0].numpy()


def in_batches(index: Int[Tensor, " m"], codes: Int[Tensor, " m"], size: int) -> list[list[tuple[int, int]]]:
    """Pairs of position and code, batch by batch; the last may be short."""
    samples = list(zip(index.tolist(), codes.tolist(), strict=True))
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def load_pixels(
    read: Callable[[Sample], Pixels],
    batches: Iterable[Sequence[Sample]],
    workers: int,
    device: torch.device,
) -> Iterator[Float[Tensor, "n c h w"]]:
    """The batches' pixels in [0, 1], on the device, in the order of the batches however many workers read them.

    They cross to the device as uint8, a quarter of the bytes, from pinned memory where it is a GPU.

    Args:
        read: makes one sample's pixels `[H, W, C]`, in a worker
        batches: what is handed to it; taken a few batches ahead, in this process
        workers: loader processes; 0 reads in this process
        device: where the pixels are wanted

    Raises:
        UserError: from `read`, or a worker died
    """
    loader: DataLoader[Any] = DataLoader(
        _Reader(read),
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # a loader draws from the global one otherwise
        worker_init_fn=_leave_interrupts_alone,
        pin_memory=device.type == "cuda",
    )
    reading = iter(loader)
    while True:
        try:
            loaded = next(reading)
        except StopIteration:
            return
        except RuntimeError as error:
            raise UserError(
                f"a loader process died ({' '.join(str(error).split())}): if memory ran out, fewer "
                "--data.workers or a smaller --train.batch_size may help"
            ) from error
        if isinstance(loaded, UserError):
            del reading  # stops the workers now; held by the traceback they would outlive the error
            raise loaded
        yield to_pixels(loaded.to(device, non_blocking=True))


def _leave_interrupts_alone(worker: int) -> None:
    """Ctrl-C reaches loader processes too, but it is the main one that stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Reader(Dataset[Pixels | UserError], Generic[Sample]):
    """What runs in a worker; an error is returned, because a worker would bury it in a traceback."""

    def __init__(self, read: Callable[[Sample], Pixels]) -> None:
        self.read = read

    def __getitem__(self, sample: Sample) -> Pixels | UserError:
        try:
            return self.read(sample)
        except UserError as error:
            return error


def _random_resized_crop(image: Image.Image, size: int, flip: bool, seed: int) -> Pixels:
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(0.5 if flip else 0.0)]
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would reseed the accelerators too
        torch.default_generator.manual_seed(seed)
        return to_array(v2.Compose(steps)(image))


def _collate(samples: Sequence[Pixels | UserError]) -> UInt8[Tensor, "n h w c"] | UserError:
    arrays = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        arrays.append(sample)
    return torch.from_numpy(np.stack(arrays))
