"""One part of the run that `kill_resume.py` kills: trains, says when it has begun, and dies where it is told to.

    python benchmarks/robustness/kill_resume_child.py PLAN.json

The plan names the run's folder, its teacher, its epochs, and perhaps a moment of saving with a number: the process
kills itself with SIGKILL the n-th time it comes there. `forget` leaves the optimiser out of what is restored.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from unixkd import run_files
from unixkd.config import AnswersConfig, DataConfig, MethodConfig, ModelConfig, RunConfig, TrainConfig
from unixkd.teacher.journal import Journal
from unixkd.teacher.store import AnswerStore
from unixkd.training import checkpoint, resume, run_folder
from unixkd.training.engine import Engine
from unixkd.training.run import run


def die(*_: object) -> None:
    """As if the power had been cut, as far as this process goes."""
    os.kill(os.getpid(), signal.SIGKILL)


def truncate(path: Path) -> None:
    """Leave half of a file."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def half_tensors(original: Callable[..., None], tensors: Any, path: Path) -> None:
    """The tensors are half written."""
    original(tensors, path)
    truncate(path)
    die()


def half_text(original: Callable[..., None], path: Path, text: str) -> None:
    """A file that is written whole or not at all is half written."""
    with run_files.aside(path) as temporary:
        temporary.write_text(text[: len(text) // 2])
        die()


def half_line(original: Callable[..., None], folder: Any, record: dict[str, Any]) -> None:
    """A line of the metrics is half written."""
    before = folder.metrics.stat().st_size if folder.metrics.exists() else 0
    original(folder, record)
    with folder.metrics.open("r+b") as file:
        file.truncate((before + folder.metrics.stat().st_size) // 2)
    die()


def half_removed(original: Callable[..., None], path: Path, *rest: Any, **options: Any) -> None:
    """A folder is half removed."""
    if Path(path).exists():
        next(Path(path).iterdir()).unlink()
        die()
    original(path, *rest, **options)


def torn_answers(
    original: Callable[..., None], store: AnswerStore, index: Any, view: Any, logits: Any
) -> None:
    """Answers are noted and written, but for the checksums of half of them."""
    original(store, index, view, logits)
    store._checks[store._rows(index, view)[::2]] = 0
    die()


@contextmanager
def unnamed(original: Callable[..., AbstractContextManager[Path]], path: Path) -> Iterator[Path]:
    """All is written beside its place."""
    with original(path) as temporary:
        yield temporary
        die()


@contextmanager
def named(original: Callable[..., AbstractContextManager[Path]], path: Path) -> Iterator[Path]:
    """All is written and in its place."""
    with original(path) as temporary:
        yield temporary
    die()


def before(original: Callable[..., None], *given: Any, **options: Any) -> None:
    """Nothing of it has happened yet."""
    die()


def after(original: Callable[..., None], *given: Any, **options: Any) -> None:
    """It has just happened."""
    original(*given, **options)
    die()


MOMENTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "tensors half written": (checkpoint, "save_file", half_tensors),
    "before the disk has them": (checkpoint, "sync", before),
    "before the checkpoint has its name": (checkpoint, "aside", unnamed),
    "when it has": (checkpoint, "aside", named),
    "an old one half removed": (shutil, "rmtree", half_removed),
    "before old journals go": (Journal, "prune", before),
    "before a new journal": (Journal, "begin", before),
    "a line half written": (run_folder.RunFolder, "append_metrics", half_line),
    "between a line and its checkpoint": (resume, "save", before),
    "the kept lines half written": (run_folder, "write", half_text),
    "answers noted, not written": (Journal, "append", after),
    "answers half written": (AnswerStore, "write", torn_answers),
}
"""Where a process can be killed while it saves: what is replaced, and what it does then."""


def arrange(moment: str, number: int) -> None:
    """Kill this process when it comes to a moment for the n-th time."""
    owner, name, doing = MOMENTS[moment]
    original, times = getattr(owner, name), 0

    @functools.wraps(original)
    def replaced(*given: Any, **options: Any) -> Any:
        nonlocal times
        times += 1
        return doing(original, *given, **options) if times == number else original(*given, **options)

    setattr(owner, name, replaced)


def say_when_begun() -> None:
    """Print a line after the first step."""
    original = Engine.step

    def step(engine: Engine, *given: Any) -> Any:
        result = original(engine, *given)
        if Engine.step is step:
            Engine.step = original  # type: ignore[method-assign]
            print("begun", flush=True)
        return result

    Engine.step = step  # type: ignore[method-assign]


def config(folder: Path, teacher: str | None, epochs: int) -> RunConfig:
    """The run: as much to save as a run can have; without a teacher, the teacher's own."""
    data = DataConfig("digits", limit=256)
    # Not what a probe finds faster today: it could find another precision for the run left alone.
    same = {"precision": "fp32", "teacher_precision": "fp32", "threads": 1}
    train = TrainConfig(epochs, 32, "adamw", 1e-3, ema_decay=0.9, **same)  # type: ignore[arg-type]
    if teacher is None:
        method = MethodConfig("student-alone")
        return RunConfig(ModelConfig("resnet14"), None, method, data=data, train=train)
    answers = AnswersConfig(str(folder.with_name(f"{folder.name}.answers")))
    method = MethodConfig("stale", keep=0.75)
    return RunConfig(
        ModelConfig("resnet8"), ModelConfig(teacher), method, data=data, answers=answers, train=train
    )


def main() -> int:
    """Train what is left of the run."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    say_when_begun()
    if plan.get("moment"):
        arrange(plan["moment"], plan["number"])
    if plan.get("forget"):
        resume.unpack_optimizer = lambda *given: None  # type: ignore[assignment]
    folder = Path(plan["folder"])
    run(config(folder, plan["teacher"], plan["epochs"]), folder, mode="resume")
    return 0


if __name__ == "__main__":
    sys.exit(main())
