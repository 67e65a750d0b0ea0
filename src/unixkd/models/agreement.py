"""Whether a network was made for the data's channels and classes; every mistake names both sides."""

from __future__ import annotations

import logging

from unixkd.errors import UserError

_log = logging.getLogger("unixkd")


def check_channels(source: str, own: int, data: int) -> None:
    """Raise where a network takes other channels than the data have."""
    if own != data:
        raise UserError(f"'{source}' was trained on {own}-channel images, the data have {data} channels")


def check_classes(source: str, own: int, data: int, role: str) -> None:
    """Raise where a network has another number of classes than the data."""
    if own != data:
        raise UserError(
            f"{role} '{source}' has {own} classes, the data have {data}: take one trained on these classes"
        )


def check_published_names(source: str, own: tuple[str, ...] | None, data: tuple[str, ...] | None) -> None:
    """Other names are only a warning (a data set may have its own), the same names in another order are not."""
    if own is None or data is None or own == data:
        return
    if any(name in own and own.index(name) != number for number, name in enumerate(data)):
        check_class_names(source, own, data)
    number = next(number for number, pair in enumerate(zip(own, data, strict=True)) if pair[0] != pair[1])
    _log.warning(
        "'%s' knows the classes by other names (class %d is '%s' there, '%s' in the data): taken to be in this order",
        *(source, number, own[number], data[number]),
    )


def check_class_names(source: str, own: tuple[str, ...] | None, data: tuple[str, ...] | None) -> None:
    """Raise where a network knows the classes by other names, or in another order; None: not known."""
    if own is None or data is None or own == data:
        return
    pairs = enumerate(zip(own, data, strict=True))
    differences = [f"class {i} is '{a}' there, '{b}' in the data" for i, (a, b) in pairs if a != b]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    order = "in another order" if sorted(own) == sorted(data) else "by other names"
    raise UserError(
        f"'{source}' knows the classes {order}: {'; '.join(differences[:3])}{more}. "
        "Its logits would mean other classes: use the data it was trained on, or rename the classes"
    )
