"""What a store of teacher answers holds, and how one answer lies in it: all logits, or the largest of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from unixkd.errors import UserError
from unixkd.method.scoring import full_precision
from unixkd.names import format_bytes

SCHEMA, TOP_SCHEMA = 1, 2
"""Of stores of all logits and of the largest ones; raised whenever files of before would be read wrongly."""

LOGITS, CHECKS, IMAGES = "logits.bin", "checks.bin", "images.bin"
"""The files of numbers."""


@dataclass(frozen=True)
class Contents:
    """What a store holds.

    Args:
        key: whose answers to what, by name
        images: number of images
        views: number of views of each image
        classes: logits of an answer
        precision: fp16 | fp32
        top_k: how many of an answer's logits are kept, the largest (`TopLogits`); None: all
        temperature: softmax temperature at which the dropped classes keep their total probability; unused if all
            logits are stored
        on_disk: the images are files, which may change: a checksum of each is kept

    Raises:
        UserError: a number is below 1, or the `top_k` logits take more room than all

    >>> print(Contents({}, 50_000, 162, 100, "fp16"))
    50,000 images × 162 views × 100 classes as fp16 = 1.62 GB (plus checksums)
    >>> print(Contents({}, 50_000, 162, 100, "fp16", top_k=8))
    50,000 images × 162 views × 8 of 100 classes as fp16 = 275.40 MB (plus checksums)
    """

    key: Mapping[str, str]
    images: int
    views: int
    classes: int
    precision: Precision
    top_k: int | None = None
    temperature: float = 1.0
    on_disk: bool = False

    def __post_init__(self) -> None:
        if min(self.images, self.views, self.classes) < 1:
            raise UserError(f"stored answers need at least one image, view and class, got {self}")
        if self.top_k is None:
            return
        if not 1 <= self.top_k < self.classes:
            raise UserError(
                f"answers.top_k must be from 1 to {self.classes - 1} of {self.classes} classes, got {self.top_k}; "
                "leave it out to keep all logits"
            )
        if not self.temperature > 0:
            raise UserError(f"the temperature of stored answers must be above 0, got {self.temperature:g}")
        all_logits = AllLogits(self.classes, self.precision)
        top, full = (each.width * each.dtype.itemsize for each in (self.packing, all_logits))
        if top > full:
            raise UserError(
                f"answers.top_k {self.top_k}: the {self.top_k} largest of {self.classes} logits with their classes "
                f"take {top:,} bytes, all logits {full:,}: leave it out, or keep fewer"
            )

    @property
    def packing(self) -> Packing:
        """How an answer lies in the file."""
        if self.top_k is None:
            return AllLogits(self.classes, self.precision)
        return TopLogits(self.classes, self.precision, self.top_k, self.temperature)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file of numbers."""
        rows, packing = self.images * self.views, self.packing
        sizes = {LOGITS: rows * packing.width * packing.dtype.itemsize, CHECKS: rows * 4}
        return sizes | ({IMAGES: self.images * 4} if self.on_disk else {})

    @property
    def index(self) -> dict[str, Any]:
        """Of answers.json."""
        schema, unused = (SCHEMA, {"top_k", "temperature"}) if self.top_k is None else (TOP_SCHEMA, set())
        values = {name: value for name, value in asdict(self).items() if name not in unused | {"on_disk"}}
        return {"schema": schema, **values}

    def __str__(self) -> str:
        kept = "" if self.top_k is None else f"{self.top_k:,} of "
        return (
            f"{self.images:,} images × {self.views:,} views × {kept}{self.classes:,} classes as {self.precision} = "
            f"{format_bytes(self.sizes[LOGITS])} (plus checksums)"
        )


Precision = Literal["fp16", "fp32"]
_TORCH = {"fp16": torch.float16, "fp32": torch.float32}
_NUMPY: dict[str, np.dtype[np.floating]] = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
_WORD = np.dtype("<u2")


@dataclass(frozen=True)
class AllLogits:
    """An answer's C logits as they are, in the store's precision."""

    classes: int
    precision: Precision

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers in a row."""
        return _NUMPY[self.precision]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.classes

    def pack(self, logits: Float[Tensor, "n classes"]) -> tuple[NDArray[Any], Float[Tensor, "n classes"]]:
        """Rows for the file, and the numbers in them that have to be finite."""
        rounded = self.rounded(logits).cpu()
        return rounded.numpy(), rounded

    def unpack(self, rows: NDArray[Any]) -> Float[Tensor, "n classes"]:
        """The logits that rows of the file stand for."""
        return torch.from_numpy(rows)

    def rounded(self, logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """What is read of these logits once they are written; on their own device."""
        return logits.to(_TORCH[self.precision])


@dataclass(frozen=True)
class TopLogits:
    """The k largest logits of an answer with their classes, and one logit that all other classes get when it is read.

    That level r is such that the others weigh at temperature T together as much as they did:
    (C − k) · exp(r/T) = Σ exp(x_c/T) over the C − k others. So at this T the softened probability of each of the k
    classes and of the rest together is that of the full answer, but for rounding; how it divides among the rest is
    lost, so a class of −inf among them gets its part. At another temperature the rest weighs too much (above T) or too
    little (below it), as the right r falls with T, from the others' maximum to their mean.

    A row is, in words of 2 bytes: k logits, the largest first, and r, as fp16 or fp32; then the k classes as uint16,
    or as uint32 where there are more than 65,536 classes.

    Args:
        classes: logits of a full answer, C
        precision: fp16 | fp32 of the k logits and of r
        top_k: how many are kept, k
        temperature: T

    >>> half = TopLogits(4, "fp32", top_k=2, temperature=1.0)
    >>> half.rounded(torch.tensor([[1.0, 5.0, 3.0, 1.0]]))  # both others are 1 already
    tensor([[1., 5., 3., 1.]])
    >>> half.rounded(torch.tensor([[0.0, 5.0, 3.0, 2.0]])).exp()[0, [0, 3]]  # (1 + e²) / 2 each
    tensor([4.1945, 4.1945])
    """

    classes: int
    precision: Precision
    top_k: int
    temperature: float

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the words in a row."""
        return _WORD

    @property
    def width(self) -> int:
        """Words in a row."""
        return self._words + self.top_k * self._places.itemsize // _WORD.itemsize

    def pack(self, logits: Float[Tensor, "n classes"]) -> tuple[NDArray[Any], Float[Tensor, "n numbers"]]:
        """Rows for the file, and the numbers in them that have to be finite."""
        values, places = (tensor.cpu() for tensor in self._select(logits))
        columns = (values.numpy().astype(_NUMPY[self.precision]), places.numpy().astype(self._places))
        return np.concatenate([column.view(_WORD) for column in columns], axis=1), values

    def unpack(self, rows: NDArray[Any]) -> Float[Tensor, "n classes"]:
        """The logits that rows of the file stand for; 0 for a row of zeros."""
        values = rows[:, : self._words].copy().view(_NUMPY[self.precision])
        places = rows[:, self._words :].copy().view(self._places)
        return self._decode(torch.from_numpy(values), torch.from_numpy(places.astype(np.int64)))

    def rounded(self, logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """What is read of these logits once they are written; on their own device."""
        return self._decode(*self._select(logits))

    @property
    def _places(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype("<u2") if self.classes <= 1 << 16 else np.dtype("<u4")

    @property
    def _words(self) -> int:
        """Words of the k logits and the level."""
        return (self.top_k + 1) * _NUMPY[self.precision].itemsize // _WORD.itemsize

    def _select(
        self, logits: Float[Tensor, "n classes"]
    ) -> tuple[Float[Tensor, "n numbers"], Int[Tensor, "n top_k"]]:
        """The k largest logits and the level `[N, k + 1]`, rounded, and the classes of the k; ties go to the first."""
        # A stable sort, not topk: which of equal logits it takes is not defined, and bf16 teachers have many.
        ordered, places = full_precision(logits).sort(dim=1, descending=True, stable=True)
        rest = ordered[:, self.top_k :]
        level = self.temperature * (
            torch.logsumexp(rest / self.temperature, dim=1) - math.log(self.classes - self.top_k)
        )
        level = torch.minimum(level, rest[:, 0])  # an error in the last digit may not change an order
        faulty = ~ordered[:, 0].isfinite()  # NaN and inf are sorted first; of −inf alone the first is −inf
        level = level.masked_fill(faulty, torch.nan)
        values = torch.cat([ordered[:, : self.top_k], level[:, None]], dim=1)
        return values.to(_TORCH[self.precision]), places[:, : self.top_k]

    def _decode(
        self, values: Float[Tensor, "n numbers"], places: Int[Tensor, "n top_k"]
    ) -> Float[Tensor, "n classes"]:
        """The k logits at their classes, the level at all others."""
        level = values[:, -1:].repeat(1, self.classes)
        return level.scatter_(1, places, values[:, :-1])


Packing = AllLogits | TopLogits
"""From logits `[N, C]` to rows of a file `[N, width]`, and back."""
