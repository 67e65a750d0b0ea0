"""Whether student and teacher are apart: what they share would be frozen, or change its mode, in both."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unixkd.errors import UserError
from unixkd.method.network import unwrap


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Raise where freezing the teacher would freeze a part of the student, or change how it runs."""
    student = unwrap(student)
    if unwrap(teacher) is student:
        raise UserError("student and teacher are the same module; a student must be trained, a teacher not")
    if names := shared_parts(student, teacher):
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise UserError(
            f"the teacher shares {', '.join(names[:4])}{more} with the student, and freezing it would freeze them "
            "there: give the teacher a copy, such as copy.deepcopy(teacher)"
        )


def shared_parts(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Names in the student of modules and parameters that the teacher has too, each once, outermost first.

    Modules that hold no parameters and do the same in both modes, such as an activation, may be shared.

    >>> head = nn.Linear(4, 2)
    >>> shared_parts(nn.Sequential(nn.Linear(3, 4), head), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), head))
    ['1']
    """
    theirs = set(map(id, teacher.modules()))
    names: list[str] = []
    for name, module in student.named_modules():
        known = any(not outer or name.startswith(f"{outer}.") for outer in names)
        if not known and id(module) in theirs and (has_parameters(module) or minds_mode(module)):
            names.append(name)
    if "" in names:
        return ["all its modules"]
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for parameter in teacher.parameters():
        if (place := span_of(parameter)) is not None:
            spans[place[0]].append(place[1:])
    theirs = set(map(id, teacher.parameters()))
    for name, parameter in student.named_parameters(remove_duplicate=False):
        if any(name.startswith(f"{outer}.") for outer in names):
            continue
        storage, start, stop = span_of(parameter) or (0, 0, 0)
        overlaps = any(start < end and begin < stop for begin, end in spans.get(storage, ()))
        if overlaps or id(parameter) in theirs:
            names.append(name)
    return names


def has_parameters(module: nn.Module) -> bool:
    """Whether it, or a part of it, holds parameters."""
    return next(module.parameters(), None) is not None


def minds_mode(module: nn.Module) -> bool:
    """Whether its forward looks at its mode, as dropout's and BatchNorm's do; what has no code to look at may."""
    code = getattr(type(module).forward, "__code__", None)
    return code is None or "training" in code.co_names


def span_of(parameter: Tensor) -> tuple[int, int, int] | None:
    """The storage that a parameter lies in, its first byte there and the one after its last; None: not to be known."""
    if is_lazy(parameter) or type(parameter.data) is not Tensor or parameter.is_meta or not parameter.numel():
        return None
    storage = parameter.untyped_storage().data_ptr()
    extent = 1 + sum((n - 1) * step for n, step in zip(parameter.shape, parameter.stride(), strict=True))
    start, size = parameter.storage_offset(), parameter.element_size()
    return (storage, int(start * size), int((start + extent) * size)) if storage else None
