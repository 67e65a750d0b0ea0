"""A network that decides on the host is not captured: a graph would repeat one decision without a word."""

from __future__ import annotations

import contextlib
import importlib
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from running import alone
from tape import Tape, with_rate_as_tensor
from unixkd.training.capture_check import noting_draws, randomness_kept
from unixkd.training.display import Event, Note
from unixkd.training.run import epoch_steps, start
from unixkd.training.run_folder import RunFolder
from unixkd.training.state import Run

EAGER = "steps run one by one, not as a CUDA graph: "


class LayerDrop(nn.Module):
    """Leaves its layer out at random; the host draws."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.layer, self.draw = nn.Linear(1, 1), draw

    def forward(self, images: Tensor) -> Tensor:
        return images if self.draw() < 0.5 else images + self.layer(images.mean().view(1, 1)).view(1, 1, 1, 1)


class Counting(nn.Module):
    """Does what its calls so far make it do."""

    def __init__(self, does: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.does, self.calls = does, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.does(images, self.calls)


CHANGING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "torch's random numbers": (
        lambda: LayerDrop(lambda: float(torch.rand([]))),
        "the step draws random numbers on the host (aten.rand.default)",
    ),
    "torch's own generator": (
        lambda: LayerDrop(partial(draw_with, torch.Generator().manual_seed(0))),
        "the step draws random numbers on the host (aten.rand.generator)",
    ),
    "Python's random numbers": (
        lambda: LayerDrop(random.random),
        "the step draws random numbers on the host (Python's random)",
    ),
    "NumPy's random numbers": (
        lambda: LayerDrop(np.random.rand),
        "the step draws random numbers on the host (numpy.random)",
    ),
    "other numbers": (
        lambda: Counting(lambda images, calls: images * (1 + 1 / calls)),
        "the step's operations change from step to step: aten.mul.Tensor takes 1.5, then 1.3333333333333333",
    ),
    "numbers made tensors": (
        lambda: Counting(lambda images, calls: images * torch.tensor(1 + 1 / calls)),
        "the step's operations change from step to step: aten.lift_fresh.default takes float32[] = 1.5, then "
        "float32[] = 1.3333333730697632",
    ),
    "every other call": (
        lambda: Counting(lambda images, calls: images.square() if calls % 2 else images),
        "the step's operations change from step to step: ",
    ),
    "other shapes": (
        lambda: Counting(lambda images, calls: images + images[:calls].mean()),
        "the step's operations change from step to step: aten.slice.Tensor takes 2, then 3",
    ),
}


def changing(front: nn.Module, folder: Path, record: Any) -> tuple[Run, list[str]]:
    """A run whose student has one more module in front, after an epoch; and what it noted."""
    config = alone(epochs=1, batch_size=32)
    config = replace(config, data=replace(config.data, limit=68))
    notes: list[str] = []

    def keep(event: Event) -> None:
        if isinstance(event, Note) and event.text.startswith(EAGER):
            notes.append(event.text.removeprefix(EAGER))

    trainer = start(config, RunFolder(folder), "new", keep)
    trainer.stepper.record = record
    with_rate_as_tensor(trainer.engine.optimizer)
    student = trainer.resolved.student
    student.net = nn.Sequential(front, student.net)
    for _ in epoch_steps(trainer):
        pass
    return trainer, notes


def draw_with(generator: torch.Generator) -> float:
    return float(torch.rand([], generator=generator))


@pytest.mark.parametrize("name", CHANGING)
def test_what_would_be_frozen_runs_eagerly_and_is_named(name, tmp_path):
    make, reason = CHANGING[name]
    tape = Tape()
    trainer, (note,) = changing(make(), tmp_path / "run", tape)
    assert note.startswith(reason)
    assert "\n" not in note
    assert trainer.stepper.captured is None
    assert tape.replays == 0


@pytest.mark.parametrize("name", ["torch's random numbers", "NumPy's random numbers"])
def test_random_numbers_of_the_host_are_drawn_as_if_nothing_had_been_tried(name, tmp_path):
    """The run that was refused is the eager one."""
    states = []
    for record in (None, Tape()):
        torch.manual_seed(0)
        np.random.seed(0)
        trainer, _ = changing(CHANGING[name][0](), tmp_path / str(record is None), record)
        states.append({key: value.detach().clone() for key, value in trainer.engine.state().items()})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_capture_leaves_random_numbers_where_they_stood():
    def drawn() -> tuple[float, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with randomness_kept(None):
        first = drawn()
    with contextlib.suppress(RuntimeError), randomness_kept(None):
        assert drawn() == first
        raise RuntimeError
    assert drawn() == first
    assert drawn() != first


def test_what_a_module_draws_when_it_is_imported_decides_no_step(tmp_path, monkeypatch):
    (tmp_path / "drawing.py").write_text("import random\nNUMBER = random.randint(1, 10**6)\n")
    monkeypatch.syspath_prepend(tmp_path)
    draws: list[str] = []
    with noting_draws(draws):
        importlib.import_module("drawing")
    assert draws == []
    with noting_draws(draws):
        random.randint(1, 10**6)
    assert set(draws) == {"Python's random"}


def test_what_is_watched_while_a_module_is_imported_is_watched_all_the_same(tmp_path, monkeypatch):
    """As where a script that trains is imported."""
    lines = (
        "import random",
        "from unixkd.training.capture_check import noting_draws",
        "DRAWS = []",
        "with noting_draws(DRAWS):",
        "    random.random()",
    )
    (tmp_path / "training_script.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("training_script").DRAWS == ["Python's random"]


def test_what_draws_on_the_device_is_captured(tmp_path):
    tape = Tape()
    _, notes = changing(nn.Dropout(0.3), tmp_path / "run", tape)
    assert notes == []
    assert tape.replays == 2
