"""Teachers whose outputs are other classes than the data's are found, and no others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from running import TEST_IMAGES, alone, distilled
from unixkd.config import ModelConfig
from unixkd.training.display import Note
from unixkd.training.evaluation import relabelling_note
from unixkd.training.predictions import Predictions
from unixkd.training.relabelling import displaced
from unixkd.training.run import run


def said(labels: np.ndarray, classes: int, accuracy: float, random: np.random.Generator) -> np.ndarray:
    """Answers that are right with this chance, else any class."""
    return np.where(random.random(len(labels)) < accuracy, labels, random.integers(0, classes, len(labels)))


def found(answers: np.ndarray, labels: np.ndarray, classes: int) -> dict[int, int]:
    return displaced(torch.from_numpy(answers), torch.from_numpy(labels), classes)


@pytest.mark.parametrize("move", [2, 6, 8, 10])
@pytest.mark.parametrize("accuracy", [0.5, 0.95])
def test_every_displaced_class_is_named(move, accuracy):
    """As few as 2 of 10 classes, on as many images as the digits have to evaluate on."""
    random = np.random.default_rng(move)
    labels, order = np.arange(TEST_IMAGES) % 10, np.arange(10)
    order[:move] = np.roll(order[:move], 1)
    answers = order[said(labels, 10, accuracy, random)]
    assert found(answers, labels, 10) == {int(order[c]): c for c in range(10) if order[c] != c}


def test_twelve_folders_in_alphabetical_order():
    """'10' and '11' before '2': two of twelve classes in place, 16.7 %, eight images of each class."""
    names = sorted(map(str, range(12)))
    labels = np.arange(96) % 12
    answers = np.array([int(name) for name in names])[labels]
    moves = found(answers, labels, 12)
    assert moves == {int(name): place for place, name in enumerate(names) if int(name) != place}
    both = [torch.from_numpy(array) for array in (answers, labels)]
    note = relabelling_note(Predictions(both[0], torch.ones(96), both[1]), 12, names)
    assert note is not None
    assert "would be 100.00 %, not 16.67 %" in note
    assert "output 10 ('8') is class '10'" in note


@given(
    classes=st.sampled_from([2, 3, 5, 10, 30]),
    images=st.integers(1, 400),
    accuracy=st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.9]),
    evenness=st.sampled_from([0.2, 1.0, 100.0]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_bad_teacher_raises_no_alarm(classes, images, accuracy, evenness, seed):
    """However few the images, however uneven the classes."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, images, p=random.dirichlet(np.full(classes, evenness)))
    assert found(said(labels, classes, accuracy, random), labels, classes) == {}


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_classes_that_are_taken_for_another_are_no_other_order(share):
    """Of one who always says 1, and of one who takes all 0s for 1s: no one-to-one relabelling is better."""
    labels = (np.arange(1000) >= 1000 * share).astype(int)
    assert found(np.ones(1000, int), labels, 2) == {}
    assert found(np.maximum(labels, 1), labels, 3) == {}


def test_classes_without_images_stay_where_they_are():
    labels = np.arange(200) % 4 + 3
    assert found(labels, labels, 10) == {}
    answers = np.where(labels == 3, 4, np.where(labels == 4, 3, labels))
    assert found(answers, labels, 10) == {4: 3, 3: 4}


def test_a_run_says_that_two_classes_are_swapped(tmp_path):
    run(alone("resnet8", epochs=8), tmp_path / "teacher")
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    order = [3, 1, 2, 0, *range(4, 10)]
    head = {name: value[order].contiguous() for name, value in weights.items() if value.shape[:1] == (10,)}
    assert head
    save_file(weights | head, tmp_path / "swapped.safetensors")
    notes = {}
    for name, file in (
        ("good", tmp_path / "teacher" / "model.safetensors"),
        ("bad", tmp_path / "swapped.safetensors"),
    ):
        events: list[object] = []
        config = distilled(tmp_path / "teacher", "kd", epochs=1)
        run(
            replace(config, teacher=ModelConfig("resnet8", weights=str(file))),
            tmp_path / name,
            display=events.append,
        )
        notes[name] = [event.text for event in events if isinstance(event, Note) and "WARNING" in event.text]
    assert notes["good"] == []
    assert len(notes["bad"]) == 1
    assert "output 0 ('0') is class '3', output 3 ('3') is class '0'" in notes["bad"][0]
