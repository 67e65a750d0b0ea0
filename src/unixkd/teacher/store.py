"""The teacher's answers on disk: logits of (image, view), mapped into memory, shared by runs and processes.

A store is a folder of three files, or four:
    answers.json  whose answers these are, to what, and how many
    logits.bin    [images, views, classes], little-endian fp16 or fp32; rows of `TopLogits` where only the largest
                  logits are kept
    checks.bin    [images, views], little-endian uint32: 0 = no answer, else a checksum of its row
    images.bin    [images], little-endian uint32, where the images are files: the CRC-32 of each, 0 = not read yet
Logits are written before their checksum, and every read compares the two. So there are no locks: an answer
torn by a kill, a power cut or two writers at once is one that is not there, and is asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.batch import answered
from unixkd.method.draws import mix64
from unixkd.teacher.folder import open_folder
from unixkd.teacher.format import Contents, Precision
from unixkd.teacher.journal import Journal

_SHOWN_IMAGES = 8  # that an error lists
_LOG = logging.getLogger(__name__)


class AnswerStore:
    """Stored answers of one teacher to one data set's views; `open` gives one.

    Any number of processes may read and write the same store, and any of them may be killed at any moment.
    Machines that share one over a network may undo each other's answers, but not falsify them.

    Args:
        path: its folder
        contents: what it holds
        logits: mapped `[images × views, classes]`
        checks: mapped `[images × views]`
        images: mapped `[images]`, where the images are files

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = AnswerStore.open(
    ...     Path(folder.name) / "answers", {"teacher weights": "a"}, images=3, views=2, classes=2
    ... )
    >>> store.write(torch.tensor([2]), torch.tensor([1]), torch.tensor([[0.5, -0.1]]))
    >>> logits, known = store.read(torch.tensor([0, 2]), torch.tensor([1, 1]))
    >>> logits.tolist(), known.tolist(), store.filled()
    ([[0.0, 0.0], [0.5, -0.0999755859375]], [False, True], 1)
    >>> store.close(); folder.cleanup()
    """

    def __init__(
        self,
        path: Path,
        contents: Contents,
        logits: np.memmap,
        checks: np.memmap,
        images: np.memmap | None = None,
    ) -> None:
        self.path = path
        self.contents = contents
        self._maps = [logits, checks] if images is None else [logits, checks, images]
        self.images: NDArray[np.uint32] | None = None if images is None else np.asarray(images)
        """CRC-32 of each image's file as the teacher has seen it, 0 where it has not: for `LoadedSplit.known`."""
        # Plain views: indexing a memmap makes memmaps, which is slow.
        self._logits: NDArray[Any] = np.asarray(logits)
        self._checks: NDArray[np.uint32] = np.asarray(checks)
        self._packing = contents.packing
        self._weights = checksum_weights(self._packing.width)
        self._forgotten: NDArray[np.bool_] | None = None
        self.foreign: NDArray[np.bool_] | None = None
        """Rows that this run has not paid for, where it is charged as if it were alone."""
        self.lent = 0
        """Answers that were there, but were charged as if they had been asked for."""
        self.journal: Journal | None = None
        """Notes what is written, where a run keeps one."""

    @classmethod
    def open(
        cls,
        path: Path,
        key: Mapping[str, str],
        *,
        images: int,
        views: int,
        classes: int,
        precision: Precision = "fp16",
        top_k: int | None = None,
        temperature: float = 1.0,
        on_disk: bool = False,
        announce: Callable[[str], None] = _LOG.info,
    ) -> AnswerStore:
        """The store at a path, which is made where there is none or an empty folder.

        Args:
            path: its folder
            key: all that changes an answer, by name (`store_key`)
            images: number of images
            views: number of views of each image
            classes: logits of an answer
            precision: fp16 (within 65,504, 11 bits) | fp32
            top_k: number of logits of an answer that are kept, the largest; None: all
            temperature: of the losses that will use them, where only the largest are kept (`TopLogits`)
            on_disk: the images are files, of which checksums are kept (`images`)
            announce: takes a line with the size before a store is made

        Raises:
            UserError: no space for it, a folder of something else or of other answers, a damaged file, a `top_k`
                that is out of range or saves nothing
        """
        contents = Contents(dict(key), images, views, classes, precision, top_k, temperature, on_disk)
        return cls(path, contents, *open_folder(path, contents, announce))

    def read(
        self, index: Int[Tensor, " n"], view: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n classes"], Bool[Tensor, " n"]]:
        """Logits `[N, classes]` in the store's precision, and which of them are known `[N]`; both on the CPU.

        Args:
            index: position of each image in its data set `[N]`
            view: number of each image's view `[N]`

        Returns:
            Rows that are not known are 0. Where only the largest logits are kept, all others of a row are equal.

        Raises:
            UserError: an image or view that is not the store's
        """
        rows = self._rows(index, view)
        packed = self._logits.take(rows, axis=0)
        # Of the copy: another process may be writing to the rows themselves.
        known = checksums(packed, self._weights) == self._checks.take(rows)
        if self._forgotten is not None:
            known &= ~self._forgotten[rows]
        packed[~known] = 0  # before it is unpacked: a torn row names classes that do not exist
        return self._packing.unpack(packed), torch.from_numpy(known)

    def write(
        self, index: Int[Tensor, " n"], view: Int[Tensor, " n"], logits: Float[Tensor, "n classes"]
    ) -> None:
        """Keep answers, rounded to the store's precision; one that is there already is replaced.

        Args:
            index: position of each image in its data set `[N]`
            view: number of each image's view `[N]`
            logits: the teacher's `[N, classes]`, on any device

        Raises:
            UserError: logits that are no answer (NaN, +inf, all −inf) or too large for fp16, another number of
                classes, an image or view that is not the store's; nothing is written then
        """
        rows = self._rows(index, view)
        if logits.shape != (len(rows), self.contents.classes):
            raise UserError(
                f"{self.path} holds {self.contents.classes} logits of each answer, got logits of shape "
                f"{tuple(logits.shape)} for {len(rows)} images"
            )
        packed, numbers = self._packing.pack(logits.detach())
        # aminmax hands on a NaN, and is far faster than isfinite on every number
        if len(rows) and not torch.stack(numbers.aminmax()).isfinite().all():
            self._check_storable(index, logits)
        if self.journal is not None:
            self.journal.append(rows)
        self._logits[rows] = packed
        self._checks[rows] = checksums(packed, self._weights)
        for marks in (self._forgotten, self.foreign):
            if marks is not None:
                marks[rows] = False

    def borrow(self, index: Int[Tensor, " n"], view: Int[Tensor, " n"], known: Bool[Tensor, " n"]) -> int:
        """How many of these known answers the run has to be charged for: others paid for them, and it has not yet."""
        if self.foreign is None:
            return 0
        rows = self._rows(index, view)[known.numpy()]
        lent = np.unique(rows[self.foreign[rows]])
        self.foreign[lent] = False
        self.lent += len(lent)
        return len(lent)

    def _check_storable(self, index: Tensor, logits: Tensor) -> None:
        """Raise for rows `[N, C]` that are no answer, or that the store's precision makes infinite."""
        if (faulty := ~answered(logits).cpu()).any():
            raise UserError(f"the teacher's logits are not finite for images {_first(index.cpu()[faulty])}")
        large = (self.rounded(logits).isinf() & logits.isfinite()).any(dim=1).cpu()
        if large.any():
            raise UserError(
                f"the teacher's logits are too large for {self.contents.precision} for images "
                f"{_first(index.cpu()[large])}: store them as fp32 (--answers.precision fp32)"
            )

    def rounded(self, logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """What `read` will give where these logits are written; on their own device."""
        return self._packing.rounded(logits)

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Take rows image × views + view `[m]` to be unknown until they are written again; other users still read them.

        Numbers that are no rows, of a damaged journal, are passed over.
        """
        if not len(rows):
            return
        if self._forgotten is None:
            self._forgotten = np.zeros(self.contents.images * self.contents.views, bool)
        self._forgotten[rows[(rows >= 0) & (rows < len(self._forgotten))]] = True

    def share_forgotten(self, reduce: Callable[..., None]) -> None:
        """Take forgotten rows to be known that another process has written; all processes forgot the same ones."""
        if self._forgotten is not None:
            reduce([torch.from_numpy(self._forgotten.view(np.uint8))], "min")

    def filled(self) -> int:
        """Answers that have been written; torn ones, which only `read` tells, are counted too."""
        return int(np.count_nonzero(self._checks))

    def flush(self) -> None:
        """Force what was written to the disk, against a power cut; a killed process needs none of it."""
        for mapped in self._maps:
            mapped.flush()

    def close(self) -> None:
        """Let go of the files; the store cannot be used afterwards."""
        self._maps.clear()
        self._logits, self._checks = np.empty((0, 0), np.float16), np.empty(0, np.uint32)

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _rows(self, index: Int[Tensor, " n"], view: Int[Tensor, " n"]) -> NDArray[np.int64]:
        contents = self.contents
        images, views = index.cpu().numpy().astype(np.int64), view.cpu().numpy().astype(np.int64)
        for what, numbers, count in (("image", images, contents.images), ("view", views, contents.views)):
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < count:
                outside = numbers[(numbers < 0) | (numbers >= count)][0]
                raise UserError(f"{self.path} holds {what}s 0 to {count - 1}, not {what} {outside}")
        return images * contents.views + views


def _first(images: Tensor) -> str:
    more = f" and {len(images) - _SHOWN_IMAGES} more" if len(images) > _SHOWN_IMAGES else ""
    return ", ".join(map(str, images[:_SHOWN_IMAGES].tolist())) + more


def checksum_weights(width: int) -> NDArray[np.uint64]:
    """Fixed weights of `checksums` `[1 + width]`: SplitMix64's finaliser of 1, 2, 3 …"""
    return mix64(torch.arange(1, 2 + width)).numpy().view(np.uint64)


def checksums(rows: NDArray[np.number], weights: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """A checksum of each row `[N]`, never 0.

    The upper half of w_0 + Σ w_c · x_c modulo 2^64, where x_c is the row's c-th number as bits: two rows
    that differ in any way agree for one draw of the weights in 2^32 (multilinear hashing; Lemire & Kaser,
    "Strongly universal string hashing is fast", 2014).

    Args:
        rows: numbers of 2 or 4 bytes `[N, width]`, contiguous
        weights: `checksum_weights(width)`
    """
    words: NDArray[np.unsignedinteger] = rows.view(f"u{rows.itemsize}")
    sums = weights[0] + np.einsum("nc,c->n", words, weights[1:], dtype=np.uint64, casting="safe")
    return np.maximum(sums >> np.uint64(32), 1).astype(np.uint32)
