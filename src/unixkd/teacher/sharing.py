"""Whether student and teacher are apart: what they share would be frozen, or change its mode, in both."""

from __future__ import annotations

from torch import nn

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
    """Names in the student of modules and parameters that the teacher has too, without the parts of those named.

    Modules without parameters that do the same in both modes, such as an activation, may be shared.
    """
    theirs = set(teacher.modules())
    names: list[str] = []
    for name, module in student.named_modules():
        if module in theirs and not inside(name, names) and (list(module.parameters()) or minds_mode(module)):
            names.append(name)
    stored = {place for parameter in teacher.parameters() for place in places(parameter)}
    for name, parameter in student.named_parameters(remove_duplicate=False):
        if not inside(name, names) and not stored.isdisjoint(places(parameter)):
            names.append(name)
    return [name or "all its modules" for name in names]


def inside(name: str, outer: list[str]) -> bool:
    """Whether a part belongs to one of these modules, of which "" is the whole."""
    return any(not each or name.startswith(f"{each}.") for each in outer)


def minds_mode(module: nn.Module) -> bool:
    """Whether its forward looks at its mode, as dropout's and BatchNorm's do; what has no code to look at may."""
    code = getattr(type(module).forward, "__code__", None)
    return code is None or "training" in code.co_names


def places(parameter: nn.Parameter) -> set[int]:
    """What says that two parameters are one: the object, and the memory that a plain one lies in."""
    if type(parameter) is not nn.Parameter:  # sharded, or not initialised
        return {id(parameter)}
    return {id(parameter), parameter.untyped_storage().data_ptr() or id(parameter)}  # 0: on no device
