"""The whole queue for a GPU: does it work, how fast is each kind of step, and the paper's table as far as time goes.

Needs nothing but Python with the packages in `README.md`; unixkd need not be installed. `stages.py` runs the stages one
after the other, each in a process of its own; the same command goes on where the last one stopped.

    python benchmarks/gpu/all.py --hours 1 --root CIFAR100 --out runs/gpu    # a GPU
    python benchmarks/gpu/all.py --quick                                     # a CPU, tiny sizes, 2 minutes

Exit codes: 0 all is done; 75 something is left; 1 a stage failed (the others went on), or there is no GPU.
Target: no stage fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SEARCHED = sys.path[1:]
"""Where Python imports from by itself."""
sys.path[:0] = [str(ROOT / "src"), str(HERE.parent / "lib")]

import warm  # noqa: E402
from stages import MINUTES, NO_LIMIT, Queue, Stage, exit_code, start_process, table  # noqa: E402

TABLE = ("kd", "unix", "unix-random")
"""The paper's contenders, and the control without uncertainty."""
AT_ONCE = 8
SPEED = {"check": 3, "single": 4, "side_by_side": 2, "stored": 2, "ema": 2, "photos": 4, "compile": 6}
"""Kinds of `speed.py`, and the minutes that each may take; none of this has been timed on a GPU."""
TESTS = 4
LEAST_TABLE = 5
"""Minutes below which the table is not gone on with: reading the data takes half of one, a checkpoint some seconds."""


def summarise_check(kind: dict[str, Any]) -> str:
    """How many captured runs were the eager ones."""
    passed = sum(each.get("passed", False) for each in kind.values())
    same = sum(each.get("equal", False) for each in kind.values())
    return f"{passed} of {len(kind)} as eager, {same} bit for bit"


def summarise_timing(kind: dict[str, Any]) -> str:
    """The first case's milliseconds per step."""
    first = next(each for each in kind.values() if "contenders" in each)
    times = (f"{name} {each['ms_per_step']:.3g}" for name, each in first["contenders"].items())
    return ", ".join(times) + " ms"


def summarise_photos(kind: dict[str, Any]) -> str:
    """Milliseconds per captured step, for each way of holding the photos."""
    ((_, case),) = kind.items()
    times = {
        name.removesuffix("_graph"): each["ms_per_step"]
        for name, each in case["contenders"].items()
        if name.endswith("_graph")
    }
    return ", ".join(f"{name} {ms:.3g}" for name, ms in times.items()) + " ms"


def summarise_table(figures: dict[str, Any]) -> str:
    """How far the table is."""
    runs = sum(sum(contenders.values()) for contenders in figures["finished"].values())
    return f"{runs} runs finished, {figures['left']} left"


def speed_stage(kind: str, minutes: float, out: Path, quick: bool) -> Stage:
    """A kind of `speed.py`; all kinds share their folder."""
    words = [sys.executable, str(HERE / "speed.py"), "--kinds", kind, "--out", str(out / "speed")]
    summary = {"check": summarise_check, "photos": summarise_photos}.get(kind, summarise_timing)
    return Stage(
        kind,
        (*words, "--minutes", MINUTES, *(["--quick"] if quick else [])),
        minutes,
        least=minutes / 4,  # a part of its cases is measured then
        summary=lambda figures: summary(figures[kind]),
        keep=lambda figures: {
            name: each for name, each in figures.items() if name not in SPEED or name == kind
        },
    )


def plan(out: Path, root: str | None, quick: bool) -> list[Stage]:
    """The stages, in their order."""
    # Without pyproject.toml's options, which want pytest-xdist; a few tests of each kind show that the command works.
    chosen = (
        ["-m", "not gpu", "-k", "trainer or disk or found or (captured and adamw)"]
        if quick
        else ["-m", "gpu"]
    )
    pytest = ["-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    tests = (
        sys.executable,
        *pytest,
        "-c",
        str(ROOT / "pyproject.toml"),
        str(ROOT / "tests" / "gpu"),
        *chosen,
    )
    script = [sys.executable, str(HERE / "full_scale.py"), "--out", str(out / "table"), "--minutes", MINUTES]
    pairs = ["--pairs", "resnet56-resnet20", "--quick"] if quick else ["--pairs", "all"]
    data = [] if root is None else ["--root", str(Path(root).expanduser().resolve())]
    compared = (*script, *pairs, "--contenders", *TABLE, "--at-once", str(AT_ONCE), *data)
    missing = "" if quick or root else "no images: give --root or set UNIXKD_CIFAR100"
    return [
        Stage("tests", tests, TESTS),
        *(speed_stage(kind, minutes, out, quick) for kind, minutes in SPEED.items()),
        Stage("table", compared, NO_LIMIT, LEAST_TABLE, summarise_table, missing),
    ]


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0, help="after which all has ended (default: 1)")
    parser.add_argument(
        "--root", default=os.environ.get("UNIXKD_CIFAR100"), help="folder with CIFAR-100, for the table"
    )
    parser.add_argument("--out", type=Path, help="folder of all that is found (default: runs/gpu)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes of everything on a CPU: does it run?"
    )
    return parser.parse_args()


def main() -> int:
    """Run the queue; exit codes as above."""
    options = parse()
    import torch

    if not options.quick and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is available here; --quick tries the queue on a CPU")
    out = options.out or (Path(tempfile.mkdtemp(prefix="unixkd-gpu-")) if options.quick else Path("runs/gpu"))
    out = out.resolve()
    searched = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.quick else {}
    start = start_process
    if options.quick:
        warm.import_shared()
        start = partial(warm.Copy, searched=SEARCHED)
    queue = Queue(out, 3600 * options.hours, {**os.environ, "PYTHONPATH": searched, **hidden}, start=start)
    queue.listen()
    stages = plan(out, options.root, options.quick)
    outcomes = queue.work(stages)
    print(table(stages, outcomes))
    print(f"all of it is in {out}")
    from common import finish

    code = exit_code(outcomes)
    figures = {name: asdict(outcome) for name, outcome in outcomes.items()}
    for each in figures.values():
        del each["command"], each["log"]  # paths of this machine
    finish("gpu_queue", {"stages": figures}, target="no stage fails", passed=code != 1, quick=options.quick)
    return code


if __name__ == "__main__":
    sys.exit(main())
