"""Model names that mean files: `FILE.py:NAME`, code of the user's own, and `transformers:FOLDER`; imports no torch.

Code is run when its network is built. So it has to be named by the user, on the command line or in a call: what a run
folder, a checkpoint or a file of options says about code is never run.
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


def check_folder(name: str) -> None:
    """Raise where `transformers:PATH_OR_ID` means a folder that is not there: what is no ORGANISATION/MODEL.

    Raises:
        UsageError: names the folder

    >>> check_folder("transformers:google/vit-base-patch16-224")
    """
    path = name.partition(":")[2]
    is_path = path.startswith((".", "~", "/")) or "\\" in path or path.count("/") > 1
    if not path or (is_path and not Path(path).is_dir()):
        raise UsageError(f"'{name}': there is no folder '{path}' with a network of save_pretrained")
