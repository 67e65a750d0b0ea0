"""One store, many processes: writing the same rows, killed at any moment, making it at the same time.

The processes are forked from a server that has imported torch once.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

from unixkd.teacher.store import AnswerStore

KEY = {"teacher weights": "a" * 64}
IMAGES, VIEWS, CLASSES, WRITERS = 400, 20, 500, 4
BATCH = 64


def open_store(path: Path, top_k: int | None = None) -> AnswerStore:
    return AnswerStore.open(path, KEY, images=IMAGES, views=VIEWS, classes=CLASSES, top_k=top_k)


def answers(index: torch.Tensor, view: torch.Tensor, writer: int) -> torch.Tensor:
    """What a writer says about a view `[N, CLASSES]`: whole numbers below 2048, all exact in fp16."""
    row = (index * VIEWS + view)[:, None]
    return ((row * 7 + torch.arange(CLASSES) * (2 * row + 1)) % 500 * WRITERS + writer).float()


def write(path: Path, top_k: int | None, writer: int, rounds: int | None, start: Barrier) -> None:
    """Write random rows again and again; without a number of rounds, those of the first half for ever."""
    torch.set_num_threads(1)
    start.wait()
    generator = torch.Generator().manual_seed(writer)
    with open_store(path, top_k) as store:
        for _ in itertools.count() if rounds is None else range(rounds):
            images = IMAGES // 2 if rounds is None else IMAGES
            index = torch.randint(images, (BATCH,), generator=generator)
            view = torch.randint(VIEWS, (BATCH,), generator=generator)
            store.write(index, view, answers(index, view, writer))


@pytest.fixture(scope="module")
def forking() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unixkd.teacher.store"])
    return context


def everywhere() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(IMAGES).repeat_interleave(VIEWS), torch.arange(VIEWS).repeat(IMAGES)


def check(path: Path, top_k: int | None = None) -> torch.Tensor:
    """Which rows are known; each is wholly what one writer has said."""
    index, view = everywhere()
    with open_store(path, top_k) as store:
        logits, known = store.read(index, view)
        said = torch.stack([store.rounded(answers(index, view, writer)) for writer in range(WRITERS)])
    assert (logits == said).all(dim=2).any(dim=0)[known].all()
    return known


@contextlib.contextmanager
def running(context: ForkServerContext, target: Callable[..., None], each: list[tuple]) -> Iterator[list]:
    """A process for each tuple of arguments; none outlives the block, whatever happens in it."""
    processes = [context.Process(target=target, args=arguments) for arguments in each]
    try:
        for process in processes:
            process.start()
        yield processes
        for process in processes:
            process.join(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.parametrize("top_k", [None, pytest.param(16, marks=pytest.mark.slow)])
def test_killed_writers_leave_nothing_that_is_wrong(top_k, forking, tmp_path):
    path, start = tmp_path / "answers", forking.Barrier(WRITERS + 1)
    rounds = [None, None, 40, 40]
    open_store(path, top_k).close()
    with running(forking, write, [(path, top_k, n, rounds[n], start) for n in range(WRITERS)]) as writers:
        start.wait(timeout=60)
        for writer in writers[:2]:
            time.sleep(random.uniform(0.05, 0.5))
            check(path, top_k)
            writer.kill()
    assert [writer.exitcode for writer in writers] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["answers"]

    known = check(path, top_k)
    assert known.any()
    assert not known.all()  # of 4,000 rows of the second half 2,560 draws reach 1,900 or so
    index, view = everywhere()
    with open_store(path, top_k) as store:
        store.write(index[~known], view[~known], answers(index[~known], view[~known], 3))
        assert store.filled() == IMAGES * VIEWS
    assert check(path, top_k).all()


def fill_a_share(path: Path, number: int, start: Barrier) -> None:
    """Make the store with the others, then write every fourth image's rows."""
    torch.set_num_threads(1)
    index, view = everywhere()
    mine = index % WRITERS == number
    start.wait()
    with open_store(path) as store:
        store.write(index[mine], view[mine], answers(index[mine], view[mine], number))


def test_made_by_all_at_once_it_is_one_store(forking, tmp_path):
    for attempt in range(2):
        path, start = tmp_path / str(attempt) / "answers", forking.Barrier(WRITERS)
        with running(forking, fill_a_share, [(path, n, start) for n in range(WRITERS)]) as makers:
            pass
        assert [maker.exitcode for maker in makers] == [0] * WRITERS
        assert check(path).all()
        assert [p.name for p in path.parent.iterdir()] == ["answers"]
