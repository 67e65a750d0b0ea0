"""Stored answers inside a step and ahead of an epoch: who is asked, what is kept, what is charged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from running import distilled
from slow import RowCounter, TinyNet, images_of
from unixkd.config import DataConfig, MethodConfig
from unixkd.data import MemorySplit, Split, load_data
from unixkd.distiller import Distiller
from unixkd.errors import UserError
from unixkd.method.batch import Batch, MixedBatch
from unixkd.method.losses import KD, AttentionTransfer
from unixkd.method.method import Method
from unixkd.method.mixing import StepCurve
from unixkd.method.network import Network
from unixkd.method.objective import Term
from unixkd.method.scoring import entropy
from unixkd.method.unix import kd, unix
from unixkd.teacher.store import AnswerStore
from unixkd.teacher.teacher import Teacher
from unixkd.training import answers as training_answers
from unixkd.training.answers import fetch_answers
from unixkd.training.run import run

IMAGES, VIEWS, CLASSES = 6, 3, 2


class Knowing(nn.Module):
    """Answers an image of grey value g with (g, −3 g), row by row: no rounding depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, -3.0]))
        self.asked: list[list[float]] = []

    def forward(self, images: Tensor) -> Tensor:
        grey = images[:, 0, 0, 0]
        self.asked.append(grey.tolist())
        return grey[:, None] * self.scale


def open_store(path: Path, images: int = IMAGES, views: int = VIEWS, **options) -> AnswerStore:
    return AnswerStore.open(path, {"teacher": "a"}, images=images, views=views, classes=CLASSES, **options)


def greys(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2)


# Image i of the batch is number 5 − i of the data set, in view i mod 3, and has the grey value 0.1 · i.
GREY = [0.1 * i for i in range(IMAGES)]
PICTURES = Batch(greys(*GREY), index=torch.arange(5, -1, -1), view=torch.arange(6) % 3)


def kept(*position: int, pure: int, mixed_grey: float = 0.777) -> MixedBatch:
    """Rows of `PICTURES`, of which the first `pure` are left as they are."""
    greyness = [GREY[p] for p in position[:pure]] + [mixed_grey] * (len(position) - pure)
    ones = torch.ones(len(position))
    weight = torch.tensor([0.0] * pure + [0.5] * (len(position) - pure))
    return MixedBatch(greys(*greyness), None, None, weight, ones, torch.tensor(position), pure)


def exact(grey: float) -> list[float]:
    return (torch.tensor(grey) * torch.tensor([1.0, -3.0])).tolist()


def rounded(grey: float) -> list[float]:
    return [float(np.float16(value)) for value in exact(grey)]


def stored(store: AnswerStore) -> dict[tuple[int, int], list[float]]:
    """All that a store holds."""
    held = store.contents
    index, view = torch.arange(held.images).repeat_interleave(held.views), torch.arange(held.views)
    view = view.repeat(held.images)
    logits, known = store.read(index, view)
    return {
        (int(i), int(v)): row.tolist()
        for i, v, row, there in zip(index, view, logits, known, strict=True)
        if there
    }


# A step with a store


def test_what_the_store_lacks_is_asked_with_the_mixed_rows_and_kept(tmp_path):
    module = Knowing()
    teacher = Teacher(Network(module), open_store(tmp_path / "answers"))
    first = teacher(PICTURES, kept(4, 2, 0, 5, pure=2))
    assert module.asked == [pytest.approx([0.4, 0.2, 0.777, 0.777])]
    assert first.outputs.logits.tolist() == [rounded(0.4), rounded(0.2), exact(0.777), exact(0.777)]
    assert (first.forwarded, first.cached, first.filled) == (4, 0, 2)
    assert stored(teacher.store) == {(1, 1): rounded(0.4), (3, 2): rounded(0.2)}
    # 2 and 4 are known by now, 1 and 5 are not; the mixed row is 0
    second = teacher(PICTURES, kept(2, 1, 4, 5, 0, pure=4))
    assert module.asked[1:] == [pytest.approx([0.1, 0.5, 0.777])]
    assert second.outputs.logits.tolist() == [
        *(rounded(0.2), rounded(0.1), rounded(0.4), rounded(0.5)),
        exact(0.777),
    ]
    assert (second.forwarded, second.cached, second.filled) == (3, 2, 2)
    assert sorted(stored(teacher.store)) == [(0, 2), (1, 1), (3, 2), (4, 1)]


def mixing(position: list[int], partner: list[int], weight: list[float]) -> MixedBatch:
    """Rows of `PICTURES` mixed with partners."""
    rows = kept(*position, pure=0)
    return replace(rows, weight=torch.tensor(weight), partner=torch.tensor(partner))


@pytest.mark.parametrize("ahead", [False, True])
def test_mixed_answers_are_the_mix_of_both_answers(ahead, tmp_path):
    module = Knowing()
    teacher = Teacher(Network(module), open_store(tmp_path / "a", precision="fp32"), mixes_answers=True)
    batch = replace(PICTURES, answers=module(PICTURES.images)) if ahead else PICTURES
    module.asked.clear()
    found = teacher(batch, mixing([4, 2, 4], [0, 5, 2], [0.25, 0.5, 0.0]))
    torch.testing.assert_close(
        found.outputs.logits, torch.tensor([exact(0.3), exact(0.35), exact(0.4)]), atol=1e-6, rtol=0
    )
    if ahead:
        assert (module.asked, found.forwarded) == ([], 0)
    else:  # each image is asked about once
        assert sorted(module.asked[0]) == pytest.approx([0.0, 0.2, 0.4, 0.5])
        assert (found.forwarded, found.cached, found.filled) == (4, 0, 4)


def test_pure_batches_of_a_method_that_mixes_answers_are_answered_as_ever(tmp_path):
    teacher = Teacher(Network(Knowing()), open_store(tmp_path / "a"), mixes_answers=True)
    assert teacher(PICTURES, kept(4, 2, pure=2)).outputs.logits.tolist() == [rounded(0.4), rounded(0.2)]


def test_mixed_answers_need_a_store_to_mix_from(tmp_path):
    config = distilled(tmp_path, MethodConfig("mixup", mixes_answers=True))
    with pytest.raises(UserError, match=r"mixes stored answers: give --answers\.path"):
        run(config, tmp_path / "run")
    with pytest.raises(UserError, match="give the Distiller a store"):
        Teacher(Network(Knowing()), mixes_answers=True)(PICTURES, kept(4, 2, pure=2))


def test_where_all_is_known_the_teacher_is_not_run(tmp_path):
    module = Knowing()
    teacher = Teacher(Network(module), open_store(tmp_path / "answers"))
    rows = kept(3, 0, 1, pure=3)
    first = teacher(PICTURES, rows)
    again = teacher(PICTURES, rows)
    assert len(module.asked) == 1
    assert torch.equal(again.outputs.logits, first.outputs.logits)
    assert again.outputs.logits.dtype == torch.float32
    assert (again.forwarded, again.cached, again.filled) == (0, 3, 0)


def test_the_same_image_in_another_view_is_another_question(tmp_path):
    module = Knowing()
    teacher = Teacher(Network(module), open_store(tmp_path / "answers"))
    for view in (0, 1, 0):
        batch = Batch(greys(0.5 + view), index=torch.tensor([2]), view=torch.tensor([view]))
        rows = MixedBatch(batch.images, None, None, torch.zeros(1), torch.ones(1), torch.tensor([0]), 1)
        assert teacher(batch, rows).outputs.logits.tolist() == [exact(0.5 + view)]
    assert module.asked == [[0.5], [1.5]]


def test_without_pure_rows_the_store_is_not_touched(tmp_path):
    teacher = Teacher(Network(Knowing()), open_store(tmp_path / "answers"))
    answers = teacher(Batch(PICTURES.images), kept(4, 2, pure=0))
    assert answers.outputs.logits.tolist() == [exact(0.777)] * 2
    assert (answers.forwarded, answers.cached, answers.filled) == (2, 0, 0)
    assert teacher.store.filled() == 0


def test_without_a_store_everything_is_asked_and_nothing_is_rounded():
    teacher = Teacher(Network(Knowing()))
    answers = teacher(PICTURES, kept(4, 2, 0, pure=2))
    assert answers.outputs.logits.tolist() == [exact(0.4), exact(0.2), exact(0.777)]
    assert (answers.forwarded, answers.cached, answers.filled) == (3, 0, 0)


def test_a_store_in_full_precision_changes_nothing(tmp_path):
    rows = kept(4, 2, 0, pure=2)
    teacher = Teacher(Network(Knowing()), open_store(tmp_path / "answers", precision="fp32"))
    for _ in range(2):
        assert torch.equal(
            teacher(PICTURES, rows).outputs.logits,
            Teacher(Network(Knowing()))(PICTURES, rows).outputs.logits,
        )


def test_an_answer_is_no_part_of_a_graph(tmp_path):
    store = open_store(tmp_path / "answers")
    for teacher in (Teacher(Network(Knowing())), Teacher(Network(Knowing()), store)):
        assert not teacher(PICTURES, kept(4, 2, pure=1)).outputs.logits.requires_grad


@pytest.mark.parametrize("given", [{}, {"index": torch.arange(6)}, {"view": torch.arange(6)}])
def test_without_index_and_view_nothing_can_be_looked_up(given, tmp_path):
    teacher = Teacher(Network(Knowing()), open_store(tmp_path / "answers"))
    with pytest.raises(UserError, match="give index= and view="):
        teacher(Batch(PICTURES.images, **given), kept(4, 2, pure=1))
    assert teacher.store.filled() == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.permutations(range(IMAGES)),
    size=st.integers(1, IMAGES),
    pure=st.integers(0, IMAGES),
    known=st.sets(st.integers(0, IMAGES - 1)),
)
def test_whether_an_answer_was_there_changes_no_answer(position, size, pure, known, tmp_path):
    pure = min(pure, size)
    shutil.rmtree(tmp_path / "answers", ignore_errors=True)
    module, store = Knowing(), open_store(tmp_path / "answers")
    before = sorted(known)
    store.write(
        PICTURES.index[before],
        PICTURES.view[before],
        torch.tensor([exact(GREY[i]) for i in before]).view(-1, CLASSES),
    )
    answers = Teacher(Network(module), store)(PICTURES, kept(*position[:size], pure=pure))
    rows, missing = position[:pure], [p for p in position[:pure] if p not in known]
    assert answers.outputs.logits.tolist() == [rounded(GREY[p]) for p in rows] + [exact(0.777)] * (
        size - pure
    )
    asked = [GREY[p] for p in missing] + [0.777] * (size - pure)
    assert module.asked == ([pytest.approx(asked)] if asked else [])
    assert (answers.forwarded, answers.filled) == (len(asked), len(missing))
    assert answers.cached == pure - len(missing)
    assert set(stored(store)) == {(5 - i, i % 3) for i in known | set(rows)}


# A step with answers fetched ahead


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_fetched_ahead_are_taken_by_their_position(dtype, tmp_path):
    module = Knowing()
    ahead = torch.tensor([[10.0 * i, i] for i in range(IMAGES)], dtype=dtype)
    batch = Batch(PICTURES.images, answers=ahead)
    teacher = Teacher(Network(module), open_store(tmp_path / "answers"))
    mixed = teacher(batch, kept(4, 2, 0, 5, pure=2))
    assert mixed.outputs.logits.tolist() == [[40, 4], [20, 2], exact(0.777), exact(0.777)]
    assert (mixed.forwarded, mixed.cached, mixed.filled) == (2, 2, 0)
    pure = teacher(batch, kept(5, 0, pure=2))
    assert pure.outputs.logits.tolist() == [[50, 5], [0, 0]]
    assert (pure.forwarded, pure.cached, pure.filled) == (0, 2, 0)
    assert pure.outputs.logits.dtype == torch.float32
    assert module.asked == [pytest.approx([0.777, 0.777])]
    assert teacher.store.filled() == 0


# The whole step


def step_unix(keep: float = 0.75, mix_from: float = 0.5) -> Method:
    return Method("step", keep, entropy, StepCurve(mix_from))


def test_the_first_b_rows_of_a_step_curve_come_from_the_store(tmp_path):
    """N = 8 keeps k = 6, of which b = 4 are pure: 6 asked and 4 kept at first, then only the 2 mixed ones."""
    teacher, student = TinyNet(CLASSES), TinyNet(CLASSES, seed=1)
    store = open_store(tmp_path / "answers", 8, 1)
    distiller = Distiller(student, teacher, step_unix(), store=store, batch_size=8)
    distiller.measure((3, 8, 8))
    counter = RowCounter(teacher)
    images, index, view = images_of(8), torch.arange(8), torch.zeros(8, dtype=torch.int64)
    result = distiller.step(images, index=index, view=view)
    pure = result.mixed.position[:4]
    answers = store.rounded(teacher(images[pure]).detach())
    assert stored(store) == {(int(i), 0): row for i, row in zip(index[pure], answers.tolist(), strict=True)}
    distiller.step(images, index=index, view=view)
    assert counter.rows == [6, 4, 2]  # of which the 4 are asked by this test itself
    ledger, counts = distiller.ledger, distiller.ledger.images
    assert (counts.scored, counts.trained) == (16, 12)
    assert (counts.teacher_forwarded, counts.teacher_cached, counts.teacher_filled) == (8, 4, 4)
    student_flops, teacher_flops = ledger.student_flops, ledger.teacher_flops
    for name, passes in (("backward_1x", 2), ("backward_2x", 3)):
        cost = 16 * student_flops + 8 * teacher_flops + passes * 12 * student_flops
        assert ledger.relative_to_kd()[name] == cost / (16 * (teacher_flops + passes * student_flops))


def test_unix_as_published_leaves_the_store_empty(tmp_path):
    store = open_store(tmp_path / "answers", 8, 1)
    distiller = Distiller(TinyNet(CLASSES), TinyNet(CLASSES, seed=1), unix(), store=store, batch_size=8)
    distiller.step(images_of(8))
    assert store.filled() == 0
    assert distiller.ledger.images.teacher_forwarded == 6


@pytest.mark.parametrize("method", [kd(), step_unix()])
def test_a_loss_is_the_same_with_new_answers_and_with_old_ones(method, tmp_path):
    def loss(store: AnswerStore | None, images: Tensor) -> Tensor:
        distiller = Distiller(TinyNet(CLASSES, seed=1), TinyNet(CLASSES), method, store=store, batch_size=8)
        index, view = torch.arange(8), torch.zeros(8, dtype=torch.int64)
        return distiller.step(images, index=index, view=view).loss.detach()

    store, images = open_store(tmp_path / "answers", 8, 1), images_of(8)
    new, old = loss(store, images), loss(store, images)
    assert torch.equal(new, old)
    torch.testing.assert_close(new, loss(None, images), rtol=2e-3, atol=1e-6)
    full = open_store(tmp_path / "full", 8, 1, precision="fp32")
    assert torch.equal(loss(full, images), loss(None, images))


def test_features_are_refused(tmp_path):
    store = open_store(tmp_path / "answers")
    objective = [Term("kd", KD()), Term("at", AttentionTransfer(("body",), ("body",)))]
    with pytest.raises(UserError, match="stored answers hold logits only"):
        Distiller(TinyNet(CLASSES), TinyNet(CLASSES, seed=1), objective=objective, store=store)


# Ahead of an epoch


class Grey(nn.Module):
    """Answers with the mean of the pixels and that of their left half, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[3] // 2
        rows = [torch.stack([image.mean(), image[..., :half].mean()]) for image in images.contiguous()]
        return torch.stack(rows) * self.one


SIDE = 8


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(count, SIDE, SIDE, 3), dtype=np.uint8)


def in_memory(folder: Path, views: int | None) -> Split:
    return MemorySplit(torch.from_numpy(pixels(10)), None, padding=1, flip=True, views=views)


def on_disk(folder: Path, views: int | None) -> Split:
    """Random resized crops without end, of which `views` are trained on."""
    (folder / "images").mkdir()
    for number, image in enumerate(pixels(10)):
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
    name = f"folder:{folder / 'images'}"
    return load_data(DataConfig(name, in_memory=False, workers=0, views=views)).train


def truth(split: Split, epoch: int, order: Tensor) -> list[list[float]]:
    """What the teacher says about each picture by itself, rounded."""
    rows = []
    for position in order:
        (batch,) = split.train_batches(epoch, position[None], 1)
        rows.append(Grey()(batch.images)[0].half().tolist())
    return rows


SPLITS = pytest.mark.parametrize(
    ("make", "views"), [(in_memory, None), (in_memory, 2), (on_disk, 2)], ids=["all", "limited", "disk"]
)
MakeSplit = Callable[[Path, int | None], Split]


@SPLITS
def test_an_epochs_answers_are_those_to_its_pictures_in_any_order(make: MakeSplit, views, tmp_path):
    split = make(tmp_path, views)
    module, store = Grey(), open_store(tmp_path / "answers", len(split), split.num_views)
    counter = RowCounter(module)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    answers, filled = fetch_answers(Teacher(Network(module), store), split, 0, order)
    assert answers.logits.tolist() == truth(split, 0, order)
    assert (filled, store.filled(), counter.rows) == (10, 10, [10])
    again, filled = fetch_answers(Teacher(Network(module), store), split, 0, order.flip(0))
    assert torch.equal(again.logits, answers.logits.flip(0))
    assert (filled, counter.rows) == (0, [10])  # a full store: nobody is asked, not even about no image
    part, filled = fetch_answers(Teacher(Network(module), store), split, 1, order[:3])
    assert part.logits.tolist() == truth(split, 1, order[:3])
    new = (split.epoch_views(0, order[:3]) != split.epoch_views(1, order[:3])).sum()
    assert (filled, store.filled()) == (new, 10 + new)


@SPLITS
def test_of_limited_views_all_are_known_after_so_many_epochs(make: MakeSplit, views, tmp_path):
    split = make(tmp_path, views)
    store = open_store(tmp_path / "answers", len(split), split.num_views)
    filled = [
        fetch_answers(Teacher(Network(Grey()), store), split, epoch, torch.arange(10))[1]
        for epoch in range(4)
    ]
    if views == 2:
        assert filled == [10, 10, 0, 0]
    shown = {
        pair
        for epoch in range(4)
        for pair in zip(range(10), split.epoch_views(epoch, torch.arange(10)).tolist(), strict=True)
    }
    assert sum(filled) == len(shown)
    assert set(stored(store)) == shown


def test_a_large_epoch_is_asked_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(training_answers, "FILL_BATCH", 4)
    split = in_memory(tmp_path, None)
    module, store = Grey(), open_store(tmp_path / "answers", 10, split.num_views)
    counter, order = RowCounter(module), torch.arange(9, -1, -1)
    answers, filled = fetch_answers(Teacher(Network(module), store), split, 0, order)
    assert (filled, counter.rows) == (10, [4, 4, 2])
    assert answers.logits.tolist() == truth(split, 0, order)


def test_a_torn_answer_is_asked_again(tmp_path):
    split = in_memory(tmp_path, 1)
    store, order = open_store(tmp_path / "answers", 10, 1), torch.tensor([3, 7, 1])
    fetch_answers(Teacher(Network(Grey()), store), split, 0, order)
    file = tmp_path / "answers" / "logits.bin"
    content = bytearray(file.read_bytes())
    content[7 * CLASSES * 2] ^= 1  # of fp16, the lowest bit of image 7's first logit
    file.write_bytes(content)
    answers, filled = fetch_answers(Teacher(Network(Grey()), store), split, 0, order)
    assert filled == 1
    assert answers.logits.tolist() == truth(split, 0, order)
    assert fetch_answers(Teacher(Network(Grey()), store), split, 0, order)[1] == 0
