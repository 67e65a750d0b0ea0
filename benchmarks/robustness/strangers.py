"""A run folder from a stranger: every file × every damage × every command that is given it, and the right verdict.

Each case damages one file of a teacher, a finished run with its export, an interrupted run with its stored answers, or
a comparison (`stranger_damages`), runs a command on it in a process of its own, and judges what came of it by a rule
about figures (`stranger_verdicts`): an error that names the file where a figure would be wrong, the same output where
the file is not read. No traceback, no hang over 10 seconds, nothing written outside, no process left.

Target: no failure in at least 2,000 cases, and none in 100 of them as real commands.

    python benchmarks/robustness/strangers.py                     # some half an hour
    python benchmarks/robustness/strangers.py --commands report,export
    python benchmarks/robustness/strangers.py --quick             # 60 cases, 2 as real commands; nothing is kept
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from apart import Way, apart, as_real
from common import finish
from stranger_verdicts import COMMANDS, Case, Result, cases, make_set, run_case, whole_result

MOST = {"compare": 60, "report-many": 60, "again": 100, "report": 180}
"""Cases of the commands that take a second and more; of the others all up to 420."""


class Folders:
    """The whole folders, and what each command gives on them."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, root / "base"
        make_set(self.base)
        self.cases = self.chosen()
        self._whole: dict[str, Result] = {}

    def chosen(self) -> list[Case]:
        """The cases of a whole run, command by command."""
        chance, every = random.Random(1), cases(self.base)
        of = {name: [case for case in every if case.command == name] for name in COMMANDS}
        return [
            case
            for name, some in of.items()
            for case in chance.sample(some, min(len(some), MOST.get(name, 420)))
        ]

    def sample(self, number: int, seed: int, commands: Sequence[str] = tuple(COMMANDS)) -> list[Case]:
        """Some of the cases, in their order."""
        of = [case for case in self.cases if case.command in commands]
        some = {*random.Random(seed).sample(of, min(number, len(of)))}
        return [case for case in of if case in some]

    def whole(self, name: str) -> Result:
        """What a command gives where nothing is damaged."""
        if name not in self._whole:
            result = whole_result(COMMANDS[name], self.base, self.root / "place")
            assert result.outcome.code == 0
            assert result.faults == []
            self._whole[name] = result
        return self._whole[name]

    def run(self, some: Sequence[Case], way: Way = apart) -> list[str]:
        """What is wrong with the outcomes of cases."""
        problems = []
        for case in some:
            result = run_case(case, self.base, self.root / "place", self.whole(case.command), way)
            problems += [f"{case}: {fault}" for fault in result.faults]
        return problems


def main() -> int:
    """Run the cases and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", default=",".join(COMMANDS), help="of these alone")
    parser.add_argument("--real", type=int, default=100, help="of the cases, so many again as real commands")
    parser.add_argument("--quick", action="store_true", help="60 cases, 2 as real commands; no result file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unixkd-strangers-") as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        figures = run_all(Folders(Path(name) / "set"), options)
    passed = not figures["failures"] and (options.quick or figures["cases"] >= 2000)
    target = "no failure in at least 2,000 cases, and in 100 of them as real commands"
    partial = options.quick or options.commands != ",".join(COMMANDS)
    return finish("strangers", figures, target=target, passed=passed, quick=partial)


def run_all(folders: Folders, options: argparse.Namespace) -> dict[str, Any]:
    """Run the cases that the options ask for, showing failures; how many of each command there were."""
    commands = options.commands.split(",")
    some = folders.sample(60 if options.quick else len(folders.cases), 0, commands)
    real = folders.sample(2 if options.quick else options.real, 3, commands)
    problems = []
    for name in commands:
        found = folders.run([case for case in some if case.command == name])
        found += folders.run([case for case in real if case.command == name], as_real)
        problems += found
        print(f"{name}: {len(found)} failures", *found, sep="\n", flush=True)
    return {
        "cases": len(some),
        "as_commands": len(real),
        "commands": dict(Counter(case.command for case in some)),
        "failures": problems,
    }


if __name__ == "__main__":
    sys.exit(main())
