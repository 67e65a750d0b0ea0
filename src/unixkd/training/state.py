"""What a run is made of and where it stands: data only. What is done with it is in `unixkd.training.run`."""

from __future__ import annotations

from typing import Any

import torch

from unixkd.config import RunConfig
from unixkd.method.ledger import Ledger
from unixkd.models.card import PixelModel
from unixkd.training.build import RunComponents
from unixkd.training.display import Display, Note
from unixkd.training.distributed.world import World
from unixkd.training.engine import Engine
from unixkd.training.loggers import Loggers
from unixkd.training.predictions import Predictions
from unixkd.training.run_folder import RunFolder
from unixkd.training.stepper import Stepper


class Run:
    """The data of a run; every helper of the trainer takes one."""

    name: str
    config: RunConfig
    folder: RunFolder
    display: Display
    world: World
    device: torch.device
    parts: RunComponents
    stepper: Stepper
    loggers: Loggers
    reference_images: int
    epoch: int
    """Epochs that are finished."""
    done: int
    """Steps taken of the next one."""
    seconds: dict[str, float]
    total: Ledger
    answers: Predictions | None
    last_record: dict[str, Any]
    best_accuracy: float | None

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
        network = self.parts.student if average is None else average.module
        assert isinstance(network, PixelModel)
        return network

    def remember(self, record: dict[str, Any]) -> None:
        """What of an epoch's line the summary wants; all lines would add up in a long run."""
        self.last_record = record
        if record["accuracy"] is not None:
            self.best_accuracy = max(record["accuracy"], self.best_accuracy or 0.0)

    def relative_cost(self) -> dict[str, float] | None:
        """Training cost so far over that of plain KD's whole run; None without a teacher to compare with."""
        return None if self.parts.teacher is None else self.total.relative_to_kd(self.reference_images)

    def note(self, text: str, *, shared: bool = False) -> None:
        """Show the user a line; once where it is true of all runs of a comparison."""
        self.display(Note(self.name, text, shared))
