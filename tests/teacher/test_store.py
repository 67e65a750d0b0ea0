"""The store of teacher answers: what is read is what was written, exactly, or is not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unixkd.errors import UserError
from unixkd.teacher.store import AnswerStore, checksum_weights, checksums

KEY = {"teacher weights": "a" * 64, "data": "b" * 64, "kind of views": "all 4 views"}
IMAGES, VIEWS, CLASSES = 3, 4, 5
SMALL = {"images": IMAGES, "views": VIEWS, "classes": CLASSES}
MASK = (1 << 64) - 1


def open_store(path: Path, key: dict[str, str] = KEY, **changes: Any) -> AnswerStore:
    return AnswerStore.open(path, key, **{**SMALL, **changes})


def rows(*pairs: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Index and view of each pair."""
    both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def answers_of(count: int, seed: int = 0, classes: int = CLASSES) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)) * 10


def flip_bit(file: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))
    }


# What is kept


def test_what_is_written_is_read_and_nothing_else_is_there(tmp_path):
    store = open_store(tmp_path / "answers")
    store.write(*rows((2, 1), (0, 3)), torch.tensor([[1.0, -2, 0.5, 0, 8], [0.0] * 5]))
    logits, known = store.read(*rows((0, 3), (1, 2), (2, 1), (2, 0)))
    assert known.tolist() == [True, False, True, False]
    assert logits.tolist() == [[0.0] * 5, [0.0] * 5, [1.0, -2.0, 0.5, 0.0, 8.0], [0.0] * 5]
    assert logits.dtype == torch.float16
    assert store.read(*rows((0, 3), (2, 0)))[1].tolist() == [True, False]
    assert store.filled() == 2
    assert sum(store.contents.sizes.values()) == 3 * 4 * (5 * 2 + 4)


def slow_checksum(words: list[int]) -> int:
    total = 0
    for place, word in enumerate([1, *words]):
        z = place + 1
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        total += (z ^ (z >> 31)) * word
    return (total & MASK) >> 32


@pytest.mark.parametrize(("precision", "bits", "dtype"), [("fp16", "<u2", "<f2"), ("fp32", "<u4", "<f4")])
def test_the_files_hold_what_they_are_said_to(precision, bits, dtype, tmp_path):
    """[images, views, classes] little-endian, and a checksum of each row's bits."""
    with open_store(tmp_path / "answers", precision=precision) as store:
        store.write(*rows((2, 1)), torch.tensor([[1.5, -2.0, 0.0, 65504.0, -0.0]]))
    logits = np.fromfile(tmp_path / "answers" / "logits.bin", dtype).reshape(IMAGES, VIEWS, CLASSES)
    checks = np.fromfile(tmp_path / "answers" / "checks.bin", "<u4").reshape(IMAGES, VIEWS)
    assert logits[2, 1].tolist() == [1.5, -2.0, 0.0, 65504.0, 0.0]
    assert np.signbit(logits[2, 1, 4])
    assert checks[2, 1] == slow_checksum(logits[2, 1].view(bits).tolist())
    logits[2, 1] = checks[2, 1] = 0
    assert not logits.any()
    assert not checks.any()
    index = json.loads((tmp_path / "answers" / "answers.json").read_text())
    assert index == {"schema": 1, "key": KEY, **SMALL, "precision": precision}


def test_rounding_to_fp16_is_to_the_nearest_and_to_even(tmp_path):
    store = open_store(tmp_path / "answers")
    store.write(*rows((0, 0)), torch.tensor([[0.1, 2049.0, 2051.0, 65519.0, 1e-8]]))
    expected = [0.0999755859375, 2048.0, 2052.0, 65504.0, 0.0]
    assert store.read(*rows((0, 0)))[0].tolist() == [expected]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounded_is_what_a_later_read_gives(precision, dtype, tmp_path):
    logits = (answers_of(12) * torch.logspace(-8, 2, 12)[:, None]).to(dtype)
    index, view = torch.arange(12) // VIEWS, torch.arange(12) % VIEWS
    with open_store(tmp_path / "answers", precision=precision) as store:
        store.write(index, view, logits)
        rounded = store.rounded(logits)
    read, known = open_store(tmp_path / "answers", precision=precision).read(index, view)
    assert known.all()
    assert read.dtype == rounded.dtype
    assert torch.equal(read, rounded)
    if precision == "fp32" and dtype != torch.float64:
        assert torch.equal(read, logits.float())


PAIRS = st.lists(
    st.tuples(st.integers(0, IMAGES - 1), st.integers(0, VIEWS - 1)), max_size=IMAGES * VIEWS + 3
)
ACTIONS = st.lists(st.one_of(st.just("reopen"), st.tuples(PAIRS, st.integers(0, 99))), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        store.write(*rows(*pairs), logits)  # of a pair that comes twice the last one counts
        model |= dict(zip(pairs, store.rounded(logits).tolist(), strict=True))
    everything = [(i, v) for i in range(IMAGES) for v in range(VIEWS)]
    logits, known = store.read(*rows(*everything))
    assert known.tolist() == [pair in model for pair in everything]
    assert logits.tolist() == [model.get(pair, [0.0] * CLASSES) for pair in everything]
    assert store.filled() == len(model)


def test_no_rows_are_no_mistake(tmp_path):
    store = open_store(tmp_path / "answers")
    store.write(*rows(), torch.empty(0, CLASSES))
    logits, known = store.read(*rows())
    assert logits.shape == (0, CLASSES)
    assert known.shape == (0,)


def test_rows_are_counted_in_64_bits_whatever_comes_in(tmp_path):
    store = open_store(tmp_path / "answers", images=128, views=128, classes=1)
    last = torch.tensor([127], dtype=torch.int8)
    store.write(last, last, torch.ones(1, 1))
    assert store.read(*rows((127, 127)))[1].tolist() == [True]
    assert store.filled() == 1


def test_a_closed_store_is_closed(tmp_path):
    with open_store(tmp_path / "answers") as store:
        store.write(*rows((0, 0)), answers_of(1))
        store.flush()
    store.close()
    with pytest.raises(IndexError):
        store.read(*rows((0, 0)))


# Torn rows


def torn(path: Path) -> bool:
    """Whether (1, 2) alone is gone; and it can be filled again."""
    store = open_store(path)
    logits, known = store.read(*rows((1, 1), (1, 2), (1, 3)))
    assert known.tolist() == store.read(*rows((1, 1), (1, 2), (1, 3)))[1].tolist()
    gone = known.tolist() == [True, False, True] and not logits[1].any()
    store.write(*rows((1, 2)), answers_of(1, seed=9))
    logits, known = store.read(*rows((1, 2)))
    assert known.all()
    assert torch.equal(logits, store.rounded(answers_of(1, seed=9)))
    return gone


@pytest.fixture
def written(tmp_path) -> Path:
    """A store with three rows."""
    path = tmp_path / "answers"
    with open_store(path) as store:
        store.write(*rows((1, 1), (1, 2), (1, 3)), answers_of(3))
    return path


ROW = VIEWS + 2


@pytest.mark.parametrize(("name", "width"), [("logits.bin", CLASSES * 2), ("checks.bin", 4)])
def test_one_wrong_bit_makes_a_row_unknown(name, width, written):
    before = (written / name).read_bytes()
    for bit in range(8 * width):
        (written / name).write_bytes(before)
        flip_bit(written / name, ROW * width + bit // 8, bit % 8)
        assert not open_store(written).read(*rows((1, 2)))[1].any(), bit
    assert torn(written)


def edit(written: Path, how: Any) -> None:
    logits = np.memmap(written / "logits.bin", "<f2", mode="r+", shape=(IMAGES * VIEWS, CLASSES))
    checks = np.memmap(written / "checks.bin", "<u4", mode="r+", shape=(IMAGES * VIEWS,))
    how(logits, checks)


TEARS = {
    "logits lost": lambda logits, checks: logits[ROW].fill(0),
    "first half lost": lambda logits, checks: logits[ROW, :2].fill(0),
    "last number lost": lambda logits, checks: logits[ROW, -1:].fill(0),
    "in another order": lambda logits, checks: logits.__setitem__(ROW, logits[ROW, ::-1].copy()),
    "checksum lost": lambda logits, checks: checks.__setitem__(ROW, 0),
    "another row's logits": lambda logits, checks: logits.__setitem__(ROW, logits[ROW + 1]),
    "half of another row's": lambda logits, checks: logits.__setitem__(
        (ROW, slice(3, None)), logits[ROW + 1, 3:]
    ),
    "another row's checksum": lambda logits, checks: checks.__setitem__(ROW, checks[ROW + 1]),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_row_is_unknown_and_filled_again(tear, written):
    edit(written, TEARS[tear])
    assert torn(written)


def test_a_whole_store_is_not_torn(written):
    assert not torn(written)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_checksums_are_never_that_of_nothing(dtype):
    """0 stands for no answer; the row whose sum has an upper half of 0 is looked for by brute force."""
    weights = checksum_weights(1).copy()
    weights[0], weights[1] = 0, 1
    row = np.ones((1, 1), dtype)
    assert checksums(row, weights).tolist() == [1]


def test_checksums_of_like_rows_differ():
    """Rows of small whole numbers in every order: of 59,049 two are expected to agree 0.4 times."""
    digits = np.indices((9,) * 5).reshape(5, -1).T.astype(np.float16)
    found = checksums(np.ascontiguousarray(digits), checksum_weights(5))
    assert len(np.unique(found)) > len(digits) - 5
    halves = np.array([np.mean(found >> 31), np.mean(found & 1)])
    assert abs(halves - 0.5).max() < 0.02


# What cannot be kept


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_class_that_is_ruled_out_is_kept_as_it_is(precision, tmp_path):
    """A logit of −inf is a probability of 0; a row of nothing else is no answer."""
    store, logits = open_store(tmp_path / "answers", precision=precision), torch.ones(3, 5)
    logits[1, 2:4] = -torch.inf
    store.write(*rows((0, 0), (1, 0), (2, 0)), logits)
    stored, known = store.read(*rows((0, 0), (1, 0), (2, 0)))
    assert known.all()
    assert torch.equal(stored.float(), logits)
    logits[2] = -torch.inf
    with pytest.raises(UserError, match=r"not finite for images 2$"):
        store.write(*rows((0, 0), (1, 0), (2, 0)), logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_logits_that_are_not_finite_name_their_images(precision, value, tmp_path):
    store = open_store(tmp_path / "answers", precision=precision)
    logits = answers_of(3)
    logits[0, 0], logits[2, 4] = value, value
    with pytest.raises(UserError, match=r"not finite for images 2, 1$"):
        store.write(*rows((2, 0), (0, 0), (1, 0)), logits)
    assert store.filled() == 0


def test_eight_images_are_named(tmp_path):
    store = open_store(tmp_path / "answers", images=20)
    with pytest.raises(UserError, match=r"for images 5, 6, 7, 8, 9, 10, 11, 12 and 2 more$"):
        store.write(torch.arange(5, 15), torch.zeros(10, dtype=torch.int64), torch.full((10, 5), torch.nan))


def test_logits_too_large_for_fp16(tmp_path):
    logits = torch.tensor([[65519.0] * 5, [1.0, 1.0, -65520.0, 1.0, 1.0]])
    store = open_store(tmp_path / "answers")
    with pytest.raises(UserError, match=r"too large for fp16 for images 1: store them as fp32") as error:
        store.write(*rows((0, 0), (1, 0)), logits)
    assert "--answers.precision fp32" in str(error.value)
    assert store.filled() == 0
    wide = open_store(tmp_path / "wide", precision="fp32")
    wide.write(*rows((0, 0), (1, 0)), logits)
    assert torch.equal(wide.read(*rows((0, 0), (1, 0)))[0], logits)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((3, 0), "images 0 to 2, not image 3"),
        ((-1, 0), "images 0 to 2, not image -1"),
        ((0, 4), "views 0 to 3, not view 4"),
        ((0, -1), "views 0 to 3, not view -1"),
        ((0, 2**62), "views 0 to 3"),
    ],
)
def test_an_image_or_view_out_of_range(pair, message, tmp_path):
    store = open_store(tmp_path / "answers")
    for ask in (store.read, lambda i, v: store.write(i, v, answers_of(2))):
        with pytest.raises(UserError, match=message):
            ask(*rows((0, 0), pair))
    assert store.filled() == 0


def test_another_number_of_classes(tmp_path):
    store = open_store(tmp_path / "answers")
    with pytest.raises(UserError, match=r"holds 5 logits of each answer, got logits of shape \(1, 4\)"):
        store.write(*rows((0, 0)), torch.zeros(1, 4))


@pytest.mark.parametrize("part", ["images", "views", "classes"])
def test_a_store_of_nothing(part, tmp_path):
    with pytest.raises(UserError, match="at least one"):
        open_store(tmp_path / "answers", **{part: 0})
    assert not list(tmp_path.iterdir())


# Making one


def test_a_store_is_announced_before_anything_is_made(tmp_path):
    path, lines = tmp_path / "new" / "answers", []

    def announce(line: str) -> None:
        assert not list(tmp_path.iterdir())
        lines.append(line)

    open_store(path, images=1500, announce=announce)
    size = "1,500 images × 4 views × 5 classes as fp16 = 60.00 kB (plus checksums)"
    assert lines == [f"stored teacher answers: {size} at {path}"]
    assert sorted(p.name for p in path.iterdir()) == ["answers.json", "checks.bin", "logits.bin"]
    assert [p.name for p in path.parent.iterdir()] == ["answers"]
    open_store(path, images=1500, announce=lines.append)
    assert len(lines) == 1


def test_an_empty_folder_is_used_and_so_is_a_link_to_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with open_store(tmp_path / "link") as store:
        store.write(*rows((0, 0)), answers_of(1))
    assert open_store(tmp_path / "disk").filled() == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]


def no_space(tmp_path: Path) -> str:
    """The message where a store cannot be made; nothing is left behind."""
    with pytest.raises(UserError) as error:
        open_store(tmp_path / "answers")
    assert not list(tmp_path.iterdir())
    assert "no space" in str(error.value)
    assert "need 168 bytes" in str(error.value)
    assert "fewer views" in str(error.value)
    assert "another folder" in str(error.value)
    return str(error.value)


def test_too_little_space_is_said_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=167))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("made a folder"))
    assert "167 are free" in no_space(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=168))
    open_store(tmp_path / "answers")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to reserve space here")
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("file", [1, 2])
def test_a_disk_that_fills_up_meanwhile(reason, file, tmp_path, monkeypatch):
    calls: list[int] = []

    def reserve(descriptor: int, offset: int, size: int) -> None:
        calls.append(size)
        if len(calls) == file:
            raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    no_space(tmp_path)
    assert calls == [120, 48][:file]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no way to reserve space here")
@pytest.mark.parametrize("how", ["absent", errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_that_cannot_reserve_is_used_all_the_same(how, tmp_path, monkeypatch):
    def refuse(*_: int) -> None:
        raise OSError(how, "not here")

    if how == "absent":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    with open_store(tmp_path / "answers") as store:
        store.write(*rows((2, 3)), answers_of(1))
    assert (tmp_path / "answers" / "logits.bin").stat().st_size == 120
    assert open_store(tmp_path / "answers").read(*rows((2, 3)))[1].all()


def test_the_one_who_comes_second_uses_the_firsts(tmp_path):
    """Both find nothing there; the first has made and filled the store before the second has."""

    def be_overtaken(_: str) -> None:
        with open_store(tmp_path / "answers") as first:
            first.write(*rows((1, 1)), answers_of(1))

    second = open_store(tmp_path / "answers", announce=be_overtaken)
    assert second.read(*rows((1, 1)))[1].all()
    assert [p.name for p in tmp_path.iterdir()] == ["answers"]
    with pytest.raises(UserError, match="number of classes"):
        open_store(tmp_path / "other", announce=lambda _: open_store(tmp_path / "other", classes=2).close())


def test_space_taken_by_the_one_who_came_first_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200))

    def be_overtaken(_: str) -> None:
        open_store(tmp_path / "answers").close()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=32))

    assert open_store(tmp_path / "answers", announce=be_overtaken).filled() == 0


def test_what_a_killed_maker_left_is_removed_once_it_is_old(tmp_path):
    names = (
        *(f".{name}.{'1f' * 16}.tmp" for name in ("answers", "answers2")),
        ".answers.1f.tmp",
        ".answers.txt",
    )
    young = f".answers.{'2f' * 16}.tmp"
    for name in (*names, young):
        (tmp_path / name).mkdir()
        (tmp_path / name / "logits.bin").write_bytes(b"0" * 10)
    hours_ago = time.time() - 2 * 3600
    for name in names:
        os.utime(tmp_path / name, (hours_ago, hours_ago))
    open_store(tmp_path / "answers")
    assert {p.name for p in tmp_path.iterdir()} == {"answers", young, *names[1:]}


# Other stores, other folders, damage


OTHERS = {
    "teacher": ({"key": {**KEY, "teacher weights": "c" * 64}}, ["teacher weights"]),
    "data": ({"key": {**KEY, "data": "c" * 64}}, ["data"]),
    "views": (
        {"key": {**KEY, "kind of views": "2 views"}, "views": 2},
        ["kind of views (all 4 views there, 2 views here)", "number of views (4 there, 2 here)"],
    ),
    "images": ({"images": 30}, ["number of images (3 there, 30 here)"]),
    "classes": ({"classes": 2}, ["number of classes (5 there, 2 here)"]),
    "precision": ({"precision": "fp32"}, ["stored precision (fp16 there, fp32 here)"]),
    "a new part": ({"key": {**KEY, "mood": "good"}}, ["mood (nothing there, good here)"]),
    "a part less": ({"key": {"data": "b" * 64}}, ["kind of views (all 4 views there, nothing here)"]),
    "all": ({"key": {}, "images": 1, "precision": "fp32"}, ["teacher weights", "data", "fp32", "images"]),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_store_of_something_else_is_refused_with_what_differs(other, written):
    changes, differences = OTHERS[other]
    before = content(written)
    with pytest.raises(UserError, match="other stored answers") as error:
        open_store(written, **changes)
    message = str(error.value)
    assert str(written) in message
    assert all(part in message for part in differences)
    assert ("data" in message) == (other in ("data", "all"))
    assert "another folder, or remove this one" in message
    assert "cccc" not in message
    assert content(written) == before


def test_the_order_of_a_keys_parts_is_nothing(written):
    assert open_store(written, dict(reversed(KEY.items()))).filled() == 3


def empty(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")


def shorten(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def lengthen(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + b"0")


def lose(folder: Path, name: str) -> None:
    (folder / name).unlink()


def make_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


@pytest.mark.parametrize("name", ["answers.json", "logits.bin", "checks.bin"])
@pytest.mark.parametrize("damage", [empty, shorten, lose, make_folder])
def test_a_damaged_file_is_named_and_nothing_is_overwritten(damage, name, written):
    damage(written, name)
    before = content(written)
    with pytest.raises(UserError, match=name) as error:
        open_store(written)
    assert str(written) in str(error.value)
    assert content(written) == before


@pytest.mark.parametrize("name", ["logits.bin", "checks.bin"])
def test_a_file_that_is_too_long_is_named(name, written):
    lengthen(written, name)
    with pytest.raises(UserError, match=rf"{name} is damaged: \d+ bytes, not \d+ bytes; remove the folder"):
        open_store(written)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "null", "3", "{}", '{"schema": 1}', '{"schema": "1", "key": {}}', '{"schema": 1, "key": 2}'),
        *('{"a"', "\x00", "[" * 100_000),
    ],
)
def test_an_index_of_something_else(text, written):
    (written / "answers.json").write_text(text)
    with pytest.raises(UserError, match=r"answers\.json is damaged or of something else"):
        open_store(written)


def test_an_index_that_is_no_text(written):
    (written / "answers.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"answers\.json is damaged"):
        open_store(written)


def test_a_store_of_a_later_version(written):
    (written / "answers.json").write_text(json.dumps({"schema": 3, "key": {}}))
    with pytest.raises(UserError, match="another version of unixkd"):
        open_store(written)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(UserError, match=r"photos is no store of teacher answers.*another folder"):
        open_store(tmp_path / "photos")
    assert content(tmp_path / "photos") == {"cat.png": b"cat"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is no store"):
        open_store(tmp_path / "file")
    with pytest.raises(UserError, match="Not a directory"):
        open_store(tmp_path / "file" / "answers")


def test_a_place_that_may_not_be_written_to(tmp_path, monkeypatch):
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot keep answers at .*Permission denied; give another folder"):
        open_store(tmp_path / "answers")
    assert not list(tmp_path.iterdir())
