"""Where a run's figures go besides its own files: TensorBoard or Weights & Biases. No run depends on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unixkd.config import LogConfig, flatten
from unixkd.errors import missing_extra
from unixkd.run_files import write

Record = dict[str, Any]

GROUP = {
    **dict.fromkeys(("step", "lr", "loss", "loss_parts"), "train"),
    **dict.fromkeys(("accuracy", "agreement", "calibration_error"), "evaluation"),
}
"""Where figures are shown that have no group of their own in metrics.jsonl."""

WANDB_SECONDS = 60
"""How long the end of a run waits for an upload; what is not uploaded by then stays in the run folder."""


class TensorBoard:
    """Event files; when a run goes on, what they hold of epochs that are run again is hidden."""

    def __init__(self, folder: Path, past: list[Record], settings: Record) -> None:
        from torch.utils.tensorboard import SummaryWriter

        begun = any(folder.glob("events.out.tfevents.*"))
        self.settings = {  # scalars, by which the table of hyper-parameters can sort, and texts
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in settings.items()
        }
        self.writer = SummaryWriter(str(folder), purge_step=len(past) + 1 if begun else None)
        for record in [] if begun else past:
            self.epoch(record)

    def epoch(self, record: Record) -> None:
        """Add a point to every curve."""
        for name, value in named(record).items():
            self.writer.add_scalar(name, value, record["epoch"])
        self.writer.flush()

    def finish(self, summary: Record | None) -> None:
        """Add the configuration and the result to the table of hyper-parameters."""
        if summary is not None:
            self.writer.add_hparams(self.settings, results(summary), run_name=".")
        self.writer.close()


class WandB:
    """A run of Weights & Biases; `WANDB_MODE` and its other variables say where it goes."""

    def __init__(
        self, folder: Path, past: list[Record], settings: Record, project: str, note: Callable[[str], None]
    ) -> None:
        import wandb

        identity = folder / "wandb-id"
        begun = identity.exists()
        wandb.setup(settings=wandb.Settings(silent=True))  # asks no question: nobody might be there to answer
        self.run = wandb.init(
            project=project,
            name=folder.absolute().parent.name,
            dir=str(folder),
            id=identity.read_text() if begun else None,
            resume="allow",
            reinit="create_new",  # a process may make several runs
            config=settings,
            settings=wandb.Settings(
                console="off", silent=True, finish_timeout=WANDB_SECONDS, finish_timeout_raises=True
            ),
        )
        write(identity, self.run.id)
        if self.run.url:
            note(f"Weights & Biases: {self.run.url}")
        for record in [] if begun else past:
            self.epoch(record)

    def epoch(self, record: Record) -> None:
        """Log the epoch's figures; W&B leaves out epochs that it has."""
        self.run.log(named(record), step=record["epoch"])

    def finish(self, summary: Record | None) -> None:
        """Add the result to the run's summary and wait for it to be sent."""
        if summary is not None:
            self.run.summary.update(results(summary))
        self.run.finish(exit_code=0 if summary is not None else 1)


@dataclass
class Loggers:
    """Several loggers as one that cannot fail: the first error of one is a warning, and its end."""

    note: Callable[[str], None] = print
    active: dict[str, TensorBoard | WandB] = field(default_factory=dict)

    def epoch(self, record: Record) -> None:
        """Tell all of them an epoch's figures."""
        for name in list(self.active):
            with self.guarded(name):
                self.active[name].epoch(record)

    def finish(self, summary: Record | None) -> None:
        """Tell all of them the end."""
        for name in list(self.active):
            with self.guarded(name):
                self.active.pop(name).finish(summary)

    def close(self) -> None:
        """End those that were not told a summary."""
        self.finish(None)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Within, an error is a warning and the logger's end."""
        try:
            yield
        except Exception as error:
            self.active.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.note(f"warning: the log for {name} has failed, the run goes on without it ({reason})")


def check_installed(config: LogConfig) -> None:
    """Raise, before anything is done, where a logger's package is missing.

    Raises:
        UserError: names the package and how to install it
    """
    if config.tensorboard and find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "tensorboard", "logs for TensorBoard")
    if config.wandb and find_spec("wandb") is None:
        raise missing_extra("wandb", "wandb", "logs for Weights & Biases")


def open_loggers(
    config: LogConfig, folder: Path, metrics: Path, settings: Record, note: Callable[[str], None]
) -> Loggers:
    """The configured loggers, which write in `folder`, told of the epochs that are in `metrics` already."""
    loggers = Loggers(note)

    def add(name: str, make: Callable[[list[Record]], TensorBoard | WandB]) -> None:
        with loggers.guarded(name):
            folder.mkdir(exist_ok=True)
            loggers.active[name] = make([json.loads(line) for line in metrics.read_text().splitlines()])

    if config.tensorboard:
        add("TensorBoard", lambda past: TensorBoard(folder, past, settings))
    if project := config.wandb:
        add("Weights & Biases", lambda past: WandB(folder, past, settings, project, note))
    return loggers


def named(record: Record) -> Record:
    """An epoch's measured figures under names like train/loss, without histograms.

    >>> named({"epoch": 1, "loss": 0.5, "accuracy": None, "cost": None, "seconds": {"train": 2.0}})
    {'train/loss': 0.5, 'seconds/train': 2.0}
    """
    flat: Record = {}
    for key, value in record.items():
        name = f"{GROUP[key]}/{key}" if key in GROUP else key
        if isinstance(value, dict):
            flat |= {f"{name}/{inner}": one for inner, one in value.items() if inner != "histogram"}
        elif key in GROUP:
            flat[name] = value
    return {name: value for name, value in flat.items() if value is not None}


def results(summary: Record) -> Record:
    """The numbers of a summary under names like final/accuracy/last.

    >>> results({"method": "kd", "accuracy": {"last": 0.5, "teacher": None}})
    {'final/accuracy/last': 0.5}
    """
    numbers = {key: value for key, value in flatten(summary).items() if isinstance(value, int | float)}
    return {f"final/{key.replace('.', '/')}": value for key, value in numbers.items()}
