"""Several processes that train together, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from queue import Empty
from typing import Any

SECONDS = 120
"""How long the next answer is waited for."""


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` gives in each of so many processes, by rank; `work` is found by its name.

    Raises:
        AssertionError: with the traceback of the first process that failed
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_work, args=(answers, rank, size, port, work, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        told: dict[int, Any] = {}
        while len(told) < size:
            rank, failure, value = answers.get(timeout=SECONDS)
            assert failure is None, f"process {rank}: {failure}"
            told[rank] = value
    except Empty:
        raise AssertionError(f"processes {set(range(size)) - told.keys()} gave no answer") from None
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [told[rank] for rank in range(size)]


def _work(
    answers: Any, rank: int, size: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()})
    import torch

    from unixkd.training import precision

    torch.set_num_threads(1)
    precision.NATIVE = ()  # as in conftest.py
    try:
        answers.put((rank, None, work(*arguments)))
    except BaseException:
        answers.put((rank, traceback.format_exc(), None))
