"""The embedded data set: 1,797 real handwritten digits of 8 x 8 pixels that scikit-learn ships."""

from __future__ import annotations

import numpy as np

from unixkd.data.records import Decoded, Source
from unixkd.data.splits import hold_out
from unixkd.errors import missing_extra

# mean and standard deviation of the 1,438 training images' pixels, measured once
_MEAN, _STD = 0.3049, 0.3757


def load_digits() -> Source:
    """1,438 training and 359 test images by a fixed split with equal shares of every class.

    The set holds values 0..16 (UCI optical recognition of handwritten digits); they are scaled to 0..255.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise missing_extra("scikit-learn", "digits", "the digits") from error
    bunch = datasets.load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = Decoded(pixels, bunch.target.astype(np.int64))
    train, test = hold_out(everything.labels, len(everything), share=0.2, seed=0)
    return Source(
        train=everything.select(train),
        test=everything.select(test),
        class_names=tuple("0123456789"),
        num_classes=10,
        channels=1,
        size=8,
        mean=(_MEAN,),
        std=(_STD,),
        flip=False,
    )
