"""Which answers a run has asked for since each of its checkpoints, so that one that goes on pays for them again.

An answer outlives the run that asked for it, its charge in the ledger does not outlive a kill. Without a journal a
resumed run would find what it had not paid for. Files of row numbers, only ever appended to.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unixkd.errors import UserError
from unixkd.run_files import CHECKPOINT, append

PREFIX, SUFFIX = "asked-since-", ".bin"


class Journal:
    """The journals of a run in a folder, one for each checkpoint that is kept; each process has files of its own.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> journal = Journal(Path(folder.name))
    >>> journal.begin("epoch-00001")
    >>> journal.append(np.array([3, 5]))
    >>> journal.begin("epoch-00002")
    >>> journal.append(np.array([8]))
    >>> Journal(Path(folder.name)).rows_since("epoch-00001").tolist()
    [3, 5, 8]
    >>> folder.cleanup()
    """

    def __init__(self, folder: Path, process: int = 0) -> None:
        self.folder, self.process = folder, process
        self.current: Path | None = None

    def begin(self, checkpoint: str) -> None:
        """What is asked from now on was asked after this checkpoint."""
        self.go_on(checkpoint)
        assert self.current is not None
        if self.current.is_dir():
            raise UserError(f"{self.current} is a folder where a run keeps a file: move it away to go on")
        self.current.unlink(missing_ok=True)

    def go_on(self, checkpoint: str) -> None:
        """As `begin`, after the rows that the journal lists already."""
        process = f".{self.process}" if self.process else ""
        self.current = self.folder / f"{PREFIX}{checkpoint}{process}{SUFFIX}"

    def append(self, rows: NDArray[np.int64]) -> None:
        """Note rows of a store, before they are written there; a killed process loses none of them."""
        if self.current is not None and len(rows):
            self.folder.mkdir(parents=True, exist_ok=True)
            append(self.current, rows.astype("<i8").tobytes())

    def rows_since(self, checkpoint: str) -> NDArray[np.int64]:
        """The rows noted after a checkpoint, those after later ones included. Raises UserError if unreadable."""
        rows = [np.empty(0, np.int64)]
        for path in self.files():
            if tag(path) >= checkpoint:
                try:
                    rows.append(np.fromfile(path, "<i8"))  # drops a torn last number
                except OSError as error:
                    raise UserError(f"{path} cannot be read: {error.strerror}; remove it to go on") from None
        return np.concatenate(rows)

    def prune(self, oldest: str) -> None:
        """Remove what was noted before the oldest checkpoint that is kept."""
        for path in self.files():
            if tag(path) < oldest and not path.is_dir():
                path.unlink(missing_ok=True)  # another process does the same

    def files(self) -> list[Path]:
        """The journals, oldest first."""
        return journals(self.folder)


def journals(folder: Path) -> list[Path]:
    """The journals in a folder, oldest first; what else lies there is somebody's own."""
    ours = rf"{PREFIX}({CHECKPOINT})(\.\d+)?{re.escape(SUFFIX)}"
    return sorted((path for path in folder.glob(f"{PREFIX}*") if re.fullmatch(ours, path.name)), key=tag)


def tag(path: Path) -> str:
    """The checkpoint after which a journal begins."""
    return path.name.removeprefix(PREFIX).partition(".")[0]
