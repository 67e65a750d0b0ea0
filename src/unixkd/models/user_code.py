"""A network of the user's own: the class or function `NAME` of `FILE.py`, which is run to get it."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from unixkd.errors import UserError, first_line, unknown_name
from unixkd.names import check_code, is_code, split_code


def create(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Run `FILE.py` and call `NAME(num_classes=..., in_channels=...)`; `in_channels` only where it is taken.

    Raises UsageError where the file or the name in it is not there, UserError where the file or the call fails or
    gives no module.
    """
    check_code(name)
    file, attribute = split_code(name)
    with _locating_errors(name, file), _importable_neighbours(file):
        module = _module(file)
        make = getattr(module, attribute, None)
        if not callable(make):
            names = [key for key, value in vars(module).items() if callable(value)]
            defined = [
                key for key in names if getattr(vars(module)[key], "__module__", "") == module.__name__
            ]
            raise unknown_name("network", name, [f"{file}:{key}" for key in defined])
        net = make(**_arguments(name, make, num_classes, in_channels))
    if not isinstance(net, nn.Module):
        raise UserError(f"{name} gives a {type(net).__name__}, not a torch.nn.Module")
    return net


def code_fingerprint(name: str) -> str:
    """SHA-256 of the code behind `FILE.py:NAME`: the file, those beside it that it imports, versions of packages.

    torch's version is no part of it, as its layers stay what they are.
    """
    file, attribute = split_code(name)
    main = file.resolve()
    files, packages = _sources(main)
    known = _distributions() if packages else {}
    versions = {
        p: sorted({importlib.metadata.version(d) for d in known[p]}) for p in sorted(packages & known.keys())
    }
    beside = {os.path.relpath(path, main.parent): path for path in files - {main}}
    digest = hashlib.sha256(repr((attribute, versions)).encode())
    for place, path in sorted({**beside, "": main}.items()):
        digest.update(repr((place, path.read_bytes())).encode())
    return digest.hexdigest()


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """What is installed, by the name of what is imported: takes a second."""
    return importlib.metadata.packages_distributions()


def _sources(main: Path) -> tuple[set[Path], set[str]]:
    """A file with those beside it that it and they import, wherever in their code, and the other packages."""
    files, others, waiting = set[Path](), {"torch", "unixkd", *sys.stdlib_module_names}, [main]
    known = frozenset(others)
    while waiting:
        files.add(path := waiting.pop())
        nodes = []
        with suppress(SyntaxError):  # of a file that is imported in vain
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
        for node in nodes:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            module = f"{node.module}." * bool(node.module) if isinstance(node, ast.ImportFrom) else ""
            level = node.level if isinstance(node, ast.ImportFrom) else 0
            base = path.parents[level - 1] if level else main.parent
            for alias in node.names:  # what is imported from a package may be a module too
                parts = (module + alias.name).split(".")
                places = [base.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
                found = [f for p in places for f in (p.with_suffix(".py"), p / "__init__.py") if f.is_file()]
                waiting += [file for file in found if file not in files]
                others |= set() if found else {parts[0]}
    return files, others - known


def _module(file: Path) -> ModuleType:
    """The file as a module; a file that has changed since is another one."""
    path = file.resolve()
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()[:16]
    unique = f"unixkd_own_{path.stem}_{digest}"  # never an installed package's name
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses look their module up while it is being run
    try:
        # So that initial weights are the same, whether the file was run before or not.
        with torch.random.fork_rng(devices=[]):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def _arguments(name: str, make: Callable[..., Any], num_classes: int, in_channels: int) -> dict[str, int]:
    """The arguments that a class or function takes: number of classes, and of channels where it has them."""
    both = {"num_classes": num_classes, "in_channels": in_channels}
    signature = inspect.signature(make)
    for arguments in (both, {"num_classes": num_classes}):
        with suppress(TypeError):
            signature.bind(**arguments)
            return arguments
    raise UserError(
        f"{name} has the signature {signature}, but is called as NAME(num_classes={num_classes}, "
        f"in_channels={in_channels}) or NAME(num_classes={num_classes}): give other parameters a default"
    )


@contextmanager
def _importable_neighbours(file: Path) -> Iterator[None]:
    """Within, the code can import files beside its own, as a script can."""
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have changed the path itself
            sys.path.remove(folder)


@contextmanager
def _locating_errors(name: str, file: Path) -> Iterator[None]:
    """Within, an error of the user's code becomes one line that says where in the file it was raised."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename or file}:{error.lineno or 1}: {error.msg} ({name})") from error
    except (Exception, SystemExit) as error:
        raise UserError(located(name, error)) from error


@contextmanager
def locating(*names: str) -> Iterator[None]:
    """Within, an error from the file of one of these networks becomes one line; all others stay what they are."""
    try:
        yield
    except (Exception, SystemExit) as error:
        own = [name for name in names if is_code(name) and _lines(name, error)]
        if isinstance(error, UserError) or not own:
            raise
        raise UserError(located(own[0], error)) from error


def located(name: str, error: BaseException) -> str:
    """An error in one line, for a network of the user's own with the line of its file that raised it."""
    what = f"{type(error).__name__}: {first_line(error)}"
    if not is_code(name):
        return f"{name}: {what}"
    lines = _lines(name, error)
    return f"{split_code(name)[0]}:{lines[-1]}: {what} ({name})" if lines else f"{name}: {what}"


def _lines(name: str, error: BaseException) -> list[int | None]:
    """Lines of a network's file that an error went through, the last one nearest to where it was raised."""
    file, frames = split_code(name)[0].resolve(), traceback.extract_tb(error.__traceback__)
    return [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
