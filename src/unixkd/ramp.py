"""How a method's numbers change over a run: k, b, w and the size of images, everything at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from unixkd.errors import UserError, unknown_name
from unixkd.mixing import Curve
from unixkd.resizing import check_share
from unixkd.schedules import cosine
from unixkd.scoring_pass import AS_PUBLISHED
from unixkd.selection import check_shares, is_last


class Changing(Protocol):
    """What of a method a ramp reads; it is a dataclass, see `unixkd.methods`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    @property
    def keep(self) -> float: ...

    @property
    def size(self) -> float: ...

    @property
    def curve(self) -> Curve | None: ...


T = TypeVar("T", bound=Changing)

_ALL: dict[str, Any] = {
    "keep": 1.0,
    "size": 1.0,
    "scorer": None,
    "scoring": AS_PUBLISHED,
    "sampling": None,
    "curve": None,
    "mixes_answers": False,
}
"""Plain training on everything."""


@dataclass(frozen=True)
class Ramp:
    """From a method's own values at a run's start to these at its end; they stay within an epoch.

    Args:
        keep: share k/N at the end, in (0, 1]; None: it stays
        mix_from: b as a share of the batch at the end; None: it stays
        steepness: w at the end; None: it stays
        shape: linear | cosine
        full_last: in this last share of the run every image is kept, whole, pure and unscored, in [0, 1]
        size: share of the image's side at the end, in (0, 1]; None: it stays
    """

    keep: float | None = None
    mix_from: float | None = None
    steepness: float | None = None
    shape: Literal["linear", "cosine"] = "linear"
    full_last: float = 0.0
    size: float | None = None

    def __post_init__(self) -> None:
        check_shares(full_last=self.full_last, **({} if self.keep is None else {"keep": self.keep}))
        if self.size is not None:
            check_share("size_end", self.size)
        if self.shape not in ("linear", "cosine"):
            raise unknown_name("ramp", self.shape, ("linear", "cosine"))

    @property
    def within_batch(self) -> bool:
        """Whether it changes whom of a batch is kept and how these are mixed."""
        return (self.keep, self.mix_from, self.steepness, self.full_last) != (None, None, None, 0.0)

    def applied(self, method: T, progress: float) -> T:
        """The method with the values of this point of a run, in [0, 1)."""
        if is_last(progress, self.full_last):
            return replace(method, **_ALL, ramp=None)
        way = 1 - cosine(1.0, 0.0, progress) if self.shape == "cosine" else progress
        keep = method.keep if self.keep is None else method.keep + way * (self.keep - method.keep)
        size = method.size if self.size is None else method.size + way * (self.size - method.size)
        return replace(method, keep=keep, size=size, curve=self.curve(method, way), ramp=None)

    def curve(self, method: Changing, way: float) -> Curve | None:
        """The mixing curve so much of the way to its end."""
        wanted = {"mix_from": self.mix_from, "steepness": self.steepness}
        ends = {name: end for name, end in wanted.items() if end is not None}
        if not ends:
            return method.curve
        changed = {}
        for name, end in ends.items():
            start = getattr(method.curve, name, None)
            if start is None:
                raise UserError(f"method {method.name}: its mixing curve has no {name} that could change")
            changed[name] = start + way * (end - start)
        return replace(method.curve, **changed)  # type: ignore[type-var]
