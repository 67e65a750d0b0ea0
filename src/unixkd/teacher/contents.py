"""What a store of teacher answers holds, and how many bytes that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unixkd.errors import UserError
from unixkd.teacher.packing import Packing, Precision, make_packing

SCHEMA, TOP_SCHEMA = 1, 2
"""Of stores of all logits and of the largest ones; raised whenever files of before would be read wrongly."""

LOGITS, CHECKS = "logits.bin", "checks.bin"
"""The files of numbers."""


@dataclass(frozen=True)
class Contents:
    """What a store holds.

    Args:
        key: whose answers to what, by named parts
        images: number of images
        views: number of views of each image
        classes: logits of an answer
        precision: fp16 | fp32
        top_k: how many of an answer's logits are kept, the largest (`TopLogits`); None: all
        temperature: at which the others weigh together what they did; of no account where all are kept

    Raises:
        UserError: a number is below 1, or keeping so few takes more room than keeping all

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

    def __post_init__(self) -> None:
        if min(self.images, self.views, self.classes) < 1:
            raise UserError(f"stored answers need at least one image, view and class, got {self}")
        if self.top_k is not None:
            self._check_top_k(self.top_k)

    @property
    def packing(self) -> Packing:
        """How an answer lies in the file."""
        return make_packing(self.classes, self.precision, self.top_k, self.temperature)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file of numbers."""
        rows, packing = self.images * self.views, self.packing
        return {LOGITS: rows * packing.width * packing.dtype.itemsize, CHECKS: rows * 4}

    @property
    def index(self) -> dict[str, Any]:
        """What the store's index says."""
        if self.top_k is not None:
            return {"schema": TOP_SCHEMA, **asdict(self)}
        parts = {name: part for name, part in asdict(self).items() if name not in ("top_k", "temperature")}
        return {"schema": SCHEMA, **parts}

    def _check_top_k(self, top_k: int) -> None:
        if not 1 <= top_k < self.classes:
            raise UserError(
                f"answers.top_k must be from 1 to {self.classes - 1} of {self.classes} classes, got {top_k}; "
                "leave it out to keep all logits"
            )
        if not self.temperature > 0:
            raise UserError(f"the temperature of stored answers must be above 0, got {self.temperature:g}")
        all_logits = make_packing(self.classes, self.precision, None, self.temperature)
        ours, full = (each.width * each.dtype.itemsize for each in (self.packing, all_logits))
        if ours > full:
            raise UserError(
                f"answers.top_k {top_k}: the {top_k} largest of {self.classes} logits with their classes take "
                f"{ours:,} bytes, all logits {full:,}: leave it out, or keep fewer"
            )

    def __str__(self) -> str:
        kept = "" if self.top_k is None else f"{self.top_k:,} of "
        return (
            f"{self.images:,} images × {self.views:,} views × {kept}{self.classes:,} classes as {self.precision} = "
            f"{format_bytes(self.sizes[LOGITS])} (plus checksums)"
        )


def format_bytes(count: int) -> str:
    """A number of bytes for people.

    >>> format_bytes(2_000_000_000_000), format_bytes(1_620_000_000), format_bytes(12)
    ('2.00 TB', '1.62 GB', '12 bytes')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
