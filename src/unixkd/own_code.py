"""`FILE.py:NAME`: a network of the user's own, told from other names and looked for; imports no torch.

Such a file is Python, and building the network runs it. So it has to be named by the user, on the command line or in
a call: what a run folder, a checkpoint or a file of options says about code is never run.
"""

from __future__ import annotations

import re
from pathlib import Path

from unixkd.errors import UsageError

_NAME = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


def is_code(name: str) -> bool:
    """Whether a name means a class or function in a Python file.

    >>> is_code("nets/mine.py:Net"), is_code("timm:resnet18"), is_code("mine.py")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None


def parts_of(name: str) -> tuple[Path, str]:
    """The file and the name in it; nothing is read.

    Raises:
        UsageError: it is no such name

    >>> parts_of("nets/mine.py:Net")
    (PosixPath('nets/mine.py'), 'Net')
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"'{name}' names no code: give FILE.py:NAME, a file and the class in it")
    return Path(match[1]), match[2]


def check_code(name: str) -> None:
    """Raise where the file is not there; it is not run.

    Raises:
        UsageError: no such name, or no such file
    """
    file, _ = parts_of(name)
    if not file.is_file():
        raise UsageError(f"there is no file '{file}' (named by '{name}')")
