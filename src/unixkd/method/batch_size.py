"""N, the batch size that a method's shares refer to, in a loop that does not say it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any


class BatchSize:
    """Follows the sizes of a loop's batches.

    N is the size of the largest batch so far. One shorter batch is taken for an epoch's last, of which as many rows
    are kept as of a full one; a second shorter batch in a row is none, and its size is N from then on.

    Args:
        given: the caller's word: N stays so

    >>> size = BatchSize()
    >>> [size.follow(rows) for rows in (16, 4, 16)]
    [16, 16, 16]
    """

    def __init__(self, given: int | None = None) -> None:
        self.given = given
        self.size = given
        self.was_short = False
        self._warned = False

    def follow(self, rows: int) -> int:
        """N for a batch of so many rows, the next one of the loop."""
        if self.size is None:
            self.size = rows
        changed = rows > self.size or (rows < self.size and self.was_short)
        self.was_short = rows < self.size and not changed
        if changed:
            self._change(rows)
        return self.size

    def expect(self, rows: int) -> None:
        """Take N from a loop that knows the size of its batches."""
        if self.given is None and rows != self.size:
            if self.size is None:
                self.size = rows
            else:
                self._change(rows)
            self.was_short = False

    def _change(self, rows: int) -> None:
        """Make N the size of the batches, where the caller has not given it, and say so once."""
        if not self._warned:
            self._warned = True
            change = (
                f"batches have {rows} rows now, {self.size} before: the method's shares are of {rows} from now on"
                if self.given is None
                else f"batches have {rows} rows, and the method's shares are of the batch_size={self.given} that "
                "was given: leave it out, and they follow the batches"
            )
            warnings.warn(change, stacklevel=4)
        if self.given is None:
            self.size = rows

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers that `load_state_dict` takes back."""
        return {"batch_size": self.size, "was_short": self.was_short}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a saved N, but for one that was given."""
        self.size = self.given or state["batch_size"]
        self.was_short = state.get("was_short", False)  # states of older releases lack it
        self._warned = False
