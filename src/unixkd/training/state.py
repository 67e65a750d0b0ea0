"""What a run is made of and where it stands: data only. What is done with it is in `unixkd.training.run`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from unixkd.config import RunConfig
from unixkd.method.ledger import Ledger
from unixkd.models.card import PixelModel
from unixkd.run_files import RelativeCost
from unixkd.training.display import Display, Note
from unixkd.training.distributed.world import Agreement, World
from unixkd.training.engine import Engine
from unixkd.training.loggers import Loggers
from unixkd.training.predictions import Predictions
from unixkd.training.resolved import Resolved
from unixkd.training.run_folder import RunFolder
from unixkd.training.stepper import Stepper


@dataclass
class Run:
    """The data of a run; every helper of the trainer takes one.

    Args:
        name: shown with its events
        resolved: its configuration with nothing left open, and what it names
        agreement: lets all processes stop after the same step
        epoch: epochs that are finished
        done: steps taken of the next one
        seconds: spent on setup, training and evaluation
        rate: training images per second of the last epoch
        total: what all processes were charged, of several as of the end of the last epoch; None before the start
        answers: the teacher's on the evaluation images
        predictions: the student's after the last epoch; None before
        last_record: the last epoch's line of metrics.jsonl
        best_accuracy: of any epoch
    """

    name: str
    resolved: Resolved
    folder: RunFolder
    display: Display
    world: World
    stepper: Stepper
    loggers: Loggers
    agreement: Agreement
    epoch: int = 0
    done: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"setup": 0.0, "train": 0.0, "evaluate": 0.0})
    rate: float = 0.0
    total: Ledger = field(default_factory=lambda: Ledger(0, 0))
    answers: Predictions | None = None
    predictions: Predictions | None = None
    last_record: dict[str, Any] = field(default_factory=dict)
    best_accuracy: float | None = None

    @property
    def config(self) -> RunConfig:
        """The configuration, with nothing left to decide."""
        return self.resolved.config

    @property
    def device(self) -> torch.device:
        """Where steps run."""
        return self.resolved.device

    @property
    def engine(self) -> Engine:
        """What takes the steps."""
        return self.stepper.engine

    @property
    def ledger(self) -> Ledger:
        """What was charged so far."""
        return self.engine.distiller.ledger

    @property
    def student(self) -> PixelModel:
        """The network that is evaluated and saved: the average of the weights where one is kept."""
        average = self.engine.average
        network = self.resolved.student if average is None else average.module
        assert isinstance(network, PixelModel)
        return network

    def remember(self, record: dict[str, Any]) -> None:
        """Keep of an epoch's line what the summary needs; all lines would add up in a long run."""
        self.last_record = record
        if record["accuracy"] is not None:
            self.best_accuracy = max(record["accuracy"], self.best_accuracy or 0.0)

    def relative_cost(self) -> RelativeCost | None:
        """Training cost so far over that of plain KD's whole run; None without a teacher, or where it is not known."""
        return None if self.resolved.teacher is None else self.over_kd(self.total)

    def over_kd(self, ledger: Ledger) -> RelativeCost | None:
        """What a ledger was charged over the cost of plain KD's whole run; None where it is not known."""
        epochs = self.config.reference_epochs or self.config.train.epochs
        cost = ledger.relative_to_kd(epochs * len(self.resolved.data.train))
        return None if cost is None else RelativeCost(**cost)

    def note(self, text: str, *, shared: bool = False) -> None:
        """Show the user a line; once where it is true of all runs of a comparison."""
        self.display(Note(self.name, text, shared))
