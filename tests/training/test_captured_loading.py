"""A captured run on images that are decoded from disk is the eager one, and decodes none of them twice in an epoch.

A tape stands in for the CUDA graph, as in `test_cuda_graph`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from running import alone, distilled, metrics, untimed
from tape import Tape, with_rate_as_tensor
from unixkd.config import AnswersConfig, DataConfig, RunConfig
from unixkd.data.disk import DiskSplit
from unixkd.errors import UserError
from unixkd.training.display import Event, Note
from unixkd.training.run import end_epoch, epoch_steps, fit, run, start, stop
from unixkd.training.run_folder import Mode, RunFolder
from unixkd.training.state import Run
from unixkd.training.static_batch import StaticBatch
from unixkd.training.stopping import Stopped

BATCH, EPOCHS, EPOCHS_OF_ANSWERS = 4, 2, 3
"""With two views, of which each is stored once, a third epoch is answered from the store alone."""
FULL = 4
"""Steps of an epoch with 4 images; one with fewer follows."""


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of nine tiny JPEGs to train on, two of two to evaluate on."""
    place, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, images in (("train", 9), ("val", 2)):
        for name in "ab":
            (place / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = rng.integers(0, 255, (11, 13, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / split / name / f"{i}.jpg")
    return place


def on_disk(config: RunConfig, photos: Path, epochs: int = EPOCHS, **data: Any) -> RunConfig:
    given = {"size": 8, "in_memory": False, "workers": 2, "keep": 0.0} | data
    train = replace(config.train, epochs=epochs, batch_size=BATCH, eval_every=epochs)
    return replace(config, data=DataConfig(f"folder:{photos}", **given), train=train)


@pytest.fixture(scope="module")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    run(on_disk(alone(), photos), folder)
    return folder


Case = Callable[[Path, Path], RunConfig]


def answered(teacher: Path, photos: Path, method: str = "kd", **data: Any) -> RunConfig:
    """`RUN` is the run's folder."""
    config = on_disk(distilled(teacher, method), photos, EPOCHS_OF_ANSWERS, **({"views": 2} | data))
    return replace(config, answers=AnswersConfig("RUN"))


CASES: dict[str, Case] = {
    "alone, no threads": lambda _, photos: on_disk(alone(ema_decay=0.75), photos, crop_padding=1, workers=0),
    "unix": lambda teacher, photos: on_disk(distilled(teacher), photos),
    "kd, answers to mixes": lambda t, photos: answered(t, photos, views=None, mixes=2),
    "infobatch, answers": lambda teacher, photos: answered(teacher, photos, "infobatch"),
}


def begin(config: RunConfig, folder: Path, record: Any = None, mode: Mode = "new") -> tuple[Run, list[str]]:
    """A run as on a GPU, which fetches stored answers ahead, and its notes of steps that are eager."""
    if config.answers.path is not None:
        config = replace(config, answers=replace(config.answers, path=f"{folder}-answers"))
    notes: list[str] = []

    def keep(event: Event) -> None:
        if isinstance(event, Note) and "CUDA graph" in event.text:
            notes.append(event.text)

    trainer = start(config, RunFolder(folder), mode, keep)
    trainer.stepper.record, trainer.stepper.fill_ahead = record, True
    with_rate_as_tensor(trainer.engine.optimizer)
    return trainer, notes


def outcome(trainer: Run) -> tuple[dict[str, Any], Any]:
    state = {name: tensor.detach().clone() for name, tensor in trainer.engine.state().items()}
    lines = [untimed(line) for line in metrics(trainer.folder.path)]
    return state, (lines, trainer.ledger.state_dict(), trainer.engine.distiller.steps)


def differences(a: Run, b: Run) -> list[str]:
    (mine, my_figures), (theirs, their_figures) = outcome(a), outcome(b)
    assert mine.keys() == theirs.keys()
    names = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    return names + ["figures"] * (my_figures != their_figures)


@pytest.mark.parametrize("name", CASES)
def test_a_captured_run_is_the_eager_one(name, teacher, photos, tmp_path):
    config, tape = CASES[name](teacher, photos), Tape()
    eager, _ = begin(config, tmp_path / "eager")
    captured, notes = begin(config, tmp_path / "captured", tape)
    fit(eager)
    fit(captured)
    assert notes == []
    assert differences(captured, eager) == []
    assert tape.recordings == 1
    if name != "infobatch, answers":  # which leaves images out
        assert tape.replays == FULL * config.train.epochs
        assert captured.ledger.images.teacher_filled == (2 * 18 if "answers" in name else 0)


def test_a_batch_that_is_not_copied_in_is_found_out(photos, teacher, tmp_path, monkeypatch):
    """The negative control."""
    monkeypatch.setattr(StaticBatch, "fill", lambda static, batch: None)
    config = CASES["alone, no threads"](teacher, photos)
    eager, _ = begin(config, tmp_path / "eager")
    captured, _ = begin(config, tmp_path / "captured", Tape())
    fit(eager)
    fit(captured)
    assert "net.conv1.weight" in differences(captured, eager)


def test_it_goes_on_in_the_middle_of_an_epoch(photos, teacher, tmp_path):
    config = answered(teacher, photos)
    eager, _ = begin(config, tmp_path / "eager")
    fit(eager)
    captured, _ = begin(config, tmp_path / "captured", Tape())
    for done in (
        2,
        FULL,
    ):  # of the second epoch, in the midst and before its short batch; the first begins it
        if captured.epoch == 0:
            for _ in epoch_steps(captured):
                pass
            end_epoch(captured)
        steps = epoch_steps(captured)
        while captured.done < done:
            next(steps)
        with pytest.raises(Stopped):
            stop(captured)
        captured, notes = begin(config, tmp_path / "captured", Tape(), "resume")
        assert (captured.epoch, captured.done) == (1, done)
    fit(captured)
    assert notes == []
    assert differences(captured, eager) == []


def test_where_the_capture_fails_the_first_batch_is_not_lost(photos, teacher, tmp_path):
    """It was decoded to learn its shape; the run goes on eagerly with it."""

    def fails(body: Callable[[], None]) -> Callable[[], None]:
        body()
        raise RuntimeError("not permitted")

    config = CASES["alone, no threads"](teacher, photos)
    eager, _ = begin(config, tmp_path / "eager")
    other, notes = begin(config, tmp_path / "other", fails)
    fit(eager)
    fit(other)
    assert notes == ["steps run one by one, not as a CUDA graph: not permitted"]
    assert differences(other, eager) == []


# Each image is decoded once


def decoded(trainer: Run, monkeypatch: pytest.MonkeyPatch) -> list[Counter[int]]:
    """How often each training image is decoded in each epoch's steps."""
    original, seen = DiskSplit._decoded, Counter[int]()
    assert isinstance(trainer.stepper.split, DiskSplit)
    records = trainer.stepper.split.records

    def watched(split: DiskSplit, position: int, whole: bool = True) -> Any:
        if split.records is records:
            seen[position] += 1
        return original(split, position, whole)

    monkeypatch.setattr(DiskSplit, "_decoded", watched)
    found = []
    for _ in range(EPOCHS_OF_ANSWERS):
        seen.clear()
        for _ in epoch_steps(trainer):
            pass
        found.append(Counter(seen))
        end_epoch(trainer)
    return found


@pytest.mark.parametrize("record", [None, Tape()], ids=["eager", "captured"])
def test_a_run_that_fills_a_store_decodes_each_image_once_in_an_epoch(
    record, photos, teacher, tmp_path, monkeypatch
):
    trainer, _ = begin(answered(teacher, photos), tmp_path / "run", record)
    once = Counter(range(18))
    assert decoded(trainer, monkeypatch) == [once] * EPOCHS_OF_ANSWERS
    charged = trainer.ledger.images
    assert (charged.teacher_filled, charged.teacher_cached) == (36, 3 * 18)


def test_asked_ahead_they_are_decoded_twice_and_the_answers_are_the_same(
    photos, teacher, tmp_path, monkeypatch
):
    """What `--answers.fill epoch` asks for: the negative control of the count."""
    config = answered(teacher, photos)
    once, _ = begin(config, tmp_path / "once")
    fit(once)
    ahead = replace(config, answers=replace(config.answers, fill="epoch"))
    twice, _ = begin(ahead, tmp_path / "twice")
    found = decoded(twice, monkeypatch)
    assert found == [Counter(dict.fromkeys(range(18), times)) for times in (2, 2, 1)]
    assert once.ledger.state_dict() == twice.ledger.state_dict()
    mine, theirs = outcome(once)[0], outcome(twice)[0]
    close = [torch.allclose(mine[name].float(), theirs[name].float(), atol=1e-3) for name in mine]
    assert all(close)


def test_an_image_that_breaks_while_steps_are_replayed_is_named(photos, teacher, tmp_path):
    broken = tmp_path / "photos"
    for file in photos.rglob("*.jpg"):
        (broken / file.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        (broken / file.relative_to(photos)).write_bytes(file.read_bytes())
    trainer, _ = begin(on_disk(alone(), broken, workers=0), tmp_path / "run", Tape())
    steps = epoch_steps(trainer)
    next(steps)
    for file in (broken / "train").rglob("*.jpg"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"\.jpg"):
        next(steps)
