"""Runs `unixkd` with the arguments given and stops it where the first training step begins; see `startup.py`.

The last line printed is JSON: CPU seconds since the process began, of all threads, when the command's modules were
imported and when the first step began.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from unixkd.cli import main

seconds: dict[str, float] = {}


class AfterImport(MetaPathFinder):
    """Calls a function with a module as soon as it is imported, by whom and when ever that is."""

    def __init__(self, module: str, then: Callable[[ModuleType], None]) -> None:
        self.module, self.then = module, then

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, with a loader that also calls the function."""
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_call(module: ModuleType) -> None:
            load(module)
            self.then(module)

        spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec


def note_imports(commands: ModuleType) -> None:
    """All that the command needs is imported."""
    seconds["imports"] = time.process_time()


def stop_at_step(engine: ModuleType) -> None:
    """Let the first step print the seconds and end the process."""

    def first_step(*_: object) -> None:
        seconds["first_step"] = time.process_time()
        print(json.dumps(seconds), flush=True)
        os._exit(0)

    engine.Engine.step = first_step


if __name__ == "__main__":
    sys.meta_path[:0] = [
        AfterImport("unixkd.cli.handlers", note_imports),
        AfterImport("unixkd.training.engine", stop_at_step),
    ]
    sys.exit(main.main(sys.argv[1:]))
