"""On a GPU `plan` times captured steps; a tape stands in for the CUDA graph."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tape import Tape
from unixkd.cli import plan_timing
from unixkd.cli.plan_timing import Capture, how_timed, planned_pair
from unixkd.method.unix import kd, unix
from unixkd.models import ModelCard, PixelModel, create_model
from unixkd.planning.timing import TEACHER_FORWARD, step_of, time_steps
from unixkd.training import cuda_graph

ROUNDS = 2


class Unsteady(nn.Module):
    """The host decides in each forward."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * (1 + random.random())


def model(name: str = "resnet8") -> PixelModel:
    return PixelModel(create_model(name, 10, 3), ModelCard(name, 10, 3, (0.5,) * 3, (0.5,) * 3))


def forwards(network: nn.Module) -> list[int]:
    """Images of each forward of Python's, which a replay has none of."""
    seen: list[int] = []
    network.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    return seen


@pytest.fixture(autouse=True)
def one_round_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_timing, "LIMIT", 60.0)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


def test_what_is_timed_is_the_captured_step():
    """A step is run in Python to record it, never to time it; the teacher's own forward is asked eagerly."""
    teacher, student, tape = model("resnet14"), model().train(), Tape()
    pair = planned_pair(teacher, student, 16, 8, timed=True, record=tape)
    asked, learnt = forwards(teacher), forwards(student)
    steps = [step_of(method, (8, 8)) for method in (kd(), unix())]
    seconds = time_steps(pair, [TEACHER_FORWARD, *steps], ROUNDS)
    assert [len(each) for each in seconds.values()] == [ROUNDS] * 3
    assert tape.recordings == len(steps)
    assert tape.replays == len(steps) * (ROUNDS + 1)
    recorded = cuda_graph.WARM_UPS + 1
    assert asked == [16] * recorded + [12] * recorded + [16] * (ROUNDS + 1)
    assert learnt == [16] * recorded + [16, 12] * recorded
    assert how_timed(pair).endswith("16 images at once, as CUDA graphs")


def test_a_replayed_step_moves_what_the_eager_one_moves():
    """BatchNorm's statistics after as many steps; the random pixels are the same."""
    moved = []
    for record in (None, Tape()):
        torch.manual_seed(0)
        student = model().train()
        pair = planned_pair(model(), student, 16, 8, timed=True, record=record)
        time_steps(pair, [step_of(kd(), (8, 8))], ROUNDS if record else ROUNDS + cuda_graph.WARM_UPS + 1)
        moved.append({name: value.clone() for name, value in student.named_buffers()})
        assert all(p.grad is None for p in student.parameters())
    assert moved[0]["net.bn1.num_batches_tracked"] == cuda_graph.WARM_UPS + 1 + ROUNDS + 1
    assert all(torch.equal(value, moved[1][name]) for name, value in moved[0].items())


def test_a_step_that_cannot_be_captured_is_timed_eagerly_and_said(capsys):
    teacher, student, tape = model(), model().train(), Tape()
    student.net = nn.Sequential(Unsteady(), student.net)
    pair = planned_pair(teacher, student, 16, 8, timed=True, record=tape)
    time_steps(pair, [step_of(kd(), (8, 8))], ROUNDS)
    assert tape.replays == 0
    said = capsys.readouterr().err
    assert "timed eagerly, not as a CUDA graph: the step draws random numbers on the host" in said
    assert how_timed(pair).endswith(", no step as a CUDA graph")


def test_a_gpu_captures_in_cuda_graphs_and_a_cpu_does_not(monkeypatch):
    """A pair that says that it lies on a GPU."""
    bodies: list[Callable[[], None]] = []

    def record_graph(body: Callable[[], None]) -> Callable[[], None]:
        bodies.append(body)
        return body

    monkeypatch.setattr(cuda_graph, "record_graph", record_graph)
    monkeypatch.setattr(cuda_graph, "randomness_kept", lambda device: torch.random.fork_rng([]))
    calls: list[str] = []
    replay = Capture(torch.device("cuda"))(lambda: calls.append("step"))
    replay()
    assert len(bodies) == len(calls) == 1
    assert planned_pair(model(), model().train(), 16, 8, timed=True).record is None
