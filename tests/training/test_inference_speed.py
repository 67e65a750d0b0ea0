"""Which batch size is reported as the fastest, by calls whose seconds are given and not measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from unixkd.training import inference_speed
from unixkd.training.inference_speed import InferenceSpeed, time_forwards

CPU = torch.device("cpu")


class Seen(nn.Module):
    """Gives two logits and notes the shape of its images and the mode it was in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], bool, bool]] = []
        self.layer = nn.Linear(1, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((tuple(images.shape), self.training, torch.is_grad_enabled()))
        return self.layer(images.mean(dim=(1, 2, 3))[:, None])


@pytest.fixture
def timed(monkeypatch) -> Callable[[dict[int, float]], InferenceSpeed]:
    """What is found where a call with so many images takes so many seconds; of others memory runs out."""

    def find(table: dict[int, float]) -> InferenceSpeed:
        model = Seen()

        def seconds(call: Callable[[], object], rounds: int, device: torch.device) -> list[float]:
            model.seen.clear()
            call()
            ((rows, *_), training, gradients) = model.seen[0]
            assert not training
            assert not gradients
            if rows not in table:
                raise torch.OutOfMemoryError("not enough memory")
            return [table[rows]] * rounds

        monkeypatch.setattr(inference_speed, "seconds", seconds)
        return time_forwards(model.train(), 3, (4, 5), CPU, rounds=7)

    return find


def test_the_fastest_batch_is_found_beyond_one_that_gains_nothing(timed):
    found = timed({1: 0.01, 4: 0.04, 16: 0.08, 64: 0.16, 256: 0.64})
    assert found.batch_size == 64
    assert found.images_per_second == pytest.approx(64 / 0.16)
    assert (found.milliseconds, found.calls) == (pytest.approx(10.0), 7)
    assert found.threads == torch.get_num_threads()


def test_after_two_sizes_in_vain_no_larger_one_is_tried(timed):
    assert timed({1: 0.001, 4: 0.004, 16: 0.016}).batch_size == 1


def test_a_batch_that_would_take_too_long_is_not_tried(timed):
    found = timed({1: 0.4, 4: 1.0})
    assert (found.batch_size, found.images_per_second) == (4, pytest.approx(4.0))


def test_where_memory_runs_out_the_best_so_far_stands(timed):
    assert timed({1: 0.01, 4: 0.02}).batch_size == 4


def test_a_network_is_really_timed_and_left_as_it_was():
    model = Seen().train()
    found = time_forwards(model, 1, (2, 2), CPU, rounds=3)
    assert found.milliseconds > 0
    assert found.images_per_second >= 1000 / found.milliseconds * 0.99
    assert model.training
    assert {shape[1:] for shape, *_ in model.seen} == {(1, 2, 2)}
