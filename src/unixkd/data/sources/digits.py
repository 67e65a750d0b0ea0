"""The embedded data set: 1,797 real handwritten digits of 8 x 8 pixels that scikit-learn ships."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unixkd.data.sampling import hold_out
from unixkd.data.source import Decoded, ImageFormat, Source
from unixkd.errors import UserError

# mean and standard deviation of the 1,438 training images' pixels, measured once
_MEAN, _STD = 0.3049, 0.3757


def load_digits() -> Source:
    """1,438 training and 359 test images by a fixed split with equal shares of every class.

    The set holds values 0..16 (UCI optical recognition of handwritten digits); they are scaled to 0..255.
    """
    values, labels = _read()
    pixels = np.rint(values.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    everything = Decoded(pixels, labels.astype(np.int64))
    train, test = hold_out(everything.labels, len(everything), share=0.2, seed=0)
    return Source(
        train=everything.select(train),
        test=everything.select(test),
        class_names=tuple("0123456789"),
        num_classes=10,
        format=ImageFormat(8, 1, (_MEAN,), (_STD,)),
        flip=False,
    )


def _read() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values `[N, 64]` and labels `[N]`, from scikit-learn's file: to import its loader takes seconds."""
    package = find_spec("sklearn")
    if package is None:
        raise UserError("the digits need the package 'scikit-learn': pip install scikit-learn")
    for folder in package.submodule_search_locations or []:
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")  # opens .gz by itself
            return table[:, :-1], table[:, -1]
    from sklearn import datasets

    bunch = datasets.load_digits()
    return bunch.data, bunch.target
