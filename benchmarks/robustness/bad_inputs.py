"""Bad inputs by the thousand: broken files, wrong values, nonsense on the command line. None may end in a traceback.

Every case damages one thing of a small working set (a YAML file, a checkpoint, a run's files, a weights file, images,
a Parquet file, a store of answers) or makes up options, and runs a command on it, in this process or (some) as a real
one. Allowed is what the exit code says: 0 done, 1 a clear error, 2 bad usage, 75 stopped. A traceback, a hang, another
code, or a finished run that is not whole afterwards counts as a failure and is printed with its seed.

Target: no failure in at least 1,000 cases, 50 of them real commands.

    python benchmarks/robustness/bad_inputs.py                  # some ten minutes
    python benchmarks/robustness/bad_inputs.py --cases 1 --first 17 --seed 3      # one case again
    python benchmarks/robustness/bad_inputs.py --quick          # 40 cases; nothing is kept
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

from bad_input_kinds import KINDS, Case
from common import finish

ALLOWED = (0, 1, 2, 75)
SECONDS = 60
"""After which a case hangs."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: its exit code, what it wrote to stderr, what was wrong with that, what it wrote to stdout."""

    code: int | None
    error: str
    fault: str | None
    said: str = ""


class Hang(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `Hang` after so many seconds."""

    def ring(number: int, frame: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_process(words: list[str], seconds: float = SECONDS) -> Outcome:
    """Run a command here; it may take so many seconds."""
    from unixkd.cli import main as cli_main

    said, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(error), alarm(seconds):
            code = cli_main.main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Hang:
        return Outcome(None, error.getvalue(), "it hangs")
    except BaseException:
        return Outcome(None, error.getvalue(), traceback.format_exc(limit=-6))
    return judged(code, error.getvalue(), said.getvalue())


def as_command(words: list[str]) -> Outcome:
    """Run a command as a user does."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "unixkd", *words],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, "", "it hangs")
    return judged(done.returncode, done.stderr, done.stdout)


def judged(code: int, error: str, said: str = "") -> Outcome:
    """An outcome with what is wrong with it."""
    fault = None
    if code not in ALLOWED:
        fault = f"exit code {code}"
    elif "Traceback" in error:
        fault = "a traceback"
    elif code in (1, 2) and not error.strip():
        fault = "an error without a word"
    return Outcome(code, error, fault, said)


def whole(folder: Path) -> str | None:
    """What is wrong with a finished run's folder that no case was to touch."""
    from unixkd.models import load_model

    try:
        load_model(folder)
        yaml.safe_load((folder / "run.yaml").read_text())
    except Exception as error:
        return f"{folder} is not whole any more: {error}"
    return None


def run_case(number: int, seed: int, base: Path, real: bool) -> tuple[Case, Outcome]:
    """Damage, run, judge."""
    chance = random.Random(f"{seed}-{number}")
    kind = list(KINDS)[number % len(KINDS)]
    with tempfile.TemporaryDirectory(prefix="unixkd-case-") as name:
        place = Path(name)
        case = KINDS[kind](chance, base, place)
        outcome = (as_command if real else in_process)(case.words)
        if outcome.fault is None and case.untouched is not None and (broken := whole(case.untouched)):
            outcome = Outcome(outcome.code, outcome.error, broken)
        if outcome.fault is None and (place / "pwned").exists():
            outcome = Outcome(outcome.code, outcome.error, "a file executed something")
    return case, outcome


def prepare(base: Path) -> None:
    """The working set: a teacher, a run with stored answers, images in folders, a Parquet file."""
    from PIL import Image

    small = ["--data.limit", "40", "--train.batch_size", "16", "--train.precision", "fp32"]
    train = ["train", "--model", "resnet8", *small, "--epochs", "2", "--out", str(base / "teacher")]
    expect_done(in_process(train))
    words = [
        "--teacher",
        str(base / "teacher"),
        "--student",
        "resnet8",
        "--method",
        "kd",
        *small,
        "--epochs",
        "2",
    ]
    words += ["--train.teacher_precision", "fp32", "--answers.path", str(base / "answers")]
    expect_done(in_process(["distill", *words, "--out", str(base / "run")]))
    chance = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (base / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = chance.integers(0, 256, (10, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(
                    base / "images" / part / name / f"{i}.{'png' if i % 2 else 'jpg'}"
                )
    write_parquet(base / "table" / "train-0.parquet", chance, 12)
    write_parquet(base / "table" / "test-0.parquet", chance, 4)


def expect_done(outcome: Outcome) -> None:
    """Stop where the working set cannot be made."""
    if outcome.code != 0:
        raise SystemExit(f"the working set cannot be made: {outcome.fault or outcome.error}")


def write_parquet(path: Path, chance: np.random.Generator, count: int) -> None:
    """Images as PNG bytes and labels, as the Hub has them."""
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    path.parent.mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": i % 2})
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def main() -> int:
    """Run the cases and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--commands", type=int, default=50, help="of the cases, so many as real commands")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="40 cases; no result file")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.commands = 40, 2
    with tempfile.TemporaryDirectory(prefix="unixkd-bad-inputs-") as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        figures = run_cases(options, Path(name))
    passed = not figures["failures"] and (options.quick or figures["cases"] >= 1000)
    target = "no traceback, hang or damaged run in at least 1,000 cases, 50 of them real commands"
    return finish(
        "bad_inputs", figures, target=target, passed=passed, quick=options.quick or options.cases < 1000
    )


def run_cases(options: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Run the cases that the options ask for, showing failures; how many of each kind there were and how they ended."""
    prepare(base)
    kinds: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    failures = []
    every = max(1, options.cases // max(1, options.commands)) if options.commands else options.cases + 1
    real = 0
    for number in range(options.first, options.first + options.cases):
        command = options.commands > 0 and number % every == 0 and real < options.commands
        real += command
        case, outcome = run_case(number, options.seed, base, command)
        kinds[case.kind] += 1
        codes[str(outcome.code)] += 1
        if outcome.fault is not None:
            failures.append(
                {"number": number, "kind": case.kind, "words": case.words, "fault": outcome.fault}
            )
            print(
                f"case {number} (seed {options.seed}, {case.kind}): {' '.join(case.words)}\n{case.what}\n"
                f"{outcome.fault}"
            )
    return {
        "seed": options.seed,
        "cases": sum(kinds.values()),
        "as_commands": real,
        "kinds": dict(kinds),
        "exit_codes": dict(codes),
        "failures": failures,
    }


if __name__ == "__main__":
    sys.exit(main())
