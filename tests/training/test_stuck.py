"""A run that has learnt nothing after a third of its epochs is warned about by name, and no other."""

from __future__ import annotations

from types import SimpleNamespace as Record

import pytest
import torch

from unixkd.config import TrainConfig
from unixkd.training.evaluation import stuck_note
from unixkd.training.predictions import Predictions

LABELS = [0, 0, 0, 1, 1]


def note(answers, epoch, labels=LABELS, teacher=None, epochs=9, every=1, names=("ants", "bees")):
    def said(classes):
        return None if classes is None else torch.tensor(classes)

    run = Record(
        config=Record(train=TrainConfig(epochs=epochs, eval_every=every)),
        epoch=epoch,
        answers=None if teacher is None else Predictions(said(teacher), torch.ones(5), said(labels)),
        resolved=Record(data=Record(class_names=names)),
        student=Record(card=Record(class_names=None)),
    )
    return stuck_note(run, Predictions(said(answers), torch.ones(5), said(labels)))


def test_it_names_the_class_the_shares_and_the_rate():
    text = note([0] * 5, epoch=3)
    assert text == (
        "WARNING: after 3 of 9 epochs 60.00 % of the answers are right, no more than 'ants' to every image would be "
        "(60.00 %); 'ants' is the answer to 100.00 % of them. Is --lr 0.05 right here, and are the epochs enough?"
    )
    assert "'1' is the answer to 100.00 %" in note([1] * 5, epoch=3, names=None)


@pytest.mark.parametrize(("epoch", "every"), [(3, 1), (9, 1), (4, 2), (3, 3), (9, 20)])
def test_at_a_third_and_at_the_end(epoch, every):
    """At the first evaluation from a third on."""
    assert note([1] * 5, epoch, every=every) is not None


@pytest.mark.parametrize("epoch", [1, 2, 4, 8])
def test_not_in_between(epoch):
    assert note([1] * 5, epoch) is None


def test_not_where_something_was_learnt():
    assert note([0, 0, 0, 1, 0], epoch=3) is None
    assert note([0, 1, 0, 0, 1], epoch=3) is not None  # 3 of 5 are right, as with 'ants' alone


def test_without_labels_the_teacher_is_asked():
    assert note([0] * 5, epoch=3, labels=None, teacher=LABELS) is not None
    assert note(LABELS, epoch=3, labels=None, teacher=LABELS) is None
    assert note([0] * 5, epoch=3, labels=None) is None


def test_images_of_one_class_tell_nothing():
    assert note([0] * 5, epoch=3, labels=[0] * 5) is None


def test_images_without_any_label_tell_nothing():
    assert note([0] * 5, epoch=3, labels=[-1] * 5) is None
    assert note([0] * 5, epoch=3, labels=[1] + [-1] * 4) is None


def test_fewer_right_answers_than_of_the_commonest_class():
    assert "20.00 % of the answers are right, no more than 'ants'" in note([1, 1, 1, 0, 1], epoch=3)


def test_images_without_a_label_do_not_count():
    assert note([0, 0, 0, 1, 1], epoch=3, labels=[0, 0, 0, 1, -1]) is None
    assert "75.00 %" in note([0] * 5, epoch=3, labels=[0, 0, 0, 1, -1])
