"""What is said where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unixkd.config import TrainConfig
from unixkd.errors import UserError

LEAST_ROWS = 4
"""Of a micro-batch: batches are cut evenly, so that from 3 on no part is of one row where the batch is not."""
_ON_THE_HOST = ("not enough memory", "can't allocate memory")
"""What torch's RuntimeError says; on a GPU it has a type of its own."""


@contextmanager
def explained(train: TrainConfig) -> Iterator[None]:
    """Within, an error of the allocator becomes one that says what to lower.

    Raises:
        UserError: memory ran out
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise UserError(
            f"out of memory with batches of {train.batch_size} images ({first_line(error)}): give --train.micro_batch "
            f"{half(train)} to train on fewer at once, or lower --train.batch_size; --train.eval_batch_size "
            f"({train.eval_batch_size}) if it was in an evaluation"
        ) from error


def half(train: TrainConfig) -> int:
    """Half of what is trained on at once, but no fewer than a part may have."""
    return max((train.micro_batch or train.batch_size) // 2, LEAST_ROWS)


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a device or on the host.

    >>> ran_out(MemoryError()), ran_out(RuntimeError("shapes do not match"))
    (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _ON_THE_HOST)


def first_line(error: Exception) -> str:
    """An error's first line, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
