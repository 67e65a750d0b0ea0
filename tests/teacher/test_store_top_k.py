"""A store of the largest logits: what is read is the slow definition, to the bit; no other store is mistaken for it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unixkd.errors import UserError
from unixkd.method.losses import kl_divergence
from unixkd.teacher.format import Contents, TopLogits
from unixkd.teacher.store import AnswerStore

KEY = {"teacher weights": "a" * 64}
IMAGES, VIEWS, CLASSES, TOP = 3, 4, 9, 3
SMALL = {"images": IMAGES, "views": VIEWS, "classes": CLASSES, "top_k": TOP, "temperature": 4.0}
EVERYTHING = [(i, v) for i in range(IMAGES) for v in range(VIEWS)]
DTYPES = {"fp16": np.float16, "fp32": np.float32}
PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "fp32"])


def open_store(path: Path, **changes: Any) -> AnswerStore:
    return AnswerStore.open(path, KEY, **{**SMALL, **changes})


def rows(*pairs: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Index and view of each pair."""
    both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def answers_of(count: int, seed: int = 0, classes: int = CLASSES) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 5


def slow(logits: list[float], top_k: int, temperature: float) -> tuple[list[int], list[float], float]:
    """The classes of the largest logits, those logits, and the level of the others, in Python's own numbers."""
    order = sorted(range(len(logits)), key=lambda c: (-logits[c], c))
    others = [logits[c] for c in order[top_k:]]
    mean = math.fsum(math.exp((x - others[0]) / temperature) for x in others) / len(others)
    return order[:top_k], [logits[c] for c in order[:top_k]], others[0] + temperature * math.log(mean)


# What is kept


@PRECISIONS
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("top_k", [1, 3])
def test_what_is_read_is_the_slow_definition(precision, temperature, top_k, tmp_path):
    logits = answers_of(len(EVERYTHING))
    options = {"precision": precision, "temperature": temperature, "top_k": top_k}
    open_store(tmp_path / "answers", **options).write(*rows(*EVERYTHING), logits)
    read, known = open_store(tmp_path / "answers", **options).read(*rows(*EVERYTHING))
    assert known.all()
    assert read.dtype == {"fp16": torch.float16, "fp32": torch.float32}[precision]
    for row, full in zip(read.tolist(), logits.tolist(), strict=True):
        places, largest, level = slow(full, top_k, temperature)
        kept = {c: float(DTYPES[precision](x)) for c, x in zip(places, largest, strict=True)}
        close = {"fp16": 1e-3, "fp32": 1e-5}[precision]
        assert [row[c] for c in kept] == list(kept.values())
        (other,) = {row[c] for c in range(CLASSES) if c not in kept}
        assert other == pytest.approx(level, rel=close, abs=close)


def test_probabilities_at_the_stores_temperature_are_those_of_the_full_answer(tmp_path):
    """Of each kept class, so of all others together; these weigh too much at a higher one, else too little."""
    logits, store = answers_of(6), open_store(tmp_path / "answers", precision="fp32")
    store.write(*rows(*EVERYTHING[:6]), logits)
    read = store.read(*rows(*EVERYTHING[:6]))[0]
    top = logits.topk(TOP).indices

    def kept(answers: torch.Tensor, temperature: float) -> torch.Tensor:
        return (answers.double() / temperature).softmax(1).gather(1, top)

    torch.testing.assert_close(kept(read, 4.0), kept(logits, 4.0), rtol=1e-5, atol=1e-7)
    assert (kept(read, 8.0).sum(1) < kept(logits, 8.0).sum(1)).all()
    assert (kept(read, 1.0).sum(1) > kept(logits, 1.0).sum(1)).all()


def test_the_gradient_of_kd_is_exact_for_kept_classes_and_for_the_sum_of_the_others(tmp_path):
    logits, store = answers_of(6), open_store(tmp_path / "answers", precision="fp32")
    store.write(*rows(*EVERYTHING[:6]), logits)
    read = store.read(*rows(*EVERYTHING[:6]))[0]

    def gradient(answers: torch.Tensor) -> torch.Tensor:
        student = answers_of(6, seed=1).double().requires_grad_()
        kl_divergence(answers.double(), student, 4.0).sum().backward()
        assert student.grad is not None
        return student.grad

    ours, full, top = gradient(read), gradient(logits), logits.topk(TOP).indices
    torch.testing.assert_close(ours.gather(1, top), full.gather(1, top), rtol=1e-4, atol=1e-5)
    others = torch.ones_like(ours).scatter(1, top, 0.0)
    torch.testing.assert_close((ours * others).sum(1), (full * others).sum(1), rtol=1e-4, atol=1e-5)
    assert ((ours - full).abs() * others).max() > 1e-3  # of one alone it is not


@PRECISIONS
def test_the_files_hold_what_they_are_said_to(precision, tmp_path):
    logits = torch.tensor([[0.0, -1.0, 4.0, 0.0, 0.0, 8.0, 0.0, 2.0, 0.0]])
    with open_store(tmp_path / "answers", precision=precision) as store:
        store.write(*rows((2, 1)), logits)
    value = np.dtype(DTYPES[precision])
    record = np.dtype([("values", value, TOP + 1), ("classes", "<u2", TOP)])
    held = np.fromfile(tmp_path / "answers" / "logits.bin", record).reshape(IMAGES, VIEWS)
    assert held[2, 1]["values"][:TOP].tolist() == [8.0, 4.0, 2.0]
    level = 4 * math.log((5 + math.exp(-1 / 4)) / 6)
    assert held[2, 1]["values"][TOP] == pytest.approx(level, rel=1e-3)
    assert held[2, 1]["classes"].tolist() == [5, 2, 7]
    held[2, 1] = 0
    assert held.tobytes() == b"\0" * len(held.tobytes())
    index = json.loads((tmp_path / "answers" / "answers.json").read_text())
    assert index == {"schema": 2, "key": KEY, **SMALL, "precision": precision}
    assert sum(store.contents.sizes.values()) == IMAGES * VIEWS * (record.itemsize + 4)


@pytest.mark.parametrize(("classes", "width"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_classes_beyond_16_bits(classes, width, tmp_path):
    logits = answers_of(2, classes=classes)
    logits[0, -1], logits[1, 3] = 100.0, 90.0
    store = open_store(tmp_path / "answers", classes=classes, top_k=2)
    store.write(*rows((0, 0), (2, 3)), logits)
    assert sum(store.contents.sizes.values()) == IMAGES * VIEWS * (3 * 2 + 2 * width + 4)
    read = store.read(*rows((0, 0), (2, 3)))[0]
    assert torch.equal(read, store.rounded(logits))
    assert read.argmax(1).tolist() == [classes - 1, 3]


def test_of_equal_logits_the_first_classes_are_kept():
    packing = TopLogits(CLASSES, "fp32", TOP, 1.0)
    packed, _ = packing.pack(torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0], [7.0] * 9]))
    assert packed[:, -TOP:].tolist() == [[1, 3, 5], [0, 1, 2]]


def test_the_level_is_not_a_digit_above_a_kept_logit():
    """A thousand answers with equal logits: rounding in the sum must not make the rest the likeliest."""
    flat = answers_of(1000, classes=1).expand(-1, CLASSES)
    read = TopLogits(CLASSES, "fp32", TOP, 4.0).rounded(flat)
    assert torch.equal(read[:, :TOP], flat[:, :TOP])
    assert (read[:, TOP:] <= flat[:, TOP:]).all()
    torch.testing.assert_close(read, flat)


@PRECISIONS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounded_is_what_a_later_read_gives(precision, dtype, tmp_path):
    logits = (answers_of(12) * torch.logspace(-6, 2, 12)[:, None]).to(dtype)
    store = open_store(tmp_path / "answers", precision=precision)
    store.write(*rows(*EVERYTHING), logits)
    read, known = store.read(*rows(*EVERYTHING))
    assert known.all()
    assert torch.equal(read, store.rounded(logits))
    assert torch.equal(store.rounded(read).argmax(1), read.argmax(1))


PAIRS = st.lists(st.sampled_from(EVERYTHING), max_size=IMAGES * VIEWS + 3)
ACTIONS = st.lists(st.one_of(st.just("reopen"), st.tuples(PAIRS, st.integers(0, 99))), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(actions=ACTIONS, precision=st.sampled_from(["fp16", "fp32"]))
def test_any_writes_are_those_of_a_dictionary(actions, precision, tmp_path):
    path = tmp_path / "answers"
    shutil.rmtree(path, ignore_errors=True)
    store, model = open_store(path, precision=precision), {}
    for action in actions:
        if action == "reopen":
            store.close()
            store = open_store(path, precision=precision)
            continue
        pairs, seed = action
        logits = answers_of(len(pairs), seed)
        store.write(*rows(*pairs), logits)
        model |= dict(zip(pairs, store.rounded(logits).tolist(), strict=True))
    logits, known = store.read(*rows(*EVERYTHING))
    assert known.tolist() == [pair in model for pair in EVERYTHING]
    assert logits.tolist() == [model.get(pair, [0.0] * CLASSES) for pair in EVERYTHING]


@PRECISIONS
def test_one_wrong_bit_makes_a_row_unknown_and_never_an_error(precision, tmp_path):
    """Also a bit of a class, which then may be one that does not exist."""
    with open_store(tmp_path / "answers", precision=precision) as store:
        store.write(*rows((1, 1), (1, 2), (1, 3)), answers_of(3))
        expected = store.read(*rows((1, 3)))[0]
        width = sum(store.contents.sizes.values()) // len(EVERYTHING) - 4
    file = tmp_path / "answers" / "logits.bin"
    before = file.read_bytes()
    for bit in range(8 * width):
        changed = bytearray(before)
        changed[(VIEWS + 2) * width + bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        logits, known = open_store(tmp_path / "answers", precision=precision).read(
            *rows((1, 1), (1, 2), (1, 3))
        )
        assert known.tolist() == [True, False, True], bit
        assert not logits[1].any()
        assert torch.equal(logits[2:], expected)


# What cannot be kept


@PRECISIONS
def test_classes_that_are_ruled_out_keep_a_probability_of_0_where_they_are_kept_or_all_the_rest(
    precision, tmp_path
):
    """Of the first answer all but two classes are ruled out, of the second only the last one."""
    store, logits = open_store(tmp_path / "answers", precision=precision), answers_of(2)
    logits[0, 2:], logits[1, CLASSES - 1] = -math.inf, -math.inf
    store.write(*rows((0, 0), (1, 0)), logits)
    stored, known = store.read(*rows((0, 0), (1, 0)))
    assert known.all()
    assert torch.equal(stored[0].isneginf(), logits[0].isneginf())
    assert stored[1].isfinite().all()
    weights = (logits[1].double() / 4.0).softmax(0), (stored[1].double() / 4.0).softmax(0)
    top = logits[1].topk(store.contents.top_k).indices
    torch.testing.assert_close(weights[1][top], weights[0][top], rtol=2e-3, atol=1e-3)


@PRECISIONS
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, CLASSES - 1])
def test_logits_that_are_not_finite_name_their_images_wherever_they_are(precision, value, place, tmp_path):
    store, logits = open_store(tmp_path / "answers", precision=precision), answers_of(3)
    logits[0, place], logits[2, place] = value, value
    with pytest.raises(UserError, match=r"not finite for images 2, 1$"):
        store.write(*rows((2, 0), (0, 0), (1, 0)), logits)
    assert store.filled() == 0
    assert store.rounded(logits).isfinite().all(dim=1).tolist() == [
        False,
        True,
        False,
    ]  # and a run sees it too


def test_kept_logits_too_large_for_fp16(tmp_path):
    logits = answers_of(3)
    logits[1, 4], logits[2, 4] = 65520.0, -1e9  # the last is spread with the others, and hardly counts
    store = open_store(tmp_path / "answers")
    with pytest.raises(UserError, match=r"too large for fp16 for images 1: store them as fp32"):
        store.write(*rows((0, 0), (1, 0), (2, 0)), logits)
    assert store.filled() == 0
    store.write(*rows((0, 0), (2, 0)), logits[[0, 2]])
    assert store.filled() == 2


@pytest.mark.parametrize("top_k", [0, -1, CLASSES, 1000])
def test_a_number_of_logits_out_of_range(top_k, tmp_path):
    with pytest.raises(
        UserError, match=rf"top_k must be from 1 to 8 of 9 classes, got {top_k}; leave it out"
    ):
        open_store(tmp_path / "answers", top_k=top_k)
    assert not list(tmp_path.iterdir())


def test_more_logits_than_save_anything(tmp_path):
    """k = 4 of 9 as fp16 take 2 · 5 + 2 · 4 = 18 bytes, as all do; 5 take 22."""
    open_store(tmp_path / "four", top_k=4).close()
    with pytest.raises(UserError, match=r"the 5 largest of 9 .* take 22 bytes, all logits 18: leave it out"):
        open_store(tmp_path / "five", top_k=5)
    with pytest.raises(UserError, match="temperature of stored answers must be above 0, got 0"):
        open_store(tmp_path / "cold", temperature=0.0)


OTHERS = {
    "fewer": (
        {"top_k": 2},
        "(the largest 3, for temperature 4.0 there, the largest 2, for temperature 4.0 here)",
    ),
    "all": ({"top_k": None}, "(the largest 3, for temperature 4.0 there, all here)"),
    "warmer": (
        {"temperature": 8.0},
        "(the largest 3, for temperature 4.0 there, the largest 3, for temperature 8.0 here)",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_k_is_another_store(other, tmp_path):
    changes, difference = OTHERS[other]
    open_store(tmp_path / "answers").close()
    with pytest.raises(UserError, match="other stored answers") as error:
        open_store(tmp_path / "answers", **changes)
    assert f"What differs: logits kept {difference}. Give another folder" in str(error.value)


def test_a_store_of_all_logits_is_no_store_of_the_largest(tmp_path):
    """Nor does the temperature matter where all are kept."""
    open_store(tmp_path / "answers", top_k=None).close()
    open_store(tmp_path / "answers", top_k=None, temperature=8.0).close()
    with pytest.raises(
        UserError, match=r"logits kept \(all there, the largest 3, for temperature 4\.0 here\)"
    ):
        open_store(tmp_path / "answers")


def test_the_size_is_announced(tmp_path):
    lines: list[str] = []
    open_store(tmp_path / "answers", images=1500, classes=1000, top_k=16, announce=lines.append)
    size = "1,500 images × 4 views × 16 of 1,000 classes as fp16 = 396.00 kB (plus checksums)"
    assert lines == [f"stored teacher answers: {size} at {tmp_path / 'answers'}"]
    assert (tmp_path / "answers" / "logits.bin").stat().st_size == 1500 * 4 * (17 + 16) * 2
    assert sum(Contents({}, 1, 1, 1000, "fp32", 16).sizes.values()) == 17 * 4 + 16 * 2 + 4
