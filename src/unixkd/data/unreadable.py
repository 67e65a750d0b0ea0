"""Training images that cannot be read: looked for before training, left out up to a cap, and listed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unixkd.data.records import Encoded, Records
from unixkd.errors import UserError

SHOWN = 3
"""Images that an error tells the reasons of."""


def leave_out(records: Records, most: int, workers: int) -> tuple[Records, tuple[str, ...]]:
    """The records that can be decoded, and what is wrong with each of the others.

    All images are decoded once for it; where nothing may be left out none is, as reading them finds the first.

    Args:
        records: training images
        most: so many may be left out
        workers: threads that decode

    Raises:
        UserError: more of them cannot be read, or all of a class
    """
    if not most or not isinstance(records, Encoded):
        return records, ()

    def problem(i: int) -> str | None:
        try:
            records.read(i).close()
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(max(1, workers)) as threads:
        problems = list(threads.map(problem, range(len(records))))
    wrong = tuple(each for each in problems if each is not None)
    if len(wrong) > most:
        raise UserError(
            f"{len(wrong)} of {len(records)} training images cannot be read, --data.max_unreadable allows {most}: "
            + "; ".join(wrong[:SHOWN])
        )
    left = records.select(np.flatnonzero([each is None for each in problems]))
    if not len(left):
        raise UserError(f"none of the {len(records)} training images can be read: {wrong[0]}")
    if records.labels is not None and left.labels is not None:
        lost = set(records.labels.tolist()) - set(left.labels.tolist())
        if lost:
            raise UserError(f"no image of {len(lost)} classes can be read (class {min(lost)}): {wrong[0]}")
    return left, wrong
