"""What is said of answers: against hand-worked figures and slow loops, also where a share is of nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluations import evaluation, judged
from unixkd.report.evaluation import (
    MATRIX_CLASSES,
    NO_ANSWER,
    compare,
    confused_pairs,
    quality,
    worst_first,
)


def judge(labels, said, classes, top=None):
    labels, said = np.array(labels), np.array(said)
    top = said[:, None] if top is None else np.array(top)
    return quality(labels, said, top, [f"c{i}" for i in range(classes)], None, [])


def test_a_hand_worked_case():
    """Three ants of which two are found, one bee found, a wasp taken for an ant."""
    found = judge([0, 0, 0, 1, 2], [0, 0, 1, 1, 0], 3)
    ant, bee, wasp = found.classes
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert (ant.images, ant.predicted, ant.precision, ant.recall, ant.f1) == (
        3,
        3,
        *[pytest.approx(2 / 3)] * 3,
    )
    assert (bee.precision, bee.recall, bee.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (wasp.images, wasp.predicted, wasp.precision, wasp.recall, wasp.f1) == (1, 0, None, 0.0, 0.0)
    assert found.confusion == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert [(p.actual, p.predicted, p.images) for p in found.confused] == [(0, 1, 1), (2, 0, 1)]
    assert [each.name for each in worst_first(found)] == ["c2", "c0", "c1"]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(NO_ANSWER, 3)), min_size=1, max_size=30))
def test_figures_match_their_slow_versions(pairs):
    """Class 4 never has an image and is never named."""
    labels, said = zip(*pairs, strict=True)
    found = judge(labels, said, 5)
    recalls = []
    for number, each in enumerate(found.classes):
        hits = sum(a == b == number for a, b in pairs)
        images, named = labels.count(number), said.count(number)
        assert (each.images, each.predicted) == (images, named)
        assert each.recall == (pytest.approx(hits / images) if images else None)
        assert each.precision == (pytest.approx(hits / named) if named else None)
        assert each.f1 == (pytest.approx(2 * hits / (images + named)) if images else None)
        recalls += [hits / images] if images else []
        assert found.confusion[number] == [pairs.count((number, other)) for other in range(5)]
    assert found.accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert found.balanced_accuracy == pytest.approx(sum(recalls) / len(recalls))
    wrong = [(a, b) for a, b in pairs if a != b and b != NO_ANSWER]
    assert {(p.actual, p.predicted): p.images for p in found.confused} == {p: wrong.count(p) for p in wrong}
    assert [p.images for p in found.confused] == sorted((wrong.count(p) for p in set(wrong)), reverse=True)


def test_scikit_learn_agrees_on_balanced_accuracy():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(0)
    labels, said = rng.integers(0, 7, 200), rng.integers(0, 7, 200)
    assert judge(labels, said, 7).balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, said))


def test_top_five_counts_the_five_most_probable_and_no_answer_is_a_miss():
    top = [[1, 2, 3, 4, 0], [5, 4, 3, 2, 1], [0, 1, 2, 3, 4]]
    assert judge([0, 0, 0], [1, 5, NO_ANSWER], 6, top).top_5 == pytest.approx(1 / 3)
    assert judge([0, 0, 0], [1, 4, 0], 5, top).top_5 is None


def test_a_single_class_and_answers_that_are_all_missing():
    alone = judge([0, 0], [0, 0], 1)
    assert (alone.accuracy, alone.balanced_accuracy, alone.confusion, alone.confused) == (1.0, 1.0, [[2]], [])
    silent = judge([0, 1], [NO_ANSWER, NO_ANSWER], 2)
    assert (silent.accuracy, silent.balanced_accuracy) == (0.0, 0.0)
    assert silent.confusion == [[0, 0], [0, 0]]
    assert all(each.precision is None and each.recall == 0.0 for each in silent.classes)


def test_of_very_many_classes_no_matrix_is_made():
    classes = MATRIX_CLASSES + 1
    assert judge([0], [1], MATRIX_CLASSES).confusion[0][1] == 1
    found = judge([0, classes - 1], [1, classes - 1], classes)
    assert found.confusion is None
    assert (found.confused[0].actual, found.confused[0].predicted) == (0, 1)
    assert found.balanced_accuracy == 0.5


def test_equally_confused_pairs_come_in_the_order_of_classes():
    pairs = confused_pairs(np.array([2, 0, 1, 1]), np.array([0, 2, 0, 0]))
    assert [(p.actual, p.predicted, p.images) for p in pairs] == [(1, 0, 2), (0, 2, 1), (2, 0, 1)]


def test_two_networks_are_compared_by_hand():
    """The last image has no label, the one before no answer of the teacher."""
    student, teacher = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 0, NO_ANSWER, 2])
    both = compare(student, teacher, np.array([0, 1, 0, 1, 2, -1]))
    assert both.agreement == pytest.approx(3 / 6)
    cells = (both.both_right, both.only_teacher_right, both.only_student_right, both.both_wrong)
    assert cells == (1, 1, 2, 1)
    assert both.student_where_teacher_right == pytest.approx(1 / 2)
    assert both.student_where_teacher_wrong == pytest.approx(2 / 3)
    assert compare(student, teacher, None).both_right is None
    perfect = compare(student, student, student)
    assert (perfect.student_where_teacher_right, perfect.student_where_teacher_wrong) == (1.0, None)


def test_two_networks_without_an_answer_do_not_agree():
    silent = np.array([NO_ANSWER])
    assert compare(silent, silent, None).agreement == 0.0


def test_the_json_is_whole_and_has_null_for_what_is_not_known():
    found = evaluation([0, 0, 1], [0, 1, NO_ANSWER], classes=3, flops=None)
    read = json.loads(found.as_json())
    assert read["schema"] == 1
    assert read["absent"] == [2]
    assert (
        read["teacher"] is read["comparison"] is read["student"]["flops"] is read["student"]["speed"] is None
    )
    assert read["student"]["unanswered"] == 1
    assert read["student"]["quality"]["classes"][2] == {
        "number": 2, "name": "c2", "images": 0, "predicted": 0, "precision": None, "recall": None, "f1": None,
    }  # fmt: skip
    assert judged([0], None).quality is None
